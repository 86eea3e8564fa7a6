//! Configures and runs a fine-tuning.

use super::cancel::Cancel;
use super::event::Event;
use super::listener::Listener;
use super::position::Stop;
use super::run_state::RunState;
use crate::advisor::Advice;
use crate::backbone::Backbone;
use crate::features::FeatureCache;
use crate::head::Head;
use crate::metrics::Metric;
use crate::plan::Plan;
use crate::strategy::Strategy;
use std::path::PathBuf;

/// Fine-tunes a backbone on labelled images.
///
/// ```no_run
/// use candle_finetune::{Arch, Backbone, FineTuner, ImageFolder, Strategy};
/// use candle_finetune::candle_core::Device;
///
/// let train = ImageFolder::open("data/train")?;
/// let valid = ImageFolder::open("data/valid")?;
/// let backbone = Backbone::from_file(Arch::RESNET18, "resnet18.safetensors", &Device::Cpu)?;
/// let tuned = FineTuner::new(backbone).strategy(Strategy::SmallSimilar).fit(&train, &valid)?;
/// println!("{}", tuned.report);
/// tuned.predictor.save("ants-bees.safetensors")?;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// The plan says what is trained, when and how. To change it, edit the plan that the strategy makes; the report lists
/// the edits.
///
/// | set on the tuner | set on the plan |
/// |---|---|
/// | `strategy`, `plan` or `advice` | `phases`: what is frozen, epochs, schedule ... |
/// | `head` | `optimizer`, `loss`, `clip`, `clip_value`, `grad_accum` |
/// | `seed`, `workers` | `batch_size`, `sampling`, `augment`, `views` |
/// | `cache`, `audit`, `metric`, `refit` | `patience`, `watch` |
/// | `on_event`, `progress`, `cancel` | `init`, `head_start` |
/// | `run_dir`, `checkpoints`, `resume` | `drop_path`, `l2_sp`, `ema` |
///
/// ```
/// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Strategy, TensorDataset};
/// # use candle_finetune::candle_core::{DType, Device, Tensor};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = Tensor::zeros((4, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1], vec!["ant".into(), "bee".into()])?;
/// let plan = Strategy::SmallSimilar.plan(&backbone, 4).batch_size(4).optimizer(Optimizer::sgd(0.1).momentum(0.9));
/// let session = FineTuner::new(backbone).plan(plan).session(&train)?;
/// assert!(session.report().overrides[0].starts_with("batch_size 4"));
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// A clone has the same settings, and shares cache and listeners.
#[derive(Clone)]
pub struct FineTuner {
    pub(super) backbone: Backbone,
    pub(super) head: Head,
    pub(super) strategy: Option<Strategy>,
    pub(super) plan: Option<Plan>,
    pub(super) advice: Option<Advice>,
    pub(super) seed: u64,
    pub(super) workers: Option<usize>,
    pub(super) cache: FeatureCache,
    pub(super) audit: bool,
    pub(super) metric: Option<Metric>,
    pub(super) listener: Listener,
    pub(super) state: Option<RunState>,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) checkpoints: usize,
    pub(super) cancel: Option<Cancel>,
    pub(super) refit: bool,
    pub(super) stops: Option<Vec<Stop>>,
}

impl FineTuner {
    /// A tuner with a linear head and seed 0. Without a strategy or a plan, the [`Advisor`](crate::Advisor) chooses them
    /// for the training data.
    pub fn new(backbone: Backbone) -> Self {
        Self {
            backbone,
            head: Head::linear(),
            strategy: None,
            plan: None,
            advice: None,
            seed: 0,
            workers: None,
            cache: FeatureCache::new(),
            audit: true,
            metric: None,
            listener: Listener::default(),
            state: None,
            run_dir: None,
            checkpoints: 2,
            cancel: None,
            refit: false,
            stops: None,
        }
    }

    /// Sets the head that replaces the classifier.
    pub fn head(mut self, head: Head) -> Self {
        self.head = head;
        self
    }

