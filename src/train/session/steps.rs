//! Forward passes, losses and steps.

use super::{Session, no_phase};
use crate::data::{Batch, Targets};
use crate::error::{Divergence, Error, Result, nearest};
use crate::nn::{DropPath, with_drop_path};
use crate::ops::{Gradient, Gradients, backward};
use crate::train::event::Event;
use crate::train::learner::Stepped;
use crate::train::phase::RunningPhase;
use candle_core::{DType, Device, Tensor};

impl Session {
    /// Logits (N, classes), a Candle tensor with gradients tracked, from which any loss can be computed. Each call has
    /// its own dropout mask.
    ///
    /// # Errors
    /// Before the first phase, for images that the network does not accept, and for a batch with cached features of
    /// another phase.
    pub fn forward(&mut self, batch: &Batch) -> Result<Tensor> {
        let phase = self.phase.as_ref().ok_or_else(no_phase)?;
        let forward = self.counters.forwards;
        let probability = self.plan.drop_path;
        let run = || phase.forward(batch, self.model.profile.dtype);
        let features = if probability > 0.0 && phase.frozen_blocks < phase.network.blocks().len() {
            let settings = DropPath { probability, seed: self.seed, forward, first: phase.frozen_blocks };
            with_drop_path(settings, run).0?
        } else {
            run()?
        };
        self.counters.forwards += 1;
        self.model.logits(&features, self.seed, forward)
    }

    /// The plan's loss over logits (N, classes) and the targets of a batch, as a scalar tensor with a graph. Unlike
    /// [`Loss::forward`](crate::Loss::forward) it knows the training data, by which class weights may be balanced.
    ///
    /// # Errors
    /// As [`Loss::forward`](crate::Loss::forward).
    pub fn loss(&self, logits: &Tensor, targets: &Targets) -> Result<Tensor> {
        self.loss.forward(logits, targets)
    }

