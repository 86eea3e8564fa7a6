//! The learning rate over the steps of a phase.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The learning rate over the steps of a phase, relative to the optimizer's rate.
///
/// ```
/// use candle_finetune::Schedule;
/// let schedule = Schedule::cosine().warmup(0.1);
/// assert!(schedule.factor(0, 100) < 0.2);
/// assert!((schedule.factor(10, 100) - 1.0).abs() < 0.01);
/// assert!(schedule.factor(99, 100) < 0.01);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Schedule {
    /// The shape after the warmup.
    pub shape: ScheduleShape,
    /// The fraction of the phase's steps during which the rate rises linearly to its full value, in [0, 1).
    pub warmup: f64,
}

/// The shape of a schedule after its warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ScheduleShape {
    /// The full rate in every step.
    Constant,
    /// Half a cosine period down to zero (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).
    Cosine,
    /// A straight line down to zero.
    Linear,
}

impl Schedule {
    /// The full rate in every step.
    pub fn constant() -> Self {
        Self { shape: ScheduleShape::Constant, warmup: 0.0 }
    }

    /// Half a cosine period down to zero.
    pub fn cosine() -> Self {
        Self { shape: ScheduleShape::Cosine, warmup: 0.0 }
    }

    /// A straight line down to zero.
    pub fn linear() -> Self {
        Self { shape: ScheduleShape::Linear, warmup: 0.0 }
    }

    /// Sets the fraction of the steps during which the rate rises to its full value, in [0, 1).
    pub fn warmup(mut self, share: f64) -> Self {
        self.warmup = share;
        self
    }

    /// The factor on the learning rate at step `step` of `total`, counted from 0: in (0, 1].
    pub fn factor(&self, step: usize, total: usize) -> f64 {
        let total = total.max(1) as f64;
        let rise = (self.warmup * total).floor();
        let at = step as f64;
        if at < rise {
            return (at + 1.0) / (rise + 1.0);
        }
        let rest = ((at - rise) / (total - rise).max(1.0)).min(1.0);
        match self.shape {
            ScheduleShape::Constant => 1.0,
            ScheduleShape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * rest).cos()),
            ScheduleShape::Linear => 1.0 - rest,
        }
    }
}

/// `cosine after 10 % warmup`
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.shape {
            ScheduleShape::Constant => "constant",
            ScheduleShape::Cosine => "cosine",
            ScheduleShape::Linear => "linear",
        })?;
        if self.warmup > 0.0 {
            write!(f, " after {:.0} % warmup", 100.0 * self.warmup)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by hand: a warmup of w steps rises by 1 / (w + 1) a step; the shape covers the remaining steps.
    #[test]
    fn values_at_given_steps() {
        let cosine = Schedule::cosine().warmup(0.1);
        let linear = Schedule::linear();
        let cases = [
            (cosine, 0, 1.0 / 11.0),
            (cosine, 4, 5.0 / 11.0),
            (cosine, 9, 10.0 / 11.0),
            (cosine, 10, 1.0), // the first step after the warmup has the full rate
            (cosine, 55, 0.5),
            (cosine, 99, 0.000_304_586_490_5),
            (Schedule::cosine(), 25, 0.853_553_390_593),
            (linear, 0, 1.0),
            (linear, 50, 0.5),
            (linear, 99, 0.01),
            (linear.warmup(0.5), 49, 50.0 / 51.0),
            (linear.warmup(0.5), 50, 1.0),
            (linear.warmup(0.5), 75, 0.5),
            (Schedule::constant(), 99, 1.0),
            (Schedule::constant().warmup(0.25), 24, 25.0 / 26.0),
            (Schedule::constant().warmup(0.25), 25, 1.0),
        ];
        for (schedule, step, expected) in cases {
            let factor = schedule.factor(step, 100);
            assert!((factor - expected).abs() < 1e-9, "{schedule} at {step}: {factor}, not {expected}");
        }
        // A warmup shorter than one step is none, and an empty phase does not divide by zero.
        assert_eq!(Schedule::cosine().warmup(0.5).factor(0, 1), 1.0);
        assert_eq!(Schedule::linear().factor(0, 0), 1.0);
    }
}
