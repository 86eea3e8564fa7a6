//! Runs a fine-tuning: the advice, the session, its run directory, the training on all samples at the end.

use super::fine_tuner::FineTuner;
use super::fit_loop::{same_classes, train_on};
use super::fitted::Fitted;
use super::lr_curve::{LrCurve, LrRange};
use super::position::Stop;
use super::refit::{self, stops};
use super::run_dir::{Keeper, RunDir};
use super::session::Session;
use super::setup::Setup;
use crate::advisor::Advisor;
use crate::data::{Dataset, Joined};
use crate::error::{Error, Result};
use crate::report::Report;
use std::sync::Arc;

impl FineTuner {
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
        // A run that goes on has the edits that it began with.
        let overrides = self.state.as_ref().map_or(overrides, |state| state.report().overrides.clone());
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

    /// Searches the learning rate of the plan's last phase, after training those before ([`Session::find_lr`]).
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// use candle_finetune::LrRange;
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let mut plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(4);
    /// let curve = FineTuner::new(backbone).plan(plan.clone()).find_lr(&train, LrRange::default().steps(20))?;
    /// println!("{curve}");
    /// if let Some(lr) = curve.valley {
    ///     plan.phases[0].optimizer.lr = lr;
    /// }
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`FineTuner::session`] and [`Session::find_lr`], [`Error::Cancelled`], for a plan without phases, and for a tuner
    /// with a run directory.
    pub fn find_lr<D: Dataset + Clone + 'static>(self, train: &D, range: LrRange) -> Result<LrCurve> {
        range.check()?;
        if self.run_dir.is_some() {
            let problem =
                "keeps a run, and a search of the learning rate is none; call find_lr on a tuner without run_dir";
            return Err(Error::invalid("run directory", problem));
        }
        let keeper = Keeper { dir: None, cancel: self.cancel.clone() };
        let mut session = self.start(Arc::new(train.clone()))?;
        let last = session.report().plan.phases.len();
        while session.next_phase()? {
            if session.phase() == Some(last) {
                return session.find_lr(range);
            }
            while session.next_epoch()? {
                while let Some(batch) = session.next_batch()? {
                    session.step(&batch)?;
                    if keeper.is_cancelled() {
                        return Err(Error::Cancelled {
                            what: "the training before the search",
                            steps: session.steps(),
                        });
                    }
                }
            }
        }
        Err(Error::invalid("learning rate search", "the plan trains no phase, so there is no rate to search"))
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
        let mut keeper = self.keeper()?;
        let (session, cancelled) = self.trained(Arc::clone(&train), &valid, &mut keeper)?;
        let first = session.finish()?;
        let fitted = match again.filter(|_| !cancelled) {
            Some(mut tuner) => {
                let stops = stops(&first.report);
                tuner.run_dir = tuner.run_dir.map(|folder| folder.join("refit"));
                let (session, mut keeper) = tuner.again(&first.report, &stops, Arc::new(Joined::of(train, valid)?))?;
                let validation = "that of the training before, and chose the number of steps".into();
                refit::or_first(refit::train(session, &first.report, &mut keeper), first, validation)?
            }
            None => first,
        };
        // Cancelled before the first validation, there is no best epoch.
        if let Some(dir) = keeper.dir.as_ref().filter(|_| !cancelled || fitted.report.best_epoch.is_some()) {
            dir.finish(&fitted)?;
        }
        Ok(fitted)
    }

    /// Opens the run directory, if there is one.
    fn keeper(&self) -> Result<Keeper> {
        if self.run_dir.is_some() && self.state.is_some() {
            let problem = "is resumed from, and so is the run directory; set one of the two";
            return Err(Error::invalid("run state", problem));
        }
        let dir = self.run_dir.as_ref().map(|path| RunDir::open(path, self.checkpoints)).transpose()?;
        Ok(Keeper { dir, cancel: self.cancel.clone() })
    }

    /// A session over `all` by the plan of a report, up to these steps, at the newest checkpoint of its own folder.
    pub(super) fn again(mut self, chosen: &Report, stops: &[Stop], all: Arc<dyn Dataset>) -> Result<(Session, Keeper)> {
        let mut plan = chosen.plan.clone();
        plan.phases.truncate(stops.len());
        (self.plan, self.strategy, self.advice, self.state) = (Some(plan), chosen.strategy, None, None);
        self.stops = Some(stops.to_vec());
        let keeper = self.keeper()?;
        Ok((self.resumed(all, &keeper)?, keeper))
    }

    /// A session at the newest checkpoint of the run directory, or at the start.
    fn resumed(mut self, train: Arc<dyn Dataset>, keeper: &Keeper) -> Result<Session> {
        if let Some(state) = keeper.latest(|event| self.listener.tell(event))? {
            if self.chooses() && self.advice.is_none() {
                // What was advised then.
                (self.plan, self.strategy) = (Some(state.report().plan.clone()), state.report().strategy);
            }
            self.state = Some(state);
        }
        let mut session = self.start(train)?;
        if keeper.dir.is_some() {
            session.keep_before();
        }
        Ok(session)
    }

    /// A session that has trained by the plan, with the weights of the best epoch, and whether it was cancelled; if so
    /// before there was one, with the weights as they are.
    pub(super) fn trained(
        self,
        train: Arc<dyn Dataset>,
        valid: &Arc<dyn Dataset>,
        keeper: &mut Keeper,
    ) -> Result<(Session, bool)> {
        let mut session = self.resumed(train, keeper)?;
        session.note_valid(valid, keeper.dir.is_some())?;
        let cancelled = match train_on(&mut session, valid, keeper) {
            Err(error) if session.survives(&error) => false,
            trained => trained?,
        };
        if cancelled {
            session.drop_epoch();
        }
        if !cancelled || session.best_epoch().is_some() {
            session.restore_best()?;
        }
        if cancelled {
            session.note_cancelled();
        }
        Ok((session, cancelled))
    }
}