    /// Logits (N, classes) in evaluation mode, without a graph: running statistics, no dropout, nothing changes.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let phase = self.phase.as_ref().ok_or_else(no_phase)?;
        let inference = self.model.inference()?;
        match batch.features_of(phase.made_by)? {
            Some(features) => inference.logits_from(features, phase.frozen_blocks),
            None => inference.logits(batch.images()?),
        }
    }

    /// The gradients of `loss`, clipped, and one step of the optimizer. Returns the loss. With
    /// [`Plan::grad_accum`](crate::Plan::grad_accum) the step is made with the mean gradients of several calls, weighted
    /// by the samples handed out before each, and the last one of an epoch always makes it.
    ///
    /// # Errors
    /// [`Error::Diverged`] for a loss or gradients that are not finite, [`Error::Audit`] if in the first step of a phase a
    /// parameter was not reached or something frozen has changed. No step is made on error, except when a frozen tensor
    /// has changed. (A forward pass with batch statistics has updated the
    /// running ones already.)
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let value = loss.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        self.check_loss(value)?;
        let gradients = backward(loss, self.learners.ids())?;
        self.accumulate(gradients, value)?;
        Ok(value)
    }

    /// One step of the optimizer with gradients by canonical name, those of [`Session::gradients`]: to inspect or
    /// change them before the step. `loss` is the loss for the report. Returns the norm of the gradients before
    /// clipping, or 0 where the step waits for further gradients, as in [`Session::backward_step`].
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Loss, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 12288.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((4, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]);
    /// # let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
    /// # session.next_phase()?;
    /// # session.next_epoch()?;
    /// # let batch = session.next_batch()?.unwrap();
    /// let logits = session.forward(&batch)?;
    /// let loss = Loss::cross_entropy().forward(&logits, &batch.targets)?;
    /// let mut gradients = session.gradients(&loss.backward()?)?;
    /// for (name, gradient) in &mut gradients {
    ///     println!("{name}: {}", gradient.sqr()?.sum_all()?);
    ///     *gradient = gradient.clamp(-1f32, 1f32)?;
    /// }
    /// session.step_with(gradients, loss.to_scalar::<f32>()?.into())?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::backward_step`], and for a gradient of another name or shape than the parameters have.
    pub fn step_with(&mut self, gradients: Vec<(String, Tensor)>, loss: f64) -> Result<f64> {
        self.check_loss(loss)?;
        let mut named = Gradients::new();
        for (name, gradient) in gradients {
            let Some(learner) = self.learners.iter().find(|learner| learner.name == name) else {
                let known = nearest(&name, self.learners.iter().map(|learner| learner.name.as_str()), 5);
                return Err(Error::UnknownBlock { name, known });
            };
            let shape = learner.variable.dims();
            if gradient.dims() != shape {
                let problem = format!("has shape {:?}, but the parameter {shape:?}", gradient.dims());
                return Err(Error::invalid(format!("gradient of {name}"), problem));
            }
            if named.contains_key(&name) {
                return Err(Error::invalid(format!("gradient of {name}"), "is given twice"));
            }
            named.insert(name, Gradient::Tensor(gradient.detach()));
        }
        self.accumulate(named, loss)
    }

    /// Forward, the plan's loss, backward and one step of the optimizer. Returns the loss.
    ///
    /// # Errors
    /// As [`Session::forward`] and [`Session::backward_step`].
    pub fn step(&mut self, batch: &Batch) -> Result<f64> {
        let _span = tracing::debug_span!("step", step = self.counters.steps + 1).entered();
        self.whole_step(batch).map_err(|error| out_of_memory(error, batch.len()))
    }

    fn whole_step(&mut self, batch: &Batch) -> Result<f64> {
        let logits = self.forward(batch)?;
        let loss = self.loss.forward(&logits, &batch.targets)?;
        let (correct, of) = self.model.task.correct(&logits, &batch.targets)?;
        let value = self.backward_step(&loss)?;
        if let Some(epoch) = self.phase.as_mut().and_then(|phase| phase.epoch.as_mut()) {
            epoch.progress.predict(correct, of);
        }
        Ok(value)
    }

    fn check_loss(&self, loss: f64) -> Result<()> {
        if loss.is_finite() {
            return Ok(());
        }
        let lr = self.phase.as_ref().map(RunningPhase::lr);
        Err(Error::diverged(Divergence::of_loss("training loss", self.counters.steps + 1, loss, lr)))
    }

    /// Adds gradients to those that wait, and makes the step if it is due. The norm of its gradients, or 0.
    fn accumulate(&mut self, gradients: Gradients, loss: f64) -> Result<f64> {
        let phase = self.phase.as_mut().ok_or_else(no_phase)?;
        if self.plan.grad_accum == 1 {
            let samples = phase.epoch.as_mut().map_or(1, |epoch| epoch.progress.gradients(loss));
            return self.apply(gradients, loss, samples);
        }
        // What is not finite would spoil the gradients that wait.
        let names = self.learners.not_finite(&gradients)?;
        if !names.is_empty() {
            return Err(diverged(names, self.counters.steps + 1, loss, phase.lr()));
        }
        let samples = phase.epoch.as_mut().map_or(1, |epoch| epoch.progress.gradients(loss));
        self.pending.add(gradients, samples, loss)?;
        let last = phase.epoch.as_ref().is_some_and(|epoch| epoch.sampler.is_done()) || phase.is_stopped();
        if last || self.pending.sums.batches >= self.plan.grad_accum { self.flush() } else { Ok(0.0) }
    }

    /// Makes the step with the gradients that wait for further batches ([`Plan::grad_accum`](crate::Plan::grad_accum)), if
    /// there are any. The last batch of an epoch does it by itself; a loop that ends an epoch early calls it before the
    /// evaluation. Returns the norm of the gradients, or 0 without any.
    ///
    /// # Errors
    /// As [`Session::backward_step`].
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(2).grad_accum(3);
    /// # let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
    /// # session.next_phase()?;
    /// # session.next_epoch()?;
    /// let batch = session.next_batch()?.unwrap();
    /// session.step(&batch)?; // the first of three batches
    /// session.flush()?; // and no more of them
    /// assert_eq!(session.flush()?, 0.0);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn flush(&mut self) -> Result<f64> {
        if self.pending.is_empty() {
            return Ok(0.0);
        }
        let samples = self.pending.sums.samples;
        let (gradients, loss) = self.pending.take()?;
        self.apply(gradients, loss, samples)
    }

    /// Audits and applies gradients, of the mean loss over some samples; their norm before clipping.
    fn apply(&mut self, mut gradients: Gradients, loss: f64, samples: usize) -> Result<f64> {
        let phase = self.phase.as_mut().ok_or_else(no_phase)?;
        if phase.state.audit_pending {
            for name in phase.audit.gradients(&self.learners, &gradients)? {
                if !self.report.zero_gradients.contains(&name) {
                    self.report.zero_gradients.push(name);
                }
            }
            phase.audit.copies(&phase.network)?;
        }
        if let Some(anchors) = &self.anchors {
            gradients = anchors.pull(gradients, &self.learners, self.plan.l2_sp)?;
        }
        if let Some(most) = self.plan.clip_value {
            // A cut would hide what is infinite.
            let names = self.learners.not_finite(&gradients)?;
            if !names.is_empty() {
                return Err(diverged(names, self.counters.steps + 1, loss, phase.lr()));
            }
            let cut = |(name, gradient): (String, Gradient)| Ok((name, gradient.clamped(most)?));
            gradients = gradients.into_iter().map(cut).collect::<Result<_>>()?;
        }
        let (factor, clip) = (phase.factor(), self.plan.clip);
        let step = self.counters.steps + 1;
        let not_finite = |names| diverged(names, step, loss, phase.lr());
        let Stepped { norm, silent } = self.learners.step(&gradients, &phase.optimizer(), factor, clip, not_finite)?;
        drop(gradients);
        if phase.state.audit_pending {
            phase.audit.frozen(&self.model.slots, &phase.network)?;
            phase.state.audit_pending = false;
        }
        self.counters.steps += 1;
        self.before = None;
        if let Some(decay) = self.plan.ema {
            self.averages.update(&self.model.slots, decay, self.counters.steps)?;
        }
        // These are no longer the weights of an epoch that was restored.
        (self.report.best_epoch, self.report.valid_top1, self.report.valid) = (None, None, None);
        (self.report.averaged, self.report.thresholds) = (false, None);
        phase.state.steps += 1;
        let (lr, steps, epoch_number) =
            (phase.lr(), phase.steps_per_epoch(self.plan.grad_accum), phase.state.epoch + 1);
        if let Some(epoch) = &mut phase.epoch {
            epoch.progress.step(norm, silent);
            let (step, run_step) = (epoch.progress.steps(), self.counters.steps);
            let (epoch, gradient_norm) = (epoch_number, norm);
            self.listener.tell(&Event::Step { epoch, step, steps, loss, lr, gradient_norm, run_step, samples });
        }
        Ok(norm)
    }
}