    /// Sets the strategy, which makes the plan for the data's size. If a plan is set as well, the plan is followed, and
    /// the report lists where it differs from this strategy's.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Sets the plan. If a strategy made it, the report names the strategy and lists the settings that were edited.
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// Follows the advice, and counts the seconds that it took ([`Timings::advice`](crate::Timings::advice)). A plan or a
    /// strategy that is set as well is followed instead; for a plan, the report lists where it differs from the advised
    /// one.
    ///
    /// Without advice, strategy and plan, the run asks the advisor itself.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{Device, Tensor}};
    /// use candle_finetune::{Advisor, FineTuner};
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// let advice = Advisor::new(&backbone).advise(&train)?;
    /// let session = FineTuner::new(backbone).advice(&advice).session(&train)?;
    /// assert_eq!(session.report().strategy, Some(advice.strategy));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn advice(mut self, advice: &Advice) -> Self {
        self.advice = Some(advice.clone());
        self
    }

    /// Sets the metric of the validation data that chooses the best epoch; by default top-1 accuracy, and for lists of
    /// labels average precision. [`Session::end_epoch`](crate::Session::end_epoch) has the rule. Patience counts by
    /// [`Plan::watch`](crate::Plan::watch).
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = Some(metric);
        self
    }

    /// Sets the random seed: of the head's initial weights, shuffling, augmentation and dropout.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the number of threads that decode and augment images. The result does not depend on it.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the cache for features of frozen blocks: one shared with other runs, or [`FeatureCache::off`]. By default
    /// each run has its own, of 2 GiB at most. The result is the same, unless the cache rounds.
    pub fn cache(mut self, cache: &FeatureCache) -> Self {
        self.cache = cache.clone();
        self
    }

    /// Sets whether the first step of each phase is audited (yes by default): every trainable parameter gets a
    /// finite gradient, every frozen one is unchanged.
    pub fn audit(mut self, audit: bool) -> Self {
        self.audit = audit;
        self
    }

    /// Adds a listener, for progress bars and logs. Each call adds one; all are told, in this order.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, candle_core::Device};
    /// use candle_finetune::{FineTuner, csv_lines, progress_lines};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("epochs.csv");
    /// let file = std::fs::File::create(path).unwrap();
    /// let tuner = FineTuner::new(backbone).on_event(progress_lines(std::io::stderr())).on_event(csv_lines(file));
    /// # let _ = tuner;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn on_event(mut self, listener: impl FnMut(&Event<'_>) + Send + 'static) -> Self {
        self.listener.add(listener);
        self
    }

    /// Prints the plan and a line per epoch on standard error: adds [`progress_lines`](crate::progress_lines) as a
    /// listener.
    pub fn progress(self) -> Self {
        self.on_event(super::logs::progress_lines(std::io::stderr()))
    }

    /// Continues the run that `state` was taken from, instead of starting a new one. Backbone, plan, seed, head and
    /// data must be the same. See [`Session::resume`](crate::Session::resume).
    pub fn resume(mut self, state: &RunState) -> Self {
        self.state = Some(state.clone());
        self
    }

    /// Sets the folder in which [`FineTuner::fit`] keeps the run, so that it can go on after an interruption of any kind:
    /// called again with the same settings and data, `fit` resumes at the newest checkpoint, and ends in the same bytes
    /// as a run that was never stopped.
    ///
    /// The folder is created, and locked while the run uses it. It holds the newest checkpoints
    /// (`checkpoint-STEPS.safetensors`, each a [`RunState`] with a checksum; [`FineTuner::checkpoints`] says how many),
    /// the predictor of the best epoch so far (`best.safetensors`) and, at the end, the report (`report.json`).
    /// Checkpoints take at most 5 % of the time of each phase, plus one at the end. A damaged one is skipped, with
    /// [`Event::SkippedCheckpoint`], and renamed.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let valid = train.clone();
    /// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]);
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let folder = dir.path().join("run");
    /// let tuned = FineTuner::new(backbone).plan(plan).run_dir(&folder).fit(&train, &valid)?;
    /// assert!(folder.join("best.safetensors").exists());
    /// # let _ = tuned;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// `fit` fails with [`Error::InUse`](crate::Error::InUse) if another run uses the folder, and with
    /// [`Error::Invalid`](crate::Error::Invalid), which names the difference, if the folder holds a run of another plan,
    /// seed, architecture or data.
    pub fn run_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(folder.into());
        self
    }

    /// Sets how many of the newest checkpoints stay in the run directory, 2 by default.
    pub fn checkpoints(mut self, keep: usize) -> Self {
        self.checkpoints = keep;
        self
    }

    /// Sets what can end the run early.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }

    /// Sets whether [`FineTuner::fit`] trains once more at the end (no by default), on training and validation data
    /// together, for as many steps as were best.
    ///
    /// With little data, the samples held out for validation would have been worth points. The second training takes the
    /// same plan and makes as many steps as the first one made until its best epoch, with the learning rates that those
    /// steps had. Its weights are in the predictor. There is no data left to validate them on: the report keeps the
    /// validation of the first training, and [`Report::refit`](crate::Report::refit) says so.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let data = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]).batch_size(2);
    /// let (train, valid) = candle_finetune::split(&data, 0.25, 0)?;
    /// let tuned = FineTuner::new(backbone).plan(plan).refit(true).fit(&train, &valid)?;
    /// assert_eq!(tuned.report.refit.unwrap().samples, 8);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn refit(mut self, refit: bool) -> Self {
        self.refit = refit;
        self
    }

    /// Whether the training data chooses the plan.
    pub(super) fn chooses(&self) -> bool {
        self.strategy.is_none() && self.plan.is_none()
    }
}
