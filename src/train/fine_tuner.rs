//! The settings of a run, and the run itself: a predictor and a report come out.

use super::event::Event;
use super::fitted::Fitted;
use super::listener::Listener;
use super::run_state::RunState;
use super::session::Session;
use super::setup::Setup;
use crate::backbone::Backbone;
use crate::data::{Augment, Dataset};
use crate::error::{Error, Result};
use crate::features::FeatureCache;
use crate::head::Head;
use crate::loss::Loss;
use crate::optim::Optimizer;
use crate::plan::Plan;
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
/// A setting made by hand wins over the plan's, whatever the order of the calls, and the report says so.
pub struct FineTuner {
    backbone: Backbone,
    head: Head,
    strategy: Option<Strategy>,
    plan: Option<Plan>,
    batch_size: Option<usize>,
    optimizer: Option<Optimizer>,
    loss: Option<Loss>,
    augment: Option<Augment>,
    patience: Option<usize>,
    seed: u64,
    workers: Option<usize>,
    cache: FeatureCache,
    audit: bool,
    listener: Listener,
    state: Option<RunState>,
}

impl FineTuner {
    /// With a linear head, seed 0, and no recipe yet: set a strategy or a plan.
    pub fn new(backbone: Backbone) -> Self {
        Self {
            backbone,
            head: Head::linear(),
            strategy: None,
            plan: None,
            batch_size: None,
            optimizer: None,
            loss: None,
            augment: None,
            patience: None,
            seed: 0,
            workers: None,
            cache: FeatureCache::new(),
            audit: true,
            listener: Listener::default(),
            state: None,
        }
    }

    /// Sets the head that replaces the classifier.
    pub fn head(mut self, head: Head) -> Self {
        self.head = head;
        self
    }

    /// Sets the strategy, which makes the plan for the data's size. A plan set as well wins, and the report names the
    /// settings in which it differs from the strategy's.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Sets the plan.
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// Sets the samples per step.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = Some(batch_size);
        self
    }

    /// Sets the optimizer of every phase; its rate is the head's, and the backbone keeps the plan's share of it.
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.optimizer = Some(optimizer);
        self
    }

    /// Sets the loss.
    pub fn loss(mut self, loss: Loss) -> Self {
        self.loss = Some(loss);
        self
    }

    /// Sets how training images are varied.
    pub fn augment(mut self, augment: Augment) -> Self {
        self.augment = Some(augment);
        self
    }

    /// Sets how many epochs without a lower validation loss end a phase.
    pub fn patience(mut self, epochs: usize) -> Self {
        self.patience = Some(epochs);
        self
    }

    /// Sets the random seed: of the head's initial weights, shuffling, augmentation and dropout.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the threads that decode and augment images. The result does not depend on it.
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

    /// Sets whether the first step of each phase is audited (yes by default): every learning parameter reached by a
    /// finite gradient, every frozen one unchanged.
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

    /// Continues the run that `state` was taken from, instead of starting a new one. Backbone, plan, seed, head and data
    /// must be the same. See [`Session::resume`].
    pub fn resume(mut self, state: &RunState) -> Self {
        self.state = Some(state.clone());
        self
    }

    /// Starts a session over the training data, for custom training loops.
    ///
    /// # Errors
    /// [`Error::NoStrategy`] without strategy and plan, [`Error::Invalid`] for a plan that cannot work.
    pub fn session<D: Dataset + Clone + 'static>(self, train: &D) -> Result<Session> {
        self.start(Arc::new(train.clone()))
    }

    /// As [`FineTuner::session`], compiled once for all kinds of datasets.
    fn start(self, train: Arc<dyn Dataset>) -> Result<Session> {
        let mut overrides = Vec::new();
        let mut plan = match (self.plan, self.strategy) {
            (Some(plan), None) => plan,
            (Some(plan), Some(strategy)) => {
                let plan = plan.with_names(&self.backbone)?;
                overrides = plan.edits(&strategy.plan(&self.backbone, train.len()));
                plan
            }
            (None, Some(strategy)) => strategy.plan(&self.backbone, train.len()),
            (None, None) => return Err(Error::NoStrategy),
        };
        if let Some(batch_size) = self.batch_size {
            overrides.push(format!("batch size {batch_size} (the plan had {})", plan.batch_size));
            plan.batch_size = batch_size;
        }
        if let Some(optimizer) = self.optimizer {
            let Optimizer { rule, lr, weight_decay, .. } = optimizer;
            overrides.push(format!("optimizer {rule:?}, lr {lr:e}, weight decay {weight_decay}"));
            plan.phases.iter_mut().for_each(|phase| phase.optimizer = optimizer);
        }
        if let Some(loss) = self.loss {
            overrides.push(format!("label smoothing {}", loss.label_smoothing));
            plan.loss = loss;
        }
        if let Some(augment) = self.augment {
            overrides.push(augment.to_string());
            plan.augment = augment;
            // Asked for by hand, it is for every phase, those for the head alone included.
            plan.phases.iter_mut().for_each(|phase| phase.augment = true);
        }
        if let Some(patience) = self.patience {
            overrides.push(format!("patience {patience}"));
            plan.patience = Some(patience);
        }
        self.cache.check()?;
        let setup = Setup {
            backbone: self.backbone,
            head: self.head,
            plan,
            strategy: self.strategy,
            overrides,
            seed: self.seed,
            workers: self.workers,
            cache: self.cache,
            audit: self.audit,
            listener: self.listener,
        };
        let mut session = Session::start(setup, train)?;
        if let Some(state) = &self.state {
            session.resume(state)?;
        }
        Ok(session)
    }

    /// Trains by the plan, validates after every epoch, and keeps the best epoch's weights (see
    /// [`Session::end_epoch`] for which that is). Where the training diverges after an epoch that did not, that epoch
    /// is kept, and [`Report::stopped`](crate::Report::stopped) says why.
    ///
    /// # Errors
    /// As [`FineTuner::session`]; [`Error::Diverged`] if no epoch was validated with finite numbers; and if a sample
    /// cannot be read, the audit fails, or the validation data has other classes.
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
        let mut session = self.start(train)?;
        session.note_valid(&valid);
        match train_on(&mut session, &valid) {
            Err(error) if session.survives(&error) => {}
            trained => trained?,
        }
        session.restore_best()?;
        session.finish()
    }
}

/// Trains by the plan, with a validation after each epoch.
fn train_on(session: &mut Session, valid: &Arc<dyn Dataset>) -> Result<()> {
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
        return Err(Error::invalid("validation data", "holds no samples; cut some off with `split`"));
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
