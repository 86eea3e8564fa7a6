//! Epochs: their batches, their validation, and the choice of the best one.

use super::{Session, no_phase};
use crate::data::Batch;
use crate::error::{Divergence, Error, Result};
use crate::metrics::Evaluation;
use crate::report::{Averaged, Report};
use crate::train::event::Event;
use crate::train::pending::Pending;
use crate::train::progress::Progress;
use crate::train::sampler::Sampler;

impl Session {
    /// Begins the next epoch of the phase, with a new random order of the samples; `false` when the phase is done,
    /// after its last epoch or when the plan's patience is exhausted. An epoch in progress is ended first, without a
    /// validation.
    ///
    /// After [`Session::resume`] the first call continues the epoch that the state was taken in.
    ///
    /// # Errors
    /// Before the first [`Session::next_phase`].
    pub fn next_epoch(&mut self) -> Result<bool> {
        self.continues.phase = false;
        let running = self.phase.as_ref().is_some_and(|phase| phase.epoch.is_some());
        if std::mem::take(&mut self.continues.epoch) && running {
            return Ok(true);
        }
        if self.phase.as_ref().and_then(|phase| phase.epoch.as_ref()).is_some_and(|epoch| epoch.sampler.taken() == 0) {
            return Err(Error::invalid("session", "the epoch in progress has had no batch; call next_batch first"));
        }
        self.close_epoch(None)?;
        if self.phase.is_none() {
            // The end of a phase leaves none in progress.
            return if self.counters.next_phase == 0 { Err(no_phase()) } else { Ok(false) };
        }
        self.begin_epoch(0, Progress::new())?;
        Ok(true)
    }

    /// Begins the epoch after `taken` of its samples.
    pub(super) fn begin_epoch(&mut self, taken: usize, progress: Progress) -> Result<()> {
        let epoch = self.counters.epochs;
        let (seed, batch_size) = (self.seed, self.plan.batch_size);
        let sampler = match &self.weights {
            None => Sampler::new(seed, epoch, self.dataset.len(), batch_size),
            Some(weights) => Sampler::weighted(seed, epoch, weights, batch_size),
        };
        let sampler = sampler.after(taken)?;
        let view = self.plan.views.map_or(epoch, |views| epoch % views.max(1));
        let phase = self.phase.as_mut().ok_or_else(no_phase)?;
        phase.begin(sampler, (view, self.plan.views), progress, &self.model.profile.device)
    }

