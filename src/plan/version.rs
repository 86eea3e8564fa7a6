//! The version of a saved plan.

use super::Plan;
use crate::strategy::Strategy;
use serde_json::Value;

/// The newest version. Raise it with every field or variant that is added, removed or renamed in a plan or in
/// what it holds (phases, optimizer, schedule, freeze policy, loss, augmentation); the test of the fields here fails
/// until then.
///
/// 1: as 0.1 wrote them, without a `version`; a phase's `augmented` was called `augment`.
/// 2: `version`, `strategy`, `samples`.
/// 3: `head_start`, and the strategies `intermediate` and `probe-then-tune`.
/// 4: the schedules `step`, `onecycle` and `plateau`, and `least`.
pub(super) const VERSION: u32 = 4;

/// The version that a plan is written as: the oldest that has all of it, so that older crates read what they know.
pub(super) fn of(plan: &Plan) -> u32 {
    if plan.phases.iter().any(|phase| !phase.schedule.is_of_old()) {
        return VERSION;
    }
    let known = plan.strategy.is_none_or(|strategy| Strategy::QUADRANTS.contains(&strategy));
    if plan.head_start.is_random() && known { 2 } else { 3 }
}

/// Refuses versions that this crate does not read. A plan without one is of version 1.
pub(super) fn check(plan: &Value) -> Result<(), String> {
    let Some(version) = plan.get("version") else { return Ok(()) };
    match version.as_u64() {
        Some(version) if version > u64::from(VERSION) => Err(format!(
            "the plan was saved by a newer version of the crate (format {version}; this one reads up to {VERSION}): \
             update candle-finetune"
        )),
        Some(1..) => Ok(()),
        _ => Err(format!("the plan's version is {version}; it must be a whole number from 1 to {VERSION}")),
    }
}
