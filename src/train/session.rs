//! The one place that trains.

mod finish;
mod phases;
mod start;
mod steps;
mod validation;

use super::audit::Audit;
use super::best::Best;
use super::event::Event;
use super::fine_tuner::Fitted;
use super::progress::Progress;
use super::report::{ParameterCounts, Report, SampleCounts, Timings, peak_rss_mb};
use super::store::{assign, count, groups, restore, snapshot, variable};
use super::{feature_cache::FeatureCache, features::KeptFeatures};
use crate::backbone::{Backbone, Network, random_tensors};
use crate::data::{Augment, Batch, Batches, Dataset, Loader, Transform, batch_count, batch_end};
use crate::error::{Error, Result};
use crate::freeze::Role;
use crate::head::Head;
use crate::metrics::Evaluation;
use crate::ops::{Gradients, backward, gradients_of};
use crate::optim::{Group, OptimizerState, global_norm};
use crate::params::{Declared, Slot, Slots, parameter_ids};
use crate::plan::{Init, Phase, Plan};
use crate::predict::{Inference, Predictor};
use crate::rng::Seed;
use crate::strategy::Strategy;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use phases::Purpose;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use steps::{start_epoch, step};

/// What a session is started with.
pub(super) struct Setup {
    pub backbone: Backbone,
    pub head: Head,
    pub plan: Plan,
    pub strategy: Option<Strategy>,
    pub overrides: Vec<String>,
    pub seed: u64,
    pub workers: Option<usize>,
    pub cache: FeatureCache,
    pub audit: bool,
    pub listener: Option<Listener>,
}

/// Hears the events of a run.
pub(super) type Listener = Box<dyn FnMut(&Event<'_>) + Send>;

/// A run in progress: its own copy of what learns, the optimizer, and the position in the plan.
///
/// [`FineTuner::fit`](crate::FineTuner::fit) is a client of this; a custom loop is as short:
///
/// ```
/// # use candle_finetune::{Arch, Backbone, FineTuner, Loss, Strategy, TensorDataset};
/// # use candle_finetune::candle_core::{Device, Tensor};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let mut plan = Strategy::LargeSimilar.plan(&backbone, 8);
/// # plan.phases.iter_mut().for_each(|p| p.epochs = 1);
/// let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
/// while let Some(batch) = session.next_batch()? {
///     let logits = session.forward(&batch)?; // a Candle tensor with a graph
///     let loss = Loss::cross_entropy().forward(&logits, &batch.targets)?; // or any loss made of Candle's operations
///     session.backward_step(&loss)?;
/// }
/// let tuned = session.finish()?;
/// # let _ = tuned;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub struct Session {
    setup: Setup,
    dataset: Arc<dyn Dataset>,
    labels: Vec<String>,
    loader: Loader,
    slots: Slots,
    declared: Vec<Declared>,
    optimizer: OptimizerState,
    current: Option<Current>,
    /// The phase that comes next, from 0.
    next_phase: usize,
    epochs_done: usize,
    steps_done: usize,
    /// Forward passes in training: each has a dropout mask of its own.
    forwards: u64,
    audit_pending: bool,
    best: Best,
    report: Report,
    started: Instant,
}

/// The phase in progress.
struct Current {
    index: usize,
    phase: Phase,
    network: Arc<Network>,
    frozen_blocks: usize,
    groups: BTreeMap<String, Group>,
    cache: Option<KeptFeatures>,
    audit: Audit,
    epoch: usize,
    /// Batches handed out. The schedule follows these, however many steps a loop makes of them.
    batches: usize,
    /// Batches of the whole phase.
    all_batches: usize,
    /// Steps made.
    steps: usize,
    /// The lowest validation loss of the phase, and how many epochs ago it was.
    lowest: Option<f64>,
    since_lowest: usize,
    running: Option<Epoch>,
}

impl Current {
    /// The factor of the schedule on the learning rate, for the batch handed out last.
    fn factor(&self) -> f64 {
        self.phase.schedule.factor(self.batches.saturating_sub(1), self.all_batches)
    }
}

/// The epoch in progress.
struct Epoch {
    order: Vec<usize>,
    /// Samples handed out.
    taken: usize,
    batches: Option<Batches>,
    progress: Progress,
}

