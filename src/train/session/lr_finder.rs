//! Searches the learning rate of a phase.

use super::{Session, no_phase};
use crate::error::{Error, Result};
use crate::train::lr_curve::{LrCurve, LrRange};
use crate::train::progress::Progress;

impl Session {
    /// Trains the phase in progress with a rate that rises from step to step, notes the losses, and goes back to where
    /// it was: weights, optimizer, position and report are unchanged. The same seed gives the same curve.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// use candle_finetune::LrRange;
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(4);
    /// let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
    /// session.next_phase()?;
    /// let curve = session.find_lr(LrRange::default().steps(20))?;
    /// println!("{curve}");
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// Before the first phase, for a range that does not rise, and those of [`Session::step`], but for a loss or gradient
    /// that is not finite: that ends the search.
    pub fn find_lr(&mut self, range: LrRange) -> Result<LrCurve> {
        range.check()?;
        if self.phase.is_none() {
            return Err(no_phase());
        }
        let state = self.state()?;
        let (listener, continues) = (std::mem::take(&mut self.listener), self.continues);
        let curve = self.rising(&range);
        let resumed = self.resume(&state);
        (self.listener, self.continues) = (listener, continues);
        resumed?;
        curve
    }

    fn rising(&mut self, range: &LrRange) -> Result<LrCurve> {
        let mut curve = LrCurve::new();
        for step in 0..range.steps {
            let lr = range.rate(step);
            match self.step_at(lr) {
                Ok(loss) if curve.add(lr, loss) => break,
                Ok(_) => {}
                Err(Error::Diverged(_) | Error::NotFinite { .. }) if step > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(curve.suggested(range.steps))
    }

    /// A step at this rate, of as many batches as the plan says; the mean of their losses.
    fn step_at(&mut self, lr: f64) -> Result<f64> {
        let (before, mut losses) = (self.counters.steps, vec![]);
        while self.counters.steps == before {
            let batch = loop {
                if let Some(phase) = &mut self.phase {
                    phase.searched = Some(lr);
                    if phase.epoch.is_some()
                        && let Some(batch) = phase.next_batch(self.counters.epochs)?
                    {
                        break batch;
                    }
                    if phase.epoch.take().is_some() {
                        self.counters.epochs += 1;
                    }
                }
                self.begin_epoch(0, Progress::new())?;
            };
            losses.push((self.step(&batch)?, batch.len() as f64));
        }
        if let [(loss, _)] = losses[..] {
            return Ok(loss);
        }
        let samples: f64 = losses.iter().map(|(_, samples)| samples).sum();
        Ok(losses.into_iter().map(|(loss, samples)| loss * samples).sum::<f64>() / samples)
    }
}

#[cfg(test)]
mod tests {
    use crate::train::lr_curve::LrRange;
    use crate::train::waves::waves;
    use crate::{Backbone, BatchNormMode, FineTuner, FreezePolicy, Head, Optimizer, Phase, Plan};
    use candle_core::{Device, Tensor};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    fn bits(tensors: &BTreeMap<String, Tensor>) -> Vec<u64> {
        tensors.values().map(|tensor| crate::nn::checksum(tensor).unwrap()).collect()
    }

    #[test]
    fn a_search_leaves_the_run_as_it_was() {
        let data = waves(24, 2);
        let head = Phase::new(1, Optimizer::adamw(1e-2)).freeze(FreezePolicy::Backbone);
        let rest = Phase::new(1, Optimizer::adamw(1e-3)).batch_norm(BatchNormMode::Train);
        let plan = Plan::new(vec![head, rest]).batch_size(5);
        let events = Arc::new(Mutex::new(0));
        let heard = Arc::clone(&events);
        let tuner = FineTuner::new(Backbone::embedded(&Device::Cpu).unwrap()).plan(plan);
        let tuner = tuner.head(Head::linear().dropout(0.2)).on_event(move |_| *heard.lock().unwrap() += 1);
        let train = |search: bool| {
            let mut session = tuner.clone().session(&data).unwrap();
            let mut curves = vec![];
            while session.next_phase().unwrap() {
                while session.next_epoch().unwrap() {
                    while let Some(batch) = session.next_batch().unwrap() {
                        session.step(&batch).unwrap();
                        // Within an epoch, too.
                        if search && session.report().epochs.len() == 1 && curves.len() < 2 {
                            let before = *events.lock().unwrap();
                            curves.push(session.find_lr(LrRange::default().steps(30)).unwrap());
                            assert_eq!(*events.lock().unwrap(), before, "nothing is told of a search");
                        }
                    }
                }
            }
            let mut report = session.report().without_measurements();
            report.cached_mb = 0.0;
            (curves, bits(&session.tensors().unwrap()), report.epochs)
        };
        let (curves, searched, epochs) = train(true);
        let (_, plain, others) = train(false);
        assert!(searched == plain);
        assert_eq!(epochs, others);
        assert!(curves[0].points.len() >= 10 && curves[0] != curves[1]);
        assert_eq!(train(true).0, curves, "the same seed gives the same curves");
        // The rates are those of the range; a large one makes the loss rise or end the search.
        assert!((curves[0].points[0].lr - 1e-7).abs() < 1e-20);
        let error = tuner.clone().session(&data).unwrap().find_lr(LrRange::default()).unwrap_err().to_string();
        assert!(error.contains("no phase has begun"), "{error}");
        // One search in each phase: the next call of next_phase is the next phase.
        let mut session = tuner.clone().session(&data).unwrap();
        let mut phases = 0;
        while session.next_phase().unwrap() {
            session.find_lr(LrRange::default().steps(20)).unwrap();
            phases += 1;
        }
        assert_eq!((phases, session.report().epochs.len()), (2, 0));
        // The tuner's own search is that of the last phase, after those before.
        let of_tuner = tuner.clone().find_lr(&data, LrRange::default().steps(30)).unwrap();
        assert!(of_tuner.points.len() >= 10);
        assert!(tuner.plan(Plan::new(vec![])).find_lr(&data, LrRange::default()).is_err());
    }
}
