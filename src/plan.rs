//! The whole recipe of a run as plain data.

mod warnings;

use crate::backbone::Backbone;
use crate::data::Augment;
use crate::error::{Error, Result, wrapped};
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::loss::Loss;
use crate::optim::Optimizer;
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where the backbone's weights start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Init {
    /// From the backbone's weights.
    Pretrained,
    /// From chance: the architecture alone is kept.
    Random,
}

/// The whole recipe: what learns, when, and how. Print it, edit it, serialise it.
///
/// ```
/// use candle_finetune::{Arch, Backbone, Strategy};
/// use candle_finetune::candle_core::Device;
///
/// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let mut plan = Strategy::SmallDifferent.plan(&backbone, 500);
/// plan.phases[0].epochs = 3;
/// println!("{plan}");
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Plan {
    /// Where the weights start.
    pub init: Init,
    /// One after the other.
    pub phases: Vec<Phase>,
    /// Samples per step.
    pub batch_size: usize,
    /// How training images are varied.
    pub augment: Augment,
    /// With random augmentation: how many fixed views of each image there are, so that the features of a frozen part
    /// can be kept. `None` draws a new view each epoch.
    pub views: Option<usize>,
    /// What is minimised.
    pub loss: Loss,
    /// The largest Euclidean norm of all gradients together; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// How many epochs without a lower validation loss end a phase; `None` runs every phase to its end.
    pub patience: Option<usize>,
    /// Why it is as it is.
    pub reasons: Vec<String>,
}

/// A stretch of training with one assignment of roles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Phase {
    /// What stays as it is.
    pub freeze: FreezePolicy,
    /// How batch norms behave in blocks that learn.
    pub batch_norm: BatchNormMode,
    /// Passes over the training data.
    pub epochs: usize,
    /// The update rule, with the head's learning rate and the weight decay.
    pub optimizer: Optimizer,
    /// The backbone's learning rate as a share of the head's.
    pub backbone_lr_scale: f64,
    /// Each earlier stage learns at this share of the next one's rate.
    pub layer_decay: f64,
    /// How the rate moves.
    pub schedule: Schedule,
    /// Whether training images are varied as the plan says. Without, the features of frozen blocks are computed once.
    #[serde(default = "varied")]
    pub augment: bool,
}

/// What a plan meant that was written before phases could choose.
fn varied() -> bool {
    true
}

impl Phase {
    /// A phase in which everything learns at the optimizer's rate, with the batch's statistics.
    ///
    /// ```
    /// use candle_finetune::{BatchNormMode, FreezePolicy, Optimizer, Phase, Plan};
    /// let phase = Phase::new(5, Optimizer::adamw(1e-3)).freeze(FreezePolicy::First(3)).batch_norm(BatchNormMode::Frozen);
    /// let plan = Plan::new(vec![phase]);
    /// assert_eq!(plan.epochs(), 5);
    /// ```
    pub fn new(epochs: usize, optimizer: Optimizer) -> Self {
        Self {
            freeze: FreezePolicy::Nothing,
            batch_norm: BatchNormMode::Train,
            epochs,
            optimizer,
            backbone_lr_scale: 1.0,
            layer_decay: 1.0,
            schedule: Schedule::constant(),
            augment: true,
        }
    }

    /// Sets what stays as it is.
    pub fn freeze(mut self, freeze: FreezePolicy) -> Self {
        self.freeze = freeze;
        self
    }

    /// Sets how batch norms behave in blocks that learn.
    pub fn batch_norm(mut self, batch_norm: BatchNormMode) -> Self {
        self.batch_norm = batch_norm;
        self
    }

    /// Sets the passes over the training data.
    pub fn epochs(mut self, epochs: usize) -> Self {
        self.epochs = epochs;
        self
    }

    /// Sets the update rule, with the head's learning rate and the weight decay.
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the backbone's learning rate as a share of the head's.
    pub fn backbone_lr_scale(mut self, backbone_lr_scale: f64) -> Self {
        self.backbone_lr_scale = backbone_lr_scale;
        self
    }

