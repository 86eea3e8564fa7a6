//! The recipe of a run as plain data.

mod check;
mod edits;
mod head_start;
mod phase;
mod recipe;
mod sampling;
mod text;
mod version;
mod warnings;

pub use head_start::HeadStart;
pub use phase::Phase;
pub use recipe::Recipe;
pub use sampling::Sampling;

use crate::backbone::Backbone;
use crate::data::Augment;
use crate::error::Result;
use crate::freeze::FreezePolicy;
use crate::loss::Loss;
use crate::metrics::Metric;
use crate::optim::Optimizer;
use crate::schedule::{ScheduleShape, is_zero};
use crate::strategy::Strategy;
use serde::{Deserialize, Serialize};

/// Which weights the backbone starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Init {
    /// The backbone's own.
    Pretrained,
    /// Randomly initialised ones: only the architecture is kept.
    Random,
}

/// The recipe of a run: what is trained, when, and how. Print it, edit it, serialise it.
///
/// [`Strategy::plan`] makes one for a backbone and a number of samples; [`Plan::new`] makes one from phases. Every
/// setting is a public field, and the setters return the plan, for edits in a line. A plan remembers the strategy that
/// made it, and the run's report lists the settings that were edited ([`Report::overrides`](crate::Report::overrides)).
///
/// ```
/// use candle_finetune::{Arch, Augment, Backbone, FineTuner, Optimizer, Strategy};
/// use candle_finetune::candle_core::Device;
///
/// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let mut plan = Strategy::SmallDifferent.plan(&backbone, 500).batch_size(8).augment(Augment::light());
/// plan.phases[1].epochs = 3;
/// println!("{plan}");
/// let tuner = FineTuner::new(backbone).plan(plan);
/// # let _ = tuner;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// A serialised plan carries a version, which covers its phases and everything in them. A plan without one is of
/// version 1, as 0.1 wrote them. Reading fails for a version that is newer than this crate, and for a field that it
/// does not know; both errors name what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)] // `version` adds the version
#[non_exhaustive]
pub struct Plan {
    /// The strategy that made the plan; `None` for a custom one.
    #[serde(default)]
    pub strategy: Option<Strategy>,
    /// The number of samples that the strategy made it for.
    #[serde(default)]
    pub samples: Option<usize>,
    /// Which weights the backbone starts from.
    pub init: Init,
    /// How the head starts. If it is fitted, there may be no phases: then the fitted head is the result.
    #[serde(default, skip_serializing_if = "HeadStart::is_random")]
    pub head_start: HeadStart,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// Samples per batch.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step, weighted by their samples: large batches in little memory. (Class
    /// weights divide each batch by the sum of its own weights.)
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub grad_accum: usize,
    /// How an epoch draws its samples.
    #[serde(default, skip_serializing_if = "Sampling::is_shuffled")]
    pub sampling: Sampling,
    /// How training images are augmented, in phases that are [`augmented`](Phase::augmented).
    pub augment: Augment,
    /// With random augmentation: the number of fixed views of each image, so that the features of frozen blocks can be
    /// cached. `None` draws a new view each epoch.
    pub views: Option<usize>,
    /// The loss to minimise.
    pub loss: Loss,
    /// The largest Euclidean norm of all gradients together; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// The largest absolute value of an element of a gradient; larger ones are cut to it, before
    /// [`clip`](Self::clip).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_value: Option<f64>,
    /// How strongly the backbone's weights are pulled back to where they started: half of this, times the squared
    /// distance, is added to the loss (L2-SP, Li et al. 2018, arXiv 1802.01483). Usually 0.01 to 1; 0 for none. Biases and
    /// norms are pulled as well; the head is not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub l2_sp: f64,
    /// Stochastic depth (Huang et al. 2016, arXiv 1603.09382): the probability, in [0, 1), that a sample skips the residual
    /// branch of the last block. It rises linearly from 0 for the first block, as timm's `drop_path_rate`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drop_path: f64,
    /// The decay of an exponential moving average of all weights, 0.999 say, which has its own validation
    /// ([`EpochReport::averaged`](crate::EpochReport::averaged)) and may be the best epoch. It begins with smaller decays:
    /// at step t with at most (1 + t) / (10 + t).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Epochs without a better [`watch`](Self::watch) that end a phase; `None` runs every phase to its end.
    pub patience: Option<usize>,
    /// The metric of the validation data that patience and plateaus of the schedule watch; with moving averages
    /// ([`ema`](Self::ema)) the better value of the two.
    #[serde(default = "loss", skip_serializing_if = "is_loss")]
    pub watch: Metric,
    /// The reasons for its settings, as sentences.
    pub reasons: Vec<String>,
}

fn one() -> usize {
    1
}

fn loss() -> Metric {
    Metric::Loss
}

// Signatures that serde calls.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(count: &usize) -> bool {
    *count == 1
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_loss(metric: &Metric) -> bool {
    *metric == Metric::Loss
}

