//! What training by each strategy takes, and which strategies fit the limits.

use super::candidate::Candidate;
use super::limits::{Limits, mb, rounded};
use super::policy::preferences;
use super::speed::Speed;
use crate::error::{Error, Result};
use crate::forecast::Forecast;
use crate::plan::Plan;
use crate::strategy::Strategy;
use serde::Serialize;
use std::fmt::{self, Write as _};

/// What training by a strategy takes.
///
/// The work is counted by a dry run of the network: multiply-adds, images, steps. The advisor times the reading of eight
/// images and one small training step, and scales the work by them. Minutes are those of a run without other load, and
/// are rough: expect a factor of 1.5 either way. Cached features of an earlier run, and patience, make it shorter.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StrategyCost {
    /// The strategy.
    pub strategy: Strategy,
    /// Minutes of its whole plan on this machine, with a validation after each epoch. `None` if unknown: for a network
    /// with custom layers of which a part is frozen, and for one that cannot be trained so.
    pub minutes: Option<f64>,
    /// Bytes that a training step takes, [`Forecast::total`](crate::Forecast::total); `None` for a network with custom layers.
    pub memory: Option<usize>,
    /// Multiply-adds of the whole plan; `None` for a network with custom layers.
    pub multiply_adds: Option<u64>,
    /// Its plan, made with what was seen of the data, and the memory of a step; `None` if the network does not support
    /// it.
    #[serde(skip)]
    pub(super) plan: Option<(Plan, Forecast)>,
    /// Why it cannot be chosen: it exceeds a limit, or the network does not support it. Empty if it can.
    pub problems: Vec<String>,
}

impl StrategyCost {
    /// Whether it can be chosen.
    pub fn fits(&self) -> bool {
        self.problems.is_empty()
    }

    /// Of a candidate at the measured speed.
    pub(super) fn new(candidate: Candidate, speed: &Speed, limits: &Limits) -> Self {
        let Candidate { strategy, plan, forecast, work, problem } = candidate;
        let minutes = work.as_ref().and_then(|work| speed.seconds(work)).map(|seconds| seconds / 60.0);
        let too_long = forecast.and_then(|_| limits.time_problem(strategy, minutes));
        Self {
            strategy,
            minutes,
            memory: forecast.and_then(|forecast| forecast.total()),
            multiply_adds: work.and_then(|work| work.multiply_adds()),
            plan: forecast.map(|forecast| (plan, forecast)),
            problems: too_long.into_iter().chain(problem).collect(),
        }
    }
}

/// The first strategy that fits, of the advised one and those to fall back on, and why those before it do not.
///
/// # Errors
/// [`Error::NoStrategyFits`], with the smallest needs of all.
pub(super) fn choose(advised: Strategy, costs: &[StrategyCost], limits: &Limits) -> Result<(Strategy, Vec<String>)> {
    let mut problems = vec![];
    for strategy in preferences(advised) {
        match costs.iter().find(|cost| cost.strategy == strategy) {
            Some(cost) if !cost.fits() => problems.extend(cost.problems.iter().cloned()),
            _ => return Ok((strategy, problems)),
        }
    }
    let fastest = costs.iter().filter(|cost| cost.minutes.is_some()).min_by(|a, b| {
        let minutes = |cost: &StrategyCost| cost.minutes.unwrap_or(f64::INFINITY);
        minutes(a).total_cmp(&minutes(b))
    });
    let smallest = costs.iter().filter(|cost| cost.memory.is_some()).min_by_key(|cost| cost.memory);
    let (minutes, memory) = (fastest.and_then(|cost| cost.minutes), smallest.and_then(|cost| cost.memory));
    let of_time = fastest.and_then(|cost| limits.time_problem(cost.strategy, cost.minutes));
    let of_memory = smallest.and_then(|cost| limits.memory_problem(cost.strategy, cost.memory));
    let mut needs: Vec<String> = of_time.into_iter().chain(of_memory).collect();
    if needs.is_empty() {
        // Each limit has a strategy that fits it, or the needs are unknown.
        needs = problems;
    }
    Err(Error::NoStrategyFits { needs, minutes, memory })
}

/// A row for each strategy: its minutes and megabytes.
pub(super) fn table(costs: &[StrategyCost], f: &mut String) -> fmt::Result {
    writeln!(f, "  {:<16} {:>8} {:>8}", "strategy", "minutes", "MB")?;
    for cost in costs {
        let minutes = cost.minutes.map_or("unknown".into(), rounded);
        let memory = cost.memory.map_or("unknown".into(), |bytes| format!("{:.0}", mb(bytes)));
        writeln!(f, "  {:<16} {minutes:>8} {memory:>8}", cost.strategy.name())?;
        for problem in &cost.problems {
            writeln!(f, "    {problem}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
