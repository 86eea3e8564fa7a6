//! Validation, from cached features where there are some; the end of epochs and phases; the best weights.

#[allow(clippy::wildcard_imports)] // one type in several files
use super::*;

impl Session {
    /// Runs the network as it is over labelled data, frozen and in evaluation mode.
    ///
    /// Features of frozen blocks are cached as those of the training data are, if the samples can be told apart by
    /// [`Dataset::fingerprint`].
    ///
    /// # Errors
    /// If the data holds no samples, its classes are not those of the training data, in their order, it has lists of
    /// labels, or a sample cannot be read.
    pub fn evaluate<D: Dataset + Clone + 'static>(&mut self, data: &D) -> Result<Evaluation> {
        Inference::check(&self.labels, data)?;
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let known = !data.is_empty() && data.fingerprint(0).is_some();
        let cache = if known { self.valid_cache(&data)? } else { None };
        self.validate(&data, cache.as_ref())
    }

    /// Ends the epoch, after its last batch: notes its validation in the report, keeps its weights if they may turn
    /// out to be the best, and ends the phase when the plan's patience is exhausted. Returns whether it is the best
    /// epoch so far.
    ///
    /// Among the epochs whose accuracy is within one standard error of the best (compared sample by sample), the one
    /// with the lowest loss is the best; what is not finite never is. Patience counts the epochs since the lowest loss
    /// of the phase. A custom loop calls it where [`Session::epoch_done`] is true:
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
    /// while let Some(batch) = session.next_batch()? {
    ///     session.step(&batch)?; // or forward, any loss, and backward_step
    ///     if session.epoch_done() {
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
    /// If no epoch is in progress.
    pub fn end_epoch(&mut self, valid: &Evaluation) -> Result<bool> {
        if self.current.as_ref().is_none_or(|current| current.running.is_none()) {
            return Err(Error::invalid("session", "no epoch is in progress; call end_epoch after its last batch"));
        }
        self.report.samples.valid = Some(valid.total);
        self.close_epoch(Some(valid))
    }

    /// Ends the phase before its time; the next batch is the next phase's. Without a phase in progress nothing happens.
    ///
    /// # Errors
    /// [`Error::Audit`] if something frozen has changed.
    pub fn end_phase(&mut self) -> Result<()> {
        self.close_epoch(None)?;
        self.leave_phase()
    }

    /// Puts the weights of the best epoch back, of those that [`Session::end_epoch`] was told of, and ends the phase in
    /// progress. Call it before [`Session::finish`]; training on from there changes the weights again.
    ///
    /// # Errors
    /// If no epoch was validated, and [`Error::Diverged`] if none had finite numbers.
    pub fn restore_best(&mut self) -> Result<()> {
        // The network of the phase was built over its frozen tensors, which may be others than those of the best epoch.
        self.end_phase()?;
        let Some(best) = self.best.winner() else {
            let Some(loss) = self.report.epochs.iter().rev().find_map(|epoch| epoch.valid_loss) else {
                let problem = "no epoch was validated; call end_epoch with an evaluation after each";
                return Err(Error::invalid("session", problem));
            };
            return Err(Error::Diverged { what: "validation loss", step: self.steps_done, loss });
        };
        self.report.best_epoch = Some(best.number);
        self.report.valid_top1 = Some(best.evaluation.top1());
        self.report.valid = Some(best.evaluation.summary());
        restore(&mut self.slots, &best.weights)
    }

    /// Whether a phase has just begun: its first batch was handed out and no step made.
    pub(in crate::train) fn entered_phase(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.batches == 1 && current.steps == 0)
    }

    /// Whether the training has diverged after an epoch worth keeping; the report says so then.
    pub(in crate::train) fn survives(&mut self, error: &Error) -> bool {
        let diverged = match error {
            Error::Diverged { .. } | Error::NotFinite { .. } => true,
            Error::Audit { unreached, not_finite, changed, .. } => {
                unreached.is_empty() && changed.is_empty() && !not_finite.is_empty()
            }
            _ => false,
        };
        if !diverged || self.best.winner().is_none() {
            return false;
        }
        let stopped = format!("stopped in phase {}: {error}", self.phase().unwrap_or(self.next_phase));
        tracing::warn!("{stopped}");
        self.report.stopped = Some(stopped);
        true
    }

    /// Notes how large the validation data is, and what it left out.
    pub(in crate::train) fn note_valid(&mut self, valid: &dyn Dataset) {
        self.report.samples.valid = Some(valid.len());
        self.report.skipped += valid.skipped();
    }

    /// The validation data's features at the phase's boundary.
    pub(in crate::train) fn valid_cache(&mut self, valid: &Arc<dyn Dataset>) -> Result<Option<KeptFeatures>> {
        let Some(current) = &self.current else { return Ok(None) };
        let (network, boundary) = (current.network.clone(), (current.index, current.frozen_blocks));
        let begun = Instant::now();
        let cache = self.compute_cache(valid, &network, boundary, Purpose::Validation);
        if let Some(epoch) = self.current.as_mut().and_then(|current| current.running.as_mut()) {
            epoch.progress.exclude(begun.elapsed());
        }
        cache
    }

    /// As [`Session::evaluate`], from cached features where there are some.
    pub(in crate::train) fn validate(
        &mut self,
        valid: &Arc<dyn Dataset>,
        cache: Option<&KeptFeatures>,
    ) -> Result<Evaluation> {
        let begun = Instant::now();
        let inference = self.inference()?;
        let evaluation = match (cache, &self.current) {
            (Some(cache), Some(current)) => {
                let mut evaluation = Evaluation::new();
                for indices in cache.in_order(crate::inference::BATCH) {
                    let device = &self.setup.backbone.inner.device;
                    let batch = cache.batch(&indices, 0, self.labels.len(), device)?;
                    let Some(features) = &batch.features else { continue };
                    let logits = inference.logits_from(&features.tensor, current.frozen_blocks)?;
                    Inference::judge(&logits, &batch.targets, &mut evaluation)?;
                }
                evaluation.close()
            }
            _ => inference.evaluate(valid, self.setup.workers)?,
        };
        let took = begun.elapsed();
        self.report.seconds.valid += took.as_secs_f64();
        if let Some(epoch) = self.current.as_mut().and_then(|current| current.running.as_mut()) {
            epoch.progress.exclude(took);
        }
        Ok(evaluation)
    }

    /// Closes the epoch, with its validation if there was one; leaves the phase after its last epoch, or when the
    /// patience is exhausted. Returns whether the epoch is the best so far.
    pub(in crate::train) fn close_epoch(&mut self, valid: Option<&Evaluation>) -> Result<bool> {
        let Some(current) = &mut self.current else { return Ok(false) };
        let Some(epoch) = current.running.take().filter(|epoch| epoch.taken > 0) else { return Ok(false) };
        let lr = current.phase.optimizer.lr * current.factor();
        let mut report = epoch.progress.report(current.index + 1, current.epoch + 1, lr, valid);
        self.report.seconds.train += report.seconds;
        if let Some(valid) = valid {
            let number = self.report.epochs.len() + 1;
            report.best = self.best.offer(number, valid, || snapshot(&self.slots))?;
            let lower = valid.loss.is_finite() && current.lowest.is_none_or(|lowest| valid.loss < lowest);
            current.since_lowest = if lower { 0 } else { current.since_lowest + 1 };
            current.lowest = if lower { Some(valid.loss) } else { current.lowest };
        }
        let best = report.best;
        emit(&mut self.setup.listener, &Event::Epoch(&report));
        self.report.epochs.push(report);
        current.epoch += 1;
        self.epochs_done += 1;
        let exhausted = self.setup.plan.patience.is_some_and(|patience| current.since_lowest >= patience);
        if current.epoch >= current.phase.epochs || exhausted {
            self.leave_phase()?;
        }
        Ok(best)
    }
}