/// The error for gradients of these parameters.
fn diverged(tensors: Vec<String>, step: usize, loss: f64, lr: f64) -> Error {
    let divergence = Divergence::of_loss("gradients", step, loss, Some(lr));
    Error::diverged(Divergence { tensors, ..divergence })
}

/// An error of a device that has no memory left, with the remedy; other errors as they are.
fn out_of_memory(error: Error, samples: usize) -> Error {
    let Error::Candle(cause) = &error else { return error };
    let text = cause.to_string().to_lowercase();
    if !["out of memory", "out_of_memory", "failed to allocate"].iter().any(|sign| text.contains(sign)) {
        return error;
    }
    let half = (samples / 2).max(1);
    let problem = format!(
        "a step with {samples} samples does not fit the device's memory ({cause}); use a batch size of {half} with \
         grad_accum 2, smaller images, or freeze more blocks"
    );
    Error::invalid("plan: batch_size", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_is_told_with_the_remedy() {
        let full =
            || Error::from(candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into()));
        let text = out_of_memory(full(), 64).to_string();
        assert!(text.contains("batch size of 32") && text.contains("64 samples"), "{text}");
        let other = out_of_memory(Error::from(candle_core::Error::Msg("shape mismatch".into())), 64);
        assert!(matches!(other, Error::Candle(_)));
    }
}
