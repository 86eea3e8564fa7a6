//! The version of a saved plan.

use super::Plan;
use crate::loss::Loss;
use crate::strategy::Strategy;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// The newest version. Raise it with every field or variant that is added, removed or renamed in a plan or in
/// what it holds (phases, optimizer, schedule, freeze policy, loss, augmentation); the test of the fields here fails
/// until then.
///
/// 1: as 0.1 wrote them, without a `version`; a phase's `augmented` was called `augment`.
/// 2: `version`, `strategy`, `samples`.
/// 3: `head_start`, and the strategies `intermediate` and `probe-then-tune`.
/// 4: the schedules `step`, `onecycle` and `plateau`, and `least`.
/// 5: `grad_accum`, `sampling`, `clip_value`, `l2_sp`, `drop_path`, `ema`, `watch`; `focal` and `class_weights` of the loss;
///    `mixup` and `cutmix` of the augmentation.
pub(super) const VERSION: u32 = 5;

/// The version that a plan is written as: the oldest that has all of it, so that older crates read what they know.
pub(super) fn of(plan: &Plan) -> u32 {
    let Plan { grad_accum, sampling, clip_value, l2_sp, drop_path, ema, watch, loss, augment, .. } = plan;
    let plain = Plan::new(vec![]);
    let new = (*grad_accum, *clip_value, *l2_sp, *drop_path, *ema, *watch)
        != (plain.grad_accum, plain.clip_value, plain.l2_sp, plain.drop_path, plain.ema, plain.watch)
        || !sampling.is_shuffled()
        || *loss != Loss::cross_entropy().label_smoothing(loss.label_smoothing)
        || augment.mixes();
    if new {
        return VERSION;
    }
    if plan.phases.iter().any(|phase| !phase.schedule.is_of_old()) {
        return 4;
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

/// A plan with its version.
#[derive(Serialize)]
struct Versioned<'a> {
    /// [`of`] the plan; checked before anything else is read.
    version: u32,
    #[serde(flatten, serialize_with = "Plan::serialize")]
    plan: &'a Plan,
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Versioned { version: of(self), plan: self }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Plan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Held as a value, because the version decides how the rest is read, and may come after it.
        let mut value = Value::deserialize(deserializer)?;
        check(&value).map_err(D::Error::custom)?;
        if let Value::Object(fields) = &mut value {
            fields.remove("version");
        }
        Self::deserialize(value).map_err(|error| D::Error::custom(format!("plan: {error}")))
    }
}