    /// The next batch of the epoch in progress; `None` after its last. Nothing else happens: [`Session::next_epoch`]
    /// and [`Session::end_epoch`] end epochs.
    ///
    /// If the features of frozen blocks are cached, the batch holds those instead of images.
    ///
    /// # Errors
    /// If no epoch has begun, or a sample cannot be read.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        self.note_before()?;
        let epoch = self.counters.epochs;
        let batch = match &mut self.phase {
            Some(phase) => phase.next_batch(epoch)?,
            None if self.counters.next_phase == 0 => return Err(no_phase()),
            None => return Err(Error::invalid("session", "the phase has ended; call next_phase")),
        };
        batch.iter().for_each(|batch| self.note_samples(&batch.indices));
        Ok(batch)
    }

    /// Ends the epoch: notes its validation in the report, keeps its weights if they may turn out to be the best, and
    /// ends the phase after its last epoch or when the plan's patience is exhausted. Returns whether it is the best
    /// epoch so far.
    ///
    /// Among the epochs whose accuracy is within one standard error of the best (compared sample by sample), the one
    /// with the lowest loss is the best; an epoch that is not finite never is. By another metric
    /// ([`FineTuner::metric`](crate::FineTuner::metric)), the one with the best value is, and of equal ones that with
    /// the lowest loss. Patience counts the epochs of the phase since the best value of [`Plan::watch`](crate::Plan::watch).
    /// Averaged weights that were offered before ([`Session::offer_averages`]) take part by the same rule.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let valid = train.clone();
    /// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]);
    /// let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
    /// while session.next_phase()? {
    ///     while session.next_epoch()? {
    ///         while let Some(batch) = session.next_batch()? {
    ///             session.step(&batch)?; // or forward, any loss, and backward_step
    ///         }
    ///         let evaluation = session.evaluate(&valid)?;
    ///         session.end_epoch(&evaluation)?;
    ///     }
    /// }
    /// session.restore_best()?;
    /// let tuned = session.finish()?; // the best epoch's weights
    /// # let _ = tuned;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// If no epoch is in progress, or gradients wait for their step ([`Session::flush`]).
    pub fn end_epoch(&mut self, valid: &Evaluation) -> Result<bool> {
        if self.phase.as_ref().is_none_or(|phase| phase.epoch.is_none()) {
            return Err(Error::invalid("session", "no epoch is in progress; call end_epoch after its last batch"));
        }
        if self.phase.as_ref().and_then(|phase| phase.epoch.as_ref()).is_some_and(|epoch| epoch.sampler.taken() == 0) {
            return Err(Error::invalid("session", "the epoch has had no batch; call end_epoch after its last batch"));
        }
        if !self.pending.is_empty() {
            let problem = "gradients wait for further batches, and the evaluation is of the weights without them; call \
                           flush before the evaluation";
            return Err(Error::invalid("session", problem));
        }
        self.report.samples.valid = Some(valid.total);
        self.close_epoch(Some(valid))
    }

    /// Offers the moving averages of the weights ([`Plan::ema`](crate::Plan::ema)) with their evaluation, by
    /// [`Session::evaluate_averages`], to the choice of the best epoch; [`Session::end_epoch`] then looks at both.
    ///
    /// # Errors
    /// If no epoch is in progress, or there are no averages yet.
    pub fn offer_averages(&mut self, valid: &Evaluation) -> Result<()> {
        if self.phase.as_ref().is_none_or(|phase| phase.epoch.is_none()) {
            return Err(Error::invalid("session", "no epoch is in progress; call offer_averages before end_epoch"));
        }
        if self.averages.tensors.is_empty() {
            let problem = "has no averages; set Plan::ema, and make a step before offer_averages";
            return Err(Error::invalid("session", problem));
        }
        self.averages_valid = Some(valid.clone());
        Ok(())
    }

    /// Restores the weights of the best epoch among those passed to `end_epoch`, and ends the phase in progress. Call
    /// it before [`Session::finish`]; further training changes the weights again.
    ///
    /// # Errors
    /// If no epoch was validated, and [`Error::Diverged`] if the losses of all were NaN or infinite.
    pub fn restore_best(&mut self) -> Result<()> {
        // The phase's network was built over its frozen tensors, which may differ from those of the best epoch.
        self.end_phase()?;
        let Some(best) = self.best.winner() else {
            let Some(loss) = self.report.epochs.iter().rev().find_map(|epoch| epoch.valid_loss) else {
                let problem = "no epoch was validated; call end_epoch with an evaluation after each (offer_start for a \
                               fitted head)";
                return Err(Error::invalid("session", problem));
            };
            let step = self.counters.steps;
            return Err(Error::diverged(Divergence::of_loss("validation loss", step, loss, None)));
        };
        self.report.best_epoch = Some(best.number);
        self.report.averaged = best.averaged;
        self.report.thresholds = best.evaluation.best_thresholds();
        self.report.valid_top1 = Some(best.evaluation.top1());
        self.report.valid = Some(best.evaluation.summary());
        self.model.restore(&best.weights)
    }

    /// Puts the moving averages in place of the weights ([`Plan::ema`](crate::Plan::ema)), and ends the phase in progress:
    /// for a run without a validation that would choose. Call it before [`Session::finish`].
    ///
    /// # Errors
    /// If there are no averages.
    pub fn use_averages(&mut self) -> Result<()> {
        self.end_phase()?;
        if self.averages.tensors.is_empty() {
            let problem = "has no averages; set Plan::ema, and make a step before use_averages";
            return Err(Error::invalid("session", problem));
        }
        (self.report.averaged, self.report.thresholds) = (true, None);
        let averaged = self.model.snapshot_over(&self.averages)?;
        self.model.restore(&averaged)
    }

    /// Takes the thresholds of lists of labels from an earlier training.
    pub(in crate::train) fn take_thresholds(&mut self, of: &Report) {
        self.report.thresholds.clone_from(&of.thresholds);
    }

    /// Forgets the epoch in progress, without an event: a run that was cancelled goes on within it, and reports it then.
    pub(in crate::train) fn drop_epoch(&mut self) {
        if let Some(epoch) = self.phase.as_mut().and_then(|phase| phase.epoch.take()) {
            self.report.seconds.train += epoch.progress.seconds();
        }
        (self.pending, self.averages_valid, self.continues.epoch) = (Pending::default(), None, false);
    }

    /// Closes the epoch in progress, with its validation if there was one; leaves the phase after its last epoch, or
    /// when the patience is exhausted. Returns whether the epoch is the best so far.
    pub(super) fn close_epoch(&mut self, valid: Option<&Evaluation>) -> Result<bool> {
        self.continues.epoch = false;
        // Gradients that wait for the rest of an epoch that a loop has ended early.
        self.flush()?;
        let averaged = self.averages_valid.take();
        let Some(phase) = &mut self.phase else { return Ok(false) };
        let Some(epoch) = phase.epoch.take().filter(|epoch| epoch.sampler.taken() > 0) else { return Ok(false) };
        let mut report = epoch.progress.report(phase.state.index + 1, phase.state.epoch + 1, phase.lr(), valid);
        self.report.seconds.train += report.seconds;
        for problem in epoch.progress.problems(&self.model.head_names()) {
            let warning = format!("phase {} epoch {}: {problem}", phase.state.index + 1, phase.state.epoch + 1);
            // Once per phase, however many epochs it lasts.
            let known = |old: &String| {
                old.starts_with(&format!("phase {} ", phase.state.index + 1)) && old.contains(kind(&problem))
            };
            if !self.report.warnings.iter().any(known) {
                tracing::warn!("{warning}");
                self.listener.tell(&Event::Warning(&warning));
                self.report.warnings.push(warning);
            }
        }
        if let Some(valid) = valid {
            let number = self.report.epochs.len() + 1;
            report.valid_metric = Some(self.report.metric.value(valid));
            report.best = self.best.offer((number, false), valid, || self.model.snapshot())?;
            let watch = self.plan.watch;
            let mut watched = watch.value(valid);
            if let Some(averaged) = averaged {
                let metric = self.report.metric.value(&averaged);
                report.averaged = Some(Averaged { loss: averaged.loss, top1: averaged.top1(), metric: Some(metric) });
                let weights = || self.model.snapshot_over(&self.averages);
                report.best |= self.best.offer((number, true), &averaged, weights)?;
                let other = watch.value(&averaged);
                watched = if watch.compare(other, watched).is_gt() { other } else { watched };
            }
            if watched.is_nan() && valid.is_finite() && self.plan.watches() {
                return Err(watch.without_value("plan: watch"));
            }
            phase.state.patience.note(watched, watch);
            phase.state.plateau.note(watched, watch.higher_is_better(), &phase.phase.schedule);
        }
        let best = report.best;
        self.listener.tell(&Event::Epoch(&report));
        self.report.epochs.push(report);
        phase.state.epoch += 1;
        self.counters.epochs += 1;
        let exhausted = phase.state.patience.is_exhausted(self.plan.patience);
        if phase.state.epoch >= phase.phase.epochs || exhausted || phase.is_stopped() {
            self.leave_phase()?;
        }
        Ok(best)
    }
}

/// The beginning of a warning, without its figures.
fn kind(problem: &str) -> &str {
    problem.split(|c: char| c.is_ascii_digit()).next().unwrap_or(problem)
}
