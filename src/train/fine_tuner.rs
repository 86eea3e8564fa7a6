//! Configures and runs a fine-tuning.

use super::event::Event;
use super::fitted::Fitted;
use super::listener::Listener;
use super::position::Stop;
use super::refit::{self, stops};
use super::run_state::RunState;
use super::session::Session;
use super::setup::Setup;
use crate::advisor::{Advice, Advisor};
use crate::backbone::Backbone;
use crate::data::{Dataset, Joined};
use crate::error::{Error, Result};
use crate::features::FeatureCache;
use crate::head::Head;
use crate::metrics::Metric;
use crate::plan::Plan;
use crate::report::Report;
use crate::strategy::Strategy;
use std::sync::Arc;

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
/// | `head` | `optimizer`, `loss`, `clip` |
/// | `seed`, `workers` | `batch_size`, `augment`, `views` |
/// | `cache`, `audit` | `patience` |
/// | `on_event`, `progress` | `init`, `head_start` |
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
/// A clone has the same settings, and shares cache and listener.
#[derive(Clone)]
pub struct FineTuner {
    pub(super) backbone: Backbone,
    head: Head,
    pub(super) strategy: Option<Strategy>,
    pub(super) plan: Option<Plan>,
    pub(super) advice: Option<Advice>,
    pub(super) seed: u64,
    workers: Option<usize>,
    pub(super) cache: FeatureCache,
    audit: bool,
    metric: Metric,
    pub(super) listener: Listener,
    pub(super) state: Option<RunState>,
    refit: bool,
    stops: Option<Vec<Stop>>,
}

impl FineTuner {
    /// A tuner with a linear head and seed 0. Without a strategy or a plan, the [`Advisor`] chooses them for the
    /// training data.
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
            metric: Metric::default(),
            listener: Listener::default(),
            state: None,
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

    /// Sets the metric of the validation data that chooses the best epoch, top-1 accuracy by default;
    /// [`Session::end_epoch`] has the rule. Patience always counts by the loss.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
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

