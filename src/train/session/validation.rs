//! What `fit` needs besides: validation from kept features, and the best weights.

#[allow(clippy::wildcard_imports)] // one type in three files
use super::*;

impl Session {
    /// Counts what the validation data left out.
    pub(in crate::train) fn also_skipped(&mut self, samples: usize) {
        self.report.skipped += samples;
    }

    /// The validation data's features at the phase's boundary, computed once per phase.
    pub(in crate::train) fn valid_cache(&mut self, valid: &Arc<dyn Dataset>) -> Result<Option<KeptFeatures>> {
        let Some(current) = &self.current else { return Ok(None) };
        let (network, boundary) = (current.network.clone(), (current.index, current.frozen_blocks));
        let cache = self.compute_cache(valid, &network, boundary, Purpose::Validation);
        if let Some(epoch) = self.current.as_mut().and_then(|current| current.running.as_mut()) {
            // The epoch has just been opened; this time is not its own.
            epoch.progress = Progress::new();
        }
        cache
    }

    /// As [`Session::evaluate`], from kept features where there are some.
    pub(in crate::train) fn validate(
        &mut self,
        valid: &Arc<dyn Dataset>,
        cache: Option<&KeptFeatures>,
    ) -> Result<Evaluation> {
        let begun = Instant::now();
        let inference = self.inference()?;
        let evaluation = match (cache, &self.current) {
            (Some(cache), Some(current)) => {
                let mut evaluation = Evaluation::new(self.labels.len());
                for indices in cache.in_order(crate::predict::BATCH) {
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
        self.report.seconds.valid += begun.elapsed().as_secs_f64();
        Ok(evaluation)
    }

    /// The phase in progress, from 0.
    pub(in crate::train) fn phase(&self) -> Option<usize> {
        self.current.as_ref().map(|c| c.index)
    }

    /// Closes the epoch with its validation; moves to the next phase after the last.
    pub(in crate::train) fn close_epoch(&mut self, valid: Option<&Evaluation>) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let Some(epoch) = current.running.take() else { return Ok(()) };
        let factor = current.phase.schedule.factor(current.step.saturating_sub(1), current.steps);
        let lr = current.phase.optimizer.lr * factor;
        let report = epoch.progress.report(current.index + 1, current.epoch + 1, lr, valid);
        self.report.seconds.train += report.seconds;
        emit(&mut self.setup.listener, &Event::Epoch(&report));
        self.report.epochs.push(report);
        current.epoch += 1;
        self.epochs_done += 1;
        if current.epoch >= current.phase.epochs {
            self.leave_phase()?;
        }
        Ok(())
    }

    /// Ends the phase before its time.
    pub(in crate::train) fn end_phase(&mut self) -> Result<()> {
        self.leave_phase()
    }

    pub(in crate::train) fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        snapshot(&self.slots)
    }

    /// Puts the weights of epoch `number` (from 1, over all phases) back.
    pub(in crate::train) fn restore(
        &mut self,
        from: &BTreeMap<String, Tensor>,
        number: usize,
        top1: f64,
    ) -> Result<()> {
        self.report.best_epoch = Some(number);
        self.report.valid_top1 = Some(top1);
        restore(&mut self.slots, from)
    }

    pub(in crate::train) fn plan(&self) -> &Plan {
        &self.setup.plan
    }
}
