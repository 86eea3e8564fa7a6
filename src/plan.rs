//! The recipe of a run as plain data.

mod check;
mod edits;
mod head_start;
mod phase;
mod recipe;
mod text;
mod version;
mod warnings;

pub use head_start::HeadStart;
pub use phase::Phase;
pub use recipe::Recipe;

use crate::backbone::Backbone;
use crate::data::Augment;
use crate::error::Result;
use crate::freeze::FreezePolicy;
use crate::loss::Loss;
use crate::optim::Optimizer;
use crate::strategy::Strategy;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
#[serde(into = "Stored", try_from = "Unchecked")]
#[non_exhaustive]
pub struct Plan {
    /// The strategy that made the plan; `None` for a custom one.
    pub strategy: Option<Strategy>,
    /// The number of samples that the strategy made it for.
    pub samples: Option<usize>,
    /// Which weights the backbone starts from.
    pub init: Init,
    /// How the head starts. If it is fitted, there may be no phases: then the fitted head is the result.
    pub head_start: HeadStart,
    /// The phases, in order.
    pub phases: Vec<Phase>,
    /// Samples per step.
    pub batch_size: usize,
    /// How training images are augmented, in phases that are [`augmented`](Phase::augmented).
    pub augment: Augment,
    /// With random augmentation: the number of fixed views of each image, so that the features of frozen blocks can be
    /// cached. `None` draws a new view each epoch.
    pub views: Option<usize>,
    /// The loss to minimise.
    pub loss: Loss,
    /// The largest Euclidean norm of all gradients together; larger ones are scaled down to it.
    pub clip: Option<f64>,
    /// Epochs without a lower validation loss that end a phase; `None` runs every phase to its end.
    pub patience: Option<usize>,
    /// The reasons for its settings, as sentences.
    pub reasons: Vec<String>,
}

/// A plan as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// [`version::of`] the plan; checked before anything else is read.
    #[serde(default)]
    version: u32,
    #[serde(default)]
    strategy: Option<Strategy>,
    #[serde(default)]
    samples: Option<usize>,
    init: Init,
    #[serde(default, skip_serializing_if = "HeadStart::is_random")]
    head_start: HeadStart,
    phases: Vec<Phase>,
    batch_size: usize,
    augment: Augment,
    views: Option<usize>,
    loss: Loss,
    clip: Option<f64>,
    patience: Option<usize>,
    reasons: Vec<String>,
}

impl From<Plan> for Stored {
    fn from(plan: Plan) -> Self {
        let version = version::of(&plan);
        let Plan { strategy, samples, init, head_start, phases, .. } = plan;
        let Plan { batch_size, augment, views, loss, clip, patience, reasons, .. } = plan;
        Self {
            version,
            strategy,
            samples,
            init,
            head_start,
            phases,
            batch_size,
            augment,
            views,
            loss,
            clip,
            patience,
            reasons,
        }
    }
}

/// A possible plan of any version. It is held as a value because the version decides how the rest is read, and may
/// come after it.
#[derive(Deserialize)]
struct Unchecked(Value);

impl TryFrom<Unchecked> for Plan {
    type Error = String;

    fn try_from(Unchecked(value): Unchecked) -> Result<Self, String> {
        version::check(&value)?;
        let stored: Stored = serde_json::from_value(value).map_err(|error| format!("plan: {error}"))?;
        let Stored { version: _, strategy, samples, init, head_start, phases, .. } = stored;
        let Stored { batch_size, augment, views, loss, clip, patience, reasons, .. } = stored;
        Ok(Self {
            strategy,
            samples,
            init,
            head_start,
            phases,
            batch_size,
            augment,
            views,
            loss,
            clip,
            patience,
            reasons,
        })
    }
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
            augment: Augment::none(),
            views: None,
            loss: Loss::cross_entropy(),
            clip: None,
            patience: None,
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

    /// Sets the samples per step.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
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

    /// Sets the number of epochs without a lower validation loss that end a phase.
    pub fn patience(mut self, epochs: usize) -> Self {
        self.patience = Some(epochs);
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