    /// Sets a listener, for progress bars and logs.
    pub fn on_event(mut self, listener: impl FnMut(&Event<'_>) + Send + 'static) -> Self {
        self.listener = Listener::new(listener);
        self
    }

    /// Prints the plan and a line per epoch on standard error: [`progress_lines`](crate::progress_lines) as the
    /// listener.
    pub fn progress(self) -> Self {
        self.on_event(super::event::progress_lines(std::io::stderr()))
    }

    /// Continues the run that `state` was taken from, instead of starting a new one. Backbone, plan, seed, head and
    /// data must be the same. See [`Session::resume`].
    pub fn resume(mut self, state: &RunState) -> Self {
        self.state = Some(state.clone());
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

    /// Starts a session over the training data, for custom training loops.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a plan that cannot work; without strategy and plan also those of [`Advisor::advise`].
    pub fn session<D: Dataset + Clone + 'static>(self, train: &D) -> Result<Session> {
        self.start(Arc::new(train.clone()))
    }

    /// As [`FineTuner::session`], compiled once for all kinds of datasets.
    pub(super) fn start(mut self, train: Arc<dyn Dataset>) -> Result<Session> {
        if self.chooses() && self.advice.is_none() {
            self.cache.check()?;
            let advisor = Advisor::new(&self.backbone).head(self.head).seed(self.seed).cache(&self.cache);
            let advisor = self.workers.into_iter().fold(advisor, Advisor::workers);
            self.advice = Some(advisor.advise_on(&train)?);
        }
        let advice_seconds = self.advice.as_ref().map_or(0.0, |advice| advice.evidence.seconds);
        let advised = self.advice.as_ref().map(|advice| &advice.plan);
        let set = self.plan.as_ref().or(advised.filter(|_| self.strategy.is_none()));
        let strategy = self.strategy.or(set.and_then(|plan| plan.strategy));
        let samples = self.plan.as_ref().and_then(|plan| plan.samples).unwrap_or(train.len());
        let of_strategy = strategy.map(|strategy| match advised {
            Some(plan) if plan.strategy == Some(strategy) => plan.clone(),
            _ => strategy.plan(&self.backbone, samples),
        });
        let (plan, overrides) = match (self.plan, of_strategy) {
            (Some(plan), None) => (plan, vec![]),
            (Some(plan), Some(of_strategy)) => {
                let plan = plan.with_names(&self.backbone)?;
                let edits = plan.edits(&of_strategy);
                (plan, edits)
            }
            (None, Some(of_strategy)) => (of_strategy, vec![]),
            // Not reached: without a plan and a strategy there is advice, which names one.
            (None, None) => return Err(Error::invalid("fine-tuner", "neither strategy nor plan nor advice is set")),
        };
        self.cache.check()?;
        let setup = Setup {
            backbone: self.backbone,
            head: self.head,
            plan,
            strategy,
            overrides,
            advice_seconds,
            seed: self.seed,
            workers: self.workers,
            cache: self.cache,
            audit: self.audit,
            metric: self.metric,
            listener: self.listener,
            stops: self.stops,
        };
        let mut session = Session::start(setup, train)?;
        if let Some(state) = &self.state {
            session.resume(state)?;
        }
        Ok(session)
    }

    /// Trains by the plan, validates after every epoch, and keeps the best epoch's weights (see
    /// [`Session::end_epoch`] for which that is). If training diverges, the best earlier epoch is kept
    /// and [`Report::stopped`](crate::Report::stopped) has the reason.
    ///
    /// # Errors
    /// As [`FineTuner::session`]; [`Error::Diverged`] if the validation of every epoch was NaN or infinite; and if a
    /// sample cannot be read, the audit fails, or the validation data has other classes.
    pub fn fit<D, V>(self, train: &D, valid: &V) -> Result<Fitted>
    where
        D: Dataset + Clone + 'static,
        V: Dataset + Clone + 'static,
    {
        self.run(Arc::new(train.clone()), Arc::new(valid.clone()))
    }

    /// As [`FineTuner::fit`], compiled once for all kinds of datasets.
    fn run(self, train: Arc<dyn Dataset>, valid: Arc<dyn Dataset>) -> Result<Fitted> {
        same_classes(&train, &valid)?;
        let again = self.refit.then(|| self.clone());
        let fitted = self.trained(Arc::clone(&train), &valid)?.finish()?;
        match again {
            Some(tuner) => {
                let stops = stops(&fitted.report);
                let all = tuner.again(&fitted.report, &stops, Arc::new(Joined::of(train, valid)?))?;
                let validation = "that of the training before, and chose the number of steps".into();
                refit::or_first(refit::train(all, &stops), fitted, validation)
            }
            None => Ok(fitted),
        }
    }

    /// A session over `all` by the plan of a report, up to these steps.
    pub(super) fn again(mut self, chosen: &Report, stops: &[Stop], all: Arc<dyn Dataset>) -> Result<Session> {
        let mut plan = chosen.plan.clone();
        plan.phases.truncate(stops.len());
        (self.plan, self.strategy, self.advice, self.state) = (Some(plan), chosen.strategy, None, None);
        self.stops = Some(stops.to_vec());
        self.start(all)
    }

    /// Whether the training data chooses the plan.
    pub(super) fn chooses(&self) -> bool {
        self.strategy.is_none() && self.plan.is_none()
    }

    /// A session that has trained by the plan, with the weights of the best epoch.
    pub(super) fn trained(self, train: Arc<dyn Dataset>, valid: &Arc<dyn Dataset>) -> Result<Session> {
        let mut session = self.start(train)?;
        session.note_valid(valid);
        match train_on(&mut session, valid) {
            Err(error) if session.survives(&error) => {}
            trained => trained?,
        }
        session.restore_best()?;
        Ok(session)
    }
}

/// Trains by the plan, with a validation after each epoch, and of a fitted head before the first.
fn train_on(session: &mut Session, valid: &Arc<dyn Dataset>) -> Result<()> {
    session.fit_head()?;
    if session.has_start_to_offer() {
        let evaluation = session.validate(valid, None)?;
        session.offer_start(&evaluation)?;
    }
    while session.next_phase()? {
        let features = session.valid_features(valid)?;
        while session.next_epoch()? {
            while let Some(batch) = session.next_batch()? {
                session.step(&batch)?;
            }
            let evaluation = session.validate(valid, features.as_ref())?;
            session.end_epoch(&evaluation)?;
        }
    }
    Ok(())
}

fn same_classes(train: &impl Dataset, valid: &impl Dataset) -> Result<()> {
    if valid.is_empty() {
        return Err(Error::invalid("validation data", "is empty; use `split` to hold out samples"));
    }
    let (a, b) = (train.classes(), valid.classes());
    if a == b {
        return Ok(());
    }
    let lacking = |of: &[String], from: &[String]| -> Vec<String> {
        of.iter().filter(|class| !from.contains(class)).take(20).cloned().collect()
    };
    let (new, absent) = (lacking(b, a), lacking(a, b));
    let problem = if !new.is_empty() {
        format!("has classes that the training data lacks: {}", new.join(", "))
    } else if !absent.is_empty() {
        format!("lacks classes of the training data: {}; open both with the same labels", absent.join(", "))
    } else {
        "has the training data's classes in another order; open both with the same labels".into()
    };
    Err(Error::invalid("validation data", problem))
}
