//! Forward passes, losses and steps.

use super::{Session, no_phase};
use crate::data::Batch;
use crate::error::{Error, Result, nearest};
use crate::inference::Inference;
use crate::ops::{Gradient, Gradients, backward};
use crate::train::event::Event;
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
        let features = phase.forward(batch, self.model.profile.dtype)?;
        let forward = self.counters.forwards;
        self.counters.forwards += 1;
        self.model.logits(&features, self.seed, forward)
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

    /// The gradients of `loss`, clipped, and one step of the optimizer. Returns the loss.
    ///
    /// # Errors
    /// [`Error::Diverged`] for a loss that is not finite, [`Error::Audit`] if a gradient is not finite or, in the first
    /// step of a phase, a parameter was not reached or something frozen has changed. No step is
    /// made on error, except when a frozen tensor has changed. (A forward pass with batch statistics has updated the
    /// running ones already.)
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let value = loss.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        self.check_loss(value)?;
        self.apply(backward(loss, self.learners.ids())?, value)?;
        Ok(value)
    }

    /// One step of the optimizer with gradients by canonical name, those of [`Session::gradients`]: to inspect or
    /// change them before the step. `loss` is the loss for the report. Returns the norm of the gradients before
    /// clipping.
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
        self.apply(named, loss)
    }

    /// Forward, the plan's loss, backward and one step of the optimizer. Returns the loss.
    ///
    /// # Errors
    /// As [`Session::forward`] and [`Session::backward_step`].
    pub fn step(&mut self, batch: &Batch) -> Result<f64> {
        let _span = tracing::debug_span!("step", step = self.counters.steps + 1).entered();
        let logits = self.forward(batch)?;
        let loss = self.plan.loss.forward(&logits, &batch.targets)?;
        let (correct, of) = Inference::TASK.correct(&logits, &batch.targets)?;
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
        Err(Error::Diverged { what: "training loss", step: self.counters.steps + 1, loss })
    }

    /// Audits and applies gradients; their norm before clipping.
    fn apply(&mut self, gradients: Gradients, loss: f64) -> Result<f64> {
        let phase = self.phase.as_mut().ok_or_else(no_phase)?;
        if phase.state.audit_pending {
            for name in phase.audit.gradients(&self.learners, &gradients)? {
                if !self.report.zero_gradients.contains(&name) {
                    self.report.zero_gradients.push(name);
                }
            }
            phase.audit.copies(&phase.network)?;
        }
        let (factor, clip) = (phase.factor(), self.plan.clip);
        let not_finite = |names| phase.audit.not_finite(names);
        let norm = self.learners.step(&gradients, &phase.optimizer(), factor, clip, not_finite)?;
        drop(gradients);
        if phase.state.audit_pending {
            phase.audit.frozen(&self.model.slots, &phase.network)?;
            phase.state.audit_pending = false;
        }
        self.counters.steps += 1;
        // These are no longer the weights of an epoch that was restored.
        (self.report.best_epoch, self.report.valid_top1, self.report.valid) = (None, None, None);
        phase.state.steps += 1;
        let (lr, steps, epoch_number) = (phase.lr(), phase.per_epoch, phase.state.epoch + 1);
        if let Some(epoch) = &mut phase.epoch {
            let samples = epoch.progress.step(loss, norm);
            let (step, run_step) = (epoch.progress.steps(), self.counters.steps);
            let (epoch, gradient_norm) = (epoch_number, norm);
            self.listener.tell(&Event::Step { epoch, step, steps, loss, lr, gradient_norm, run_step, samples });
        }
        Ok(norm)
    }
}
