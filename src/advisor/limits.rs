//! The limits that the user sets: minutes and memory.

use crate::error::{Error, Result};
use crate::strategy::Strategy;

/// The limits on a training.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub minutes: Option<f64>,
    /// Bytes.
    pub memory: Option<usize>,
}

impl Limits {
    /// Refuses limits that are no numbers of minutes.
    pub fn check(&self) -> Result<()> {
        match self.minutes {
            Some(minutes) if minutes.is_nan() || minutes < 0.0 => {
                Err(Error::invalid("budget", format!("{minutes} minutes; it must be 0 or more")))
            }
            _ => Ok(()),
        }
    }

    /// Why this many minutes, if known, exceed the budget.
    pub fn time_problem(&self, strategy: Strategy, minutes: Option<f64>) -> Option<String> {
        let budget = self.minutes.filter(|budget| budget.is_finite())?;
        match minutes {
            Some(minutes) if minutes <= budget => None,
            Some(minutes) => Some(format!("{strategy} would take {}; the budget is {budget}", in_minutes(minutes))),
            None => Some(format!("the minutes of {strategy} are unknown; the budget is {budget}")),
        }
    }

    /// Why this much memory, if known, exceeds the limit.
    pub fn memory_problem(&self, strategy: Strategy, bytes: Option<usize>) -> Option<String> {
        let limit = self.memory.filter(|&limit| limit < usize::MAX)?;
        match bytes {
            Some(bytes) if bytes <= limit => None,
            Some(bytes) => Some(format!("{strategy} would take {:.0} MB; the limit is {:.0}", mb(bytes), mb(limit))),
            None => Some(format!("the memory of {strategy} is unknown; the limit is {:.0} MB", mb(limit))),
        }
    }
}

pub(super) fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Two digits, for they are not better known.
pub(super) fn rounded(minutes: f64) -> String {
    match minutes {
        m if m >= 9.95 => format!("{m:.0}"),
        m if m >= 0.995 => format!("{m:.1}"),
        m => format!("{m:.2}"),
    }
}

fn in_minutes(minutes: f64) -> String {
    let rounded = rounded(minutes);
    if rounded == "0.00" { format!("{minutes:.1e} minutes") } else { format!("{rounded} minutes") }
}