    /// Sets the share of the next stage's rate at which each earlier stage learns.
    pub fn layer_decay(mut self, layer_decay: f64) -> Self {
        self.layer_decay = layer_decay;
        self
    }

    /// Sets how the rate moves.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets whether training images are varied.
    pub fn augment(mut self, augment: bool) -> Self {
        self.augment = augment;
        self
    }
}

impl Plan {
    /// A plan of these phases from pretrained weights: batches of 32, no augmentation, plain cross entropy.
    pub fn new(phases: Vec<Phase>) -> Self {
        Self {
            init: Init::Pretrained,
            phases,
            batch_size: 32,
            augment: Augment::none(),
            views: None,
            loss: Loss::cross_entropy(),
            clip: None,
            patience: None,
            reasons: vec![],
        }
    }

    /// Sets where the weights start.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Sets the samples per step.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets how training images are varied.
    pub fn augment(mut self, augment: Augment) -> Self {
        self.augment = augment;
        self
    }

    /// Sets how many fixed views of each image there are; without, each epoch draws a new one.
    pub fn views(mut self, views: usize) -> Self {
        self.views = Some(views);
        self
    }

    /// Sets what is minimised.
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// Sets the largest norm of all gradients together.
    pub fn clip(mut self, norm: f64) -> Self {
        self.clip = Some(norm);
        self
    }

    /// Sets how many epochs without a lower validation loss end a phase.
    pub fn patience(mut self, epochs: usize) -> Self {
        self.patience = Some(epochs);
        self
    }

    /// All passes over the training data.
    pub fn epochs(&self) -> usize {
        self.phases.iter().fold(0, |sum, p| sum.saturating_add(p.epochs))
    }

    /// The same with blocks by name instead of by number: a name still says the same when an architecture's blocks are
    /// counted otherwise.
    pub(crate) fn with_names(mut self, backbone: &Backbone) -> Result<Self> {
        for phase in &mut self.phases {
            if matches!(phase.freeze, FreezePolicy::First(_) | FreezePolicy::AllBut(_)) {
                let k = phase.freeze.frozen_blocks(backbone)?;
                phase.freeze = FreezePolicy::up_to(backbone, k);
            }
        }
        Ok(self)
    }

    /// The settings in which this plan differs from `other`, with both values.
    pub(crate) fn edits(&self, other: &Self) -> Vec<String> {
        let value = |plan: &Self| serde_json::to_value(plan).unwrap_or_default();
        let mut found = vec![];
        differences("", &value(self), &value(other), &mut found);
        found
    }

    /// Refuses values that cannot work.
    pub(crate) fn check(&self, backbone: &Backbone) -> Result<()> {
        let wrong = |what: &str, problem: String| Err(Error::invalid(format!("plan: {what}"), problem));
        if self.phases.is_empty() {
            return wrong("phases", "there are none".into());
        }
        if self.batch_size == 0 {
            return wrong("batch_size", "0; it must be 1 at least".into());
        }
        if self.views == Some(0) {
            return wrong("views", "0; it must be 1 at least, or None for a new view each epoch".into());
        }
        if self.patience == Some(0) {
            return wrong("patience", "0; it must be 1 at least, or None to run every phase to its end".into());
        }
        if !(0.0..1.0).contains(&self.loss.label_smoothing) {
            return wrong("label_smoothing", format!("{} is not in [0, 1)", self.loss.label_smoothing));
        }
        if self.clip.is_some_and(|c| c.is_nan() || c <= 0.0) {
            return wrong("clip", "it must be more than 0, or None".into());
        }
        for (i, phase) in self.phases.iter().enumerate() {
            let what = |field: &str| format!("phase {} {field}", i + 1);
            if phase.epochs == 0 {
                return wrong(&what("epochs"), "0; leave the phase out instead".into());
            }
            let o = &phase.optimizer;
            for (field, value) in
                [("lr", o.lr), ("backbone_lr_scale", phase.backbone_lr_scale), ("layer_decay", phase.layer_decay)]
            {
                if !(value.is_finite() && value > 0.0) {
                    return wrong(
                        &what(field),
                        format!("{value}; it must be more than 0 (freeze what must not learn)"),
                    );
                }
            }
            if let Some(problem) = o.problem() {
                return wrong(&what("optimizer"), problem);
            }
            if !(o.weight_decay.is_finite() && o.weight_decay >= 0.0) {
                return wrong(&what("weight_decay"), format!("{} is negative or no number", o.weight_decay));
            }
            if !(0.0..1.0).contains(&phase.schedule.warmup) {
                return wrong(&what("warmup"), format!("{} is not in [0, 1)", phase.schedule.warmup));
            }
            let frozen = phase.freeze.frozen_blocks(backbone)?;
            let names = matches!(phase.freeze, FreezePolicy::Named(_));
            if self.init == Init::Random && (frozen > 0 || names) {
                let problem = "freezes blocks that start from random weights, which would never learn anything";
                return wrong(&what("freeze"), problem.into());
            }
        }
        Ok(())
    }
}