impl Plan {
    /// A plan of these phases from pretrained weights: batches of 32, no augmentation, plain cross entropy.
    pub fn new(phases: Vec<Phase>) -> Self {
        Self {
            strategy: None,
            samples: None,
            init: Init::Pretrained,
            head_start: HeadStart::Random,
            phases,
            batch_size: 32,
            grad_accum: 1,
            sampling: Sampling::Shuffled,
            augment: Augment::none(),
            views: None,
            loss: Loss::cross_entropy(),
            clip: None,
            clip_value: None,
            l2_sp: 0.0,
            drop_path: 0.0,
            ema: None,
            patience: None,
            watch: Metric::Loss,
            reasons: vec![],
        }
    }

    /// Sets which weights the backbone starts from.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Sets how the head starts.
    ///
    /// ```
    /// use candle_finetune::{HeadStart, Optimizer, Phase, Plan};
    /// // A fitted head, then everything is trained; and the fitted head alone.
    /// let plan = Plan::new(vec![Phase::new(5, Optimizer::adamw(1e-4))]).head_start(HeadStart::Probe);
    /// let head_alone = Plan::new(vec![]).head_start(HeadStart::Probe);
    /// # let _ = (plan, head_alone);
    /// ```
    pub fn head_start(mut self, head_start: HeadStart) -> Self {
        self.head_start = head_start;
        self
    }

    /// Sets the samples per batch.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the number of batches whose gradients are averaged for one step. The last step of an epoch may have fewer.
    pub fn grad_accum(mut self, batches: usize) -> Self {
        self.grad_accum = batches;
        self
    }

    /// Sets how an epoch draws its samples.
    pub fn sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the optimizer of every phase. Its learning rate is the head's; each phase's
    /// [`backbone_lr_scale`](Phase::backbone_lr_scale) stays.
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.phases.iter_mut().for_each(|phase| phase.optimizer = optimizer);
        self
    }

    /// Sets how training images are augmented, and applies it in every phase, those that train only the head included.
    ///
    /// To augment in some phases alone, set [`Phase::augmented`] afterwards.
    ///
    /// ```
    /// use candle_finetune::{Arch, Augment, Backbone, Strategy, candle_core::Device};
    /// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// let plan = Strategy::LargeSimilar.plan(&backbone, 20_000);
    /// assert!(!plan.phases[0].augmented, "only the head is trained, from features that are computed once");
    /// assert!(plan.augment(Augment::standard()).phases[0].augmented);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn augment(mut self, augment: Augment) -> Self {
        // Without random augmentation the phases see the same images either way.
        if augment.is_random() {
            self.phases.iter_mut().for_each(|phase| phase.augmented = true);
        }
        self.augment = augment;
        self
    }

    /// Sets the number of fixed views of each image; otherwise each epoch draws a new one.
    pub fn views(mut self, views: usize) -> Self {
        self.views = Some(views);
        self
    }

    /// Sets the loss to minimise.
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = loss;
        self
    }

    /// Sets the largest norm of all gradients together.
    pub fn clip(mut self, norm: f64) -> Self {
        self.clip = Some(norm);
        self
    }

    /// Sets the largest absolute value of an element of a gradient.
    pub fn clip_value(mut self, value: f64) -> Self {
        self.clip_value = Some(value);
        self
    }

    /// Sets how strongly the backbone's weights are pulled back to where they started.
    pub fn l2_sp(mut self, strength: f64) -> Self {
        self.l2_sp = strength;
        self
    }

    /// Sets the probability of stochastic depth for the last block, in [0, 1).
    pub fn drop_path(mut self, probability: f64) -> Self {
        self.drop_path = probability;
        self
    }

    /// Sets the decay of the moving average of the weights, in (0, 1).
    pub fn ema(mut self, decay: f64) -> Self {
        self.ema = Some(decay);
        self
    }

    /// Whether something follows the watched metric: patience, or a plateau of a phase's schedule.
    pub(crate) fn watches(&self) -> bool {
        let reacts = |phase: &Phase| matches!(phase.schedule.shape, ScheduleShape::Plateau { .. });
        self.patience.is_some() || self.phases.iter().any(reacts)
    }

    /// Sets the number of epochs without a better value of the watched metric that end a phase.
    pub fn patience(mut self, epochs: usize) -> Self {
        self.patience = Some(epochs);
        self
    }

    /// Sets the metric that patience and plateaus watch; by default it is the loss.
    pub fn watch(mut self, metric: Metric) -> Self {
        self.watch = metric;
        self
    }

    /// The same without its reasons, on which no training depends.
    pub(crate) fn without_reasons(&self) -> Self {
        Self { reasons: vec![], ..self.clone() }
    }

    /// The epochs of all phases together.
    pub fn total_epochs(&self) -> usize {
        self.phases.iter().fold(0, |sum, p| sum.saturating_add(p.epochs))
    }

    /// The same with blocks by name instead of by number: a name means the same when an architecture's blocks are
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
}

#[cfg(test)]
mod tests;