impl Session {
    /// The next batch of the plan; `None` when the plan is done. Moves on to the next epoch and phase by itself.
    ///
    /// Where the features of frozen blocks are kept, the batch carries those, and its `images` hold no pixels.
    ///
    /// # Errors
    /// If a sample cannot be read, or a phase's audit fails.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        loop {
            if self.current.is_none() && !self.enter_phase()? {
                return Ok(None);
            }
            if self.epoch_done() {
                self.close_epoch(None)?;
                continue;
            }
            let Some(current) = &mut self.current else { continue };
            if current.running.is_none() {
                let epoch = start_epoch(&self.loader, current, &self.setup, self.dataset.len(), self.epochs_done)?;
                current.running = Some(epoch);
            }
            let Some(epoch) = &mut current.running else { continue };
            let to = batch_end(epoch.taken, epoch.order.len(), self.setup.plan.batch_size);
            let indices = &epoch.order[epoch.taken..to];
            let batch = match (&current.cache, &mut epoch.batches) {
                (Some(cache), _) => {
                    let device = &self.setup.backbone.inner.device;
                    cache.batch(indices, self.epochs_done, self.labels.len(), device)?
                }
                (None, Some(batches)) => batches.next().ok_or_else(|| Error::invalid("loader", "ended early"))??,
                (None, None) => return Ok(None),
            };
            epoch.taken = to;
            epoch.progress.hand_out(batch.len());
            current.batches += 1;
            return Ok(Some(batch));
        }
    }

    /// Logits (N, classes) with a graph: a Candle tensor from which any loss can be computed. Each call has dropout
    /// masks of its own.
    ///
    /// # Errors
    /// Before the first batch, for images that the network cannot take, and for a batch with cached features of another
    /// phase.
    pub fn forward(&mut self, batch: &Batch) -> Result<Tensor> {
        let current = self.current.as_ref().ok_or_else(no_phase)?;
        let features = match batch.features_of(current.index)? {
            Some(features) => current.network.suffix(features, current.frozen_blocks)?,
            None => current.network.features(&batch.images.to_dtype(self.setup.backbone.inner.dtype)?)?,
        };
        let random = Some((Seed(self.setup.seed), self.forwards));
        self.forwards += 1;
        self.setup.head.forward(&features, &self.slots, self.setup.backbone.arch(), random)
    }

    /// Logits (N, classes) in evaluation mode, without a graph: running statistics, no dropout, nothing changes.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn logits(&self, batch: &Batch) -> Result<Tensor> {
        let current = self.current.as_ref().ok_or_else(no_phase)?;
        let inference = self.inference()?;
        match batch.features_of(current.index)? {
            Some(features) => inference.logits_from(features, current.frozen_blocks),
            None => inference.logits(&batch.images),
        }
    }

    /// The gradients of `loss`, clipped, and one step of the optimizer. Returns the loss.
    ///
    /// # Errors
    /// [`Error::Diverged`] for a loss that is not finite, [`Error::Audit`] if a gradient is not finite or, in the first
    /// step of a phase, a parameter was not reached or something frozen has changed. Except for the last, no step was
    /// made then (a forward pass with batch statistics has moved the running ones already).
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let value = loss.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !value.is_finite() {
            return Err(Error::Diverged { what: "training loss", step: self.steps_done + 1, loss: value });
        }
        self.apply(backward(loss, parameter_ids(&self.slots))?, value)?;
        Ok(value)
    }

    /// One step of the optimizer with gradients that were computed already, by `loss.backward()`: to look at them, or
    /// to change them, before the step. `loss` is the loss for the report. Returns the norm of the gradients before
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
    /// # let batch = session.next_batch()?.unwrap();
    /// let logits = session.forward(&batch)?;
    /// let loss = Loss::cross_entropy().forward(&logits, &batch.targets)?;
    /// let gradients = loss.backward()?;
    /// for (name, parameter) in session.parameters() {
    ///     if let Some(gradient) = gradients.get(&parameter) {
    ///         println!("{name}: {}", gradient.sqr()?.sum_all()?);
    ///     }
    /// }
    /// session.step_with(gradients, loss.to_scalar::<f32>()?.into())?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::backward_step`].
    pub fn step_with(&mut self, gradients: GradStore, loss: f64) -> Result<f64> {
        if !loss.is_finite() {
            return Err(Error::Diverged { what: "training loss", step: self.steps_done + 1, loss });
        }
        self.apply(gradients_of(gradients, parameter_ids(&self.slots))?, loss)
    }

    /// Audits and applies gradients; their norm before clipping.
    fn apply(&mut self, gradients: Gradients, loss: f64) -> Result<f64> {
        let current = self.current.as_mut().ok_or_else(no_phase)?;
        if self.audit_pending {
            for name in current.audit.gradients(&self.slots, &gradients)? {
                if !self.report.zero_gradients.contains(&name) {
                    self.report.zero_gradients.push(name);
                }
            }
            current.audit.copies(&current.network)?;
        }
        let norm = step(&mut self.optimizer, &self.slots, &gradients, current, self.setup.plan.clip)?;
        drop(gradients);
        if self.audit_pending {
            current.audit.frozen(&self.slots, &current.network)?;
            self.audit_pending = false;
        }
        self.steps_done += 1;
        // These are no longer the weights of an epoch that was restored.
        (self.report.best_epoch, self.report.valid_top1, self.report.valid) = (None, None, None);
        current.steps += 1;
        if let Some(epoch) = &mut current.running {
            epoch.progress.step(loss, norm);
            let (at, of) = (epoch.progress.steps(), current.all_batches / current.phase.epochs);
            let event = Event::Step { epoch: current.epoch + 1, step: at, steps: of, loss };
            emit(&mut self.setup.listener, &event);
        }
        Ok(norm)
    }

    /// Forward, the plan's loss, backward and one step of the optimizer. Returns the loss.
    pub fn step(&mut self, batch: &Batch) -> Result<f64> {
        let logits = self.forward(batch)?;
        let loss = self.setup.plan.loss.forward(&logits, &batch.targets)?;
        let predicted = logits.detach().argmax(1)?.to_vec1::<u32>()?;
        let truth = batch.targets.classes()?;
        let correct = predicted.iter().zip(&truth).filter(|(p, t)| p == t).count();
        let value = self.backward_step(&loss)?;
        if let Some(epoch) = self.current.as_mut().and_then(|c| c.running.as_mut()) {
            epoch.progress.judge(correct, truth.len());
        }
        Ok(value)
    }

    /// Every tensor that learns, by canonical name, as it is now: shares storage with the session's own.
    ///
    /// A gradient store's `get` takes them, for looking at gradients before [`Session::step_with`]. They are for reading
    /// alone.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let learning = self.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Param(_)));
        learning.map(|(name, slot)| (name.clone(), slot.tensor().clone())).collect()
    }

    /// A copy of every tensor of backbone and head by canonical name, running statistics included.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.iter().map(|(name, slot)| Ok((name.clone(), slot.detached().copy()?))).collect()
    }

    /// What the session knows so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether the batch handed out last is the last of its epoch.
    pub fn epoch_done(&self) -> bool {
        let epoch = self.current.as_ref().and_then(|c| c.running.as_ref());
        epoch.is_some_and(|e| e.taken >= e.order.len())
    }

    /// The phase in progress, from 1; `None` before the first batch and at the end of a phase.
    pub fn phase(&self) -> Option<usize> {
        self.current.as_ref().map(|c| c.index + 1)
    }

    /// The epoch of the phase in progress, from 1.
    pub fn epoch(&self) -> Option<usize> {
        self.current.as_ref().map(|c| c.epoch + 1)
    }

    /// The head's learning rate for the batch handed out last, after the schedule.
    pub fn lr(&self) -> Option<f64> {
        self.current.as_ref().map(|c| c.phase.optimizer.lr * c.factor())
    }

    /// The network as it is, frozen; must be gone before the next step.
    fn inference(&self) -> Result<Inference> {
        Inference::of_slots(&self.setup.backbone, self.setup.head, &self.slots, self.labels.clone())
    }
}

fn no_phase() -> Error {
    Error::invalid("session", "no phase has begun; ask for a batch first")
}

fn emit(listener: &mut Option<Listener>, event: &Event<'_>) {
    if let Some(listener) = listener {
        listener(event);
    }
}