/// Where two values differ, by the path to it.
fn differences(path: &str, new: &serde_json::Value, old: &serde_json::Value, found: &mut Vec<String>) {
    use serde_json::Value::{Array, Object};
    let below = |name: &str| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match (new, old) {
        _ if new == old || path == "reasons" => {}
        (Object(a), Object(b)) if a.keys().eq(b.keys()) => {
            a.iter().for_each(|(key, value)| differences(&below(key), value, &b[key], found));
        }
        (Array(a), Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| {
                differences(&below(&(i + 1).to_string()), a, b, found);
            });
        }
        _ if new.is_array() || new.is_object() => found.push(path.to_string()),
        _ => found.push(format!("{path} {new} (the strategy has {old})")),
    }
}

/// At most 80 columns wide.
impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.describe(&mut text)?;
        out.write_str(&wrapped(&text))
    }
}

impl Plan {
    fn describe(&self, f: &mut String) -> fmt::Result {
        use fmt::Write as _;
        for reason in &self.reasons {
            writeln!(f, "  because {reason}")?;
        }
        let start = if self.init == Init::Pretrained { "pretrained weights" } else { "random weights" };
        write!(f, "  start from {start}, batches of {}, {}", self.batch_size, self.augment)?;
        if let Some(views) = self.views.filter(|_| self.augment.is_random()) {
            write!(f, " in {views} fixed views")?;
        }
        if self.loss.label_smoothing > 0.0 {
            write!(f, ", label smoothing {}", self.loss.label_smoothing)?;
        }
        if let Some(clip) = self.clip {
            write!(f, ", gradients clipped at {clip}")?;
        }
        if let Some(patience) = self.patience {
            write!(f, ", patience {patience}")?;
        }
        writeln!(f)?;
        for (i, p) in self.phases.iter().enumerate() {
            let frozen = match &p.freeze {
                FreezePolicy::Nothing => "everything learns".to_string(),
                FreezePolicy::Backbone => "the head learns".to_string(),
                FreezePolicy::First(k) => format!("the first {k} blocks are frozen"),
                FreezePolicy::AllBut(k) => format!("the last {k} blocks learn"),
                FreezePolicy::UpTo(name) => format!("frozen up to {name}"),
                FreezePolicy::Named(names) => format!("frozen: {}", names.join(", ")),
            };
            write!(f, "  phase {}: {} epochs, {frozen}, head lr {:.2e}", i + 1, p.epochs, p.optimizer.lr)?;
            if p.freeze != FreezePolicy::Backbone {
                write!(f, ", backbone lr {:.2e}", p.optimizer.lr * p.backbone_lr_scale)?;
                let norms = match p.batch_norm {
                    BatchNormMode::Frozen => "batch norms frozen",
                    BatchNormMode::FrozenStats => "batch norms' statistics frozen",
                    BatchNormMode::Train => "batch norms learn",
                };
                write!(f, ", {norms}")?;
            }
            write!(f, ", {} with weight decay {}, {}", p.optimizer.rule.name(), p.optimizer.weight_decay, p.schedule)?;
            if self.augment.is_random() && !p.augment {
                write!(f, ", images not varied")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
