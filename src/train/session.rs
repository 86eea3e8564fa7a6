//! The one place that trains.

mod phases;
mod steps;
mod validation;

use super::audit::Audit;
use super::event::Event;
use super::fine_tuner::Fitted;
use super::progress::Progress;
use super::report::{Report, Seconds, peak_rss_mb};
use super::store::{assign, count, groups, restore, snapshot, variable};
use super::{feature_cache::FeatureCache, features::KeptFeatures};
use crate::backbone::{Backbone, Network, random_tensors};
use crate::data::{Augment, Batch, Batches, Dataset, Loader, Transform, batch_count, batch_end};
use crate::error::{Error, Result};
use crate::freeze::Role;
use crate::head::Head;
use crate::metrics::Evaluation;
use crate::ops::{Gradients, backward};
use crate::optim::{Group, OptimizerState, global_norm};
use crate::params::{Declared, Slot, Slots};
use crate::plan::{Phase, Plan, Start};
use crate::predict::{Inference, Predictor};
use crate::rng::Seed;
use crate::strategy::Strategy;
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
/// [`FineTuner::fit`](crate::FineTuner::fit) is a client of this; an own loop is as short:
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
    audit_pending: bool,
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
    step: usize,
    steps: usize,
    running: Option<Epoch>,
}

/// The epoch in progress.
struct Epoch {
    order: Vec<usize>,
    /// Samples handed out.
    taken: usize,
    batches: Option<Batches>,
    progress: Progress,
    pending: usize,
}

impl Session {
    pub(super) fn start<D: Dataset + Clone + 'static>(mut setup: Setup, data: &D) -> Result<Self> {
        let started = Instant::now();
        setup.plan.check(&setup.backbone)?;
        setup.plan = setup.plan.with_names(&setup.backbone)?;
        if data.is_empty() {
            return Err(Error::invalid("dataset", "holds no samples"));
        }
        let labels = data.classes().to_vec();
        if labels.len() < 2 {
            let problem = format!("has {} class; there is something to learn from two on", labels.len());
            return Err(Error::invalid("dataset", problem));
        }
        let transform = Transform::train(&setup.backbone.inner.spec, &setup.plan.augment)?;
        if setup.plan.augment.is_random() && Loader::gives_tensors(data)? {
            setup.plan.reasons.push("the samples are tensors, which are not varied".into());
            setup.plan.augment = Augment::none();
        }
        let Setup { backbone, head, plan, seed, .. } = &setup;
        let inner = &backbone.inner;
        let channels = inner.spec.channels;
        let tensors = match plan.init {
            Start::Pretrained => inner.tensors.clone(),
            Start::Random => random_tensors(inner.arch, channels, *seed, inner.dtype, &inner.device)?,
        };
        let mut slots: Slots = tensors.into_iter().map(|(name, t)| (name, Slot::Frozen(t))).collect();
        for (name, tensor) in head.start(backbone, labels.len(), *seed)? {
            slots.insert(name, Slot::Param(variable(&tensor)?));
        }
        // Each phase sets its own transform.
        let mut loader = Loader::new(data, transform).batch_size(plan.batch_size).seed(*seed);
        if let Some(workers) = setup.workers {
            loader = loader.workers(workers);
        }
        let report = Report {
            arch: inner.arch.name().to_string(),
            base_model: inner.origin.name.clone().filter(|_| plan.init == Start::Pretrained),
            strategy: setup.strategy,
            plan: plan.clone(),
            overrides: setup.overrides.clone(),
            seed: *seed,
            samples: data.len(),
            skipped: data.skipped(),
            classes: labels.clone(),
            epochs: vec![],
            best_epoch: None,
            valid_top1: None,
            top1: None,
            seconds: Seconds::default(),
            parameters: super::report::Parameters::default(),
            zero_gradients: vec![],
            cached_mb: 0.0,
            peak_rss_mb: None,
        };
        let declared = inner.arch.declared(channels)?;
        let heads = head.names(inner.arch, labels.len());
        for (i, phase) in plan.phases.iter().enumerate() {
            let frozen = phase.freeze.resolve(&inner.network.blocks, &declared, inner.arch.classifier())?;
            let learns = |d: &Declared| frozen.role(d, phase.batch_norm) == Role::Param;
            if heads.iter().all(|name| frozen.names(name)) && !declared.iter().any(learns) {
                let problem = "freezes everything, the head too, so nothing would learn";
                return Err(Error::invalid(format!("plan: phase {} freeze", i + 1), problem));
            }
        }
        // What learns is copied, what is frozen shared: nothing else of the weights need stay in memory.
        setup.backbone = setup.backbone.outline();
        Ok(Self {
            setup,
            dataset: Arc::new(data.clone()),
            labels,
            loader,
            slots,
            declared,
            optimizer: OptimizerState::default(),
            current: None,
            next_phase: 0,
            epochs_done: 0,
            steps_done: 0,
            audit_pending: false,
            report,
            started,
        })
    }

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
            if self.handed_out() {
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
            epoch.pending = batch.len();
            return Ok(Some(batch));
        }
    }

    /// Logits (N, classes) with a graph: a Candle tensor from which any loss can be made.
    ///
    /// # Errors
    /// Before the first batch, for images that the network cannot take, and for a batch with kept features that was
    /// made in another phase.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let Some(current) = &self.current else {
            return Err(Error::invalid("session", "no phase has begun; ask for a batch first"));
        };
        let features = match &batch.features {
            Some(features) if features.phase != current.index => {
                let problem = "was made for another phase, whose frozen blocks are others; ask for a new one";
                return Err(Error::invalid("batch", problem));
            }
            Some(features) => current.network.suffix(&features.tensor, current.frozen_blocks)?,
            None => {
                self.setup.backbone.check(&batch.images)?;
                current.network.features(&batch.images.to_dtype(self.setup.backbone.inner.dtype)?)?
            }
        };
        let chance = Some((Seed(self.setup.seed), self.steps_done as u64));
        self.setup.head.forward(&features, &self.slots, self.setup.backbone.arch(), chance)
    }

    /// The gradients of `loss`, clipped, and one step of the optimizer. Returns the loss.
    ///
    /// # Errors
    /// [`Error::Diverged`] for a loss that is no finite number, [`Error::Audit`] if a gradient is not finite or, in the
    /// first step of a phase, a parameter was not reached or something frozen has changed. Except for the last, no
    /// step was made then (a forward pass with batch statistics has moved the running ones already).
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let value = loss.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        if !value.is_finite() {
            return Err(Error::Diverged { step: self.steps_done + 1, loss: value });
        }
        let gradients = backward(loss)?;
        let Some(current) = &mut self.current else {
            return Err(Error::invalid("session", "no phase has begun; ask for a batch first"));
        };
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
        current.step += 1;
        if let Some(epoch) = &mut current.running {
            epoch.progress.step(value, norm, std::mem::take(&mut epoch.pending));
            let (at, of) = (epoch.progress.steps(), current.steps / current.phase.epochs);
            let event = Event::Step { epoch: current.epoch + 1, step: at, steps: of, loss: value };
            emit(&mut self.setup.listener, &event);
        }
        Ok(value)
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
            epoch.progress.judged(correct, truth.len());
        }
        Ok(value)
    }

    /// Runs the network as it is over labelled data, frozen and in evaluation mode.
    pub fn evaluate<D: Dataset + Clone + 'static>(&self, data: &D) -> Result<Evaluation> {
        self.inference()?.evaluate(data, self.setup.workers)
    }

    /// Every tensor that learns, by canonical name, as it is now: shares storage with the session's own.
    ///
    /// A gradient store's `get` takes them, for looking at gradients before a step. They are for reading alone.
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

    /// Whether the batch handed out last was the last of its epoch, and its step is done.
    pub fn epoch_done(&self) -> bool {
        let epoch = self.current.as_ref().and_then(|c| c.running.as_ref());
        epoch.is_some_and(|e| e.taken >= e.order.len() && e.pending == 0)
    }

    /// Whether no batch of the epoch is left.
    fn handed_out(&self) -> bool {
        let epoch = self.current.as_ref().and_then(|c| c.running.as_ref());
        epoch.is_some_and(|e| e.taken >= e.order.len())
    }

    /// Ends the session: the weights as they are become a predictor.
    pub fn finish(mut self) -> Result<Fitted> {
        if self.handed_out() {
            self.close_epoch(None)?;
        }
        if self.current.is_some() {
            self.leave_phase()?;
        }
        self.report.seconds.total = self.started.elapsed().as_secs_f64();
        self.report.peak_rss_mb = peak_rss_mb();
        let inner = &self.setup.backbone.inner;
        let state = self.state()?;
        let names = self.setup.head.names(inner.arch, self.labels.len());
        let (head, tensors): (Vec<_>, Vec<_>) = state.into_iter().partition(|(name, _)| names.contains(name));
        // A linear head is a classifier like any that comes with weights.
        let classifier = match &head[..] {
            [(_, bias), (_, weight)] => Some((weight.clone(), bias.clone())),
            _ => None,
        };
        let backbone = Backbone::assemble(
            inner.arch,
            inner.layout,
            inner.spec.clone(),
            &inner.device,
            tensors.into_iter().collect(),
            inner.counters.clone(),
            classifier,
            Some(self.labels.clone()),
            inner.origin.place(),
        )?;
        let story = serde_json::to_value(self.report.without_measurements())
            .map_err(|error| Error::invalid("report", format!("cannot be written as JSON: {error}")))?;
        let predictor = Predictor::assemble(backbone, self.setup.head, head, self.labels, Some(story))?;
        drop(self.optimizer);
        crate::ops::release_pool();
        Ok(Fitted { predictor, report: self.report })
    }

    /// The network as it is, frozen; must be gone before the next step.
    fn inference(&self) -> Result<Inference> {
        Inference::of_slots(&self.setup.backbone, self.setup.head, &self.slots, self.labels.clone())
    }
}

fn emit(listener: &mut Option<Listener>, event: &Event<'_>) {
    if let Some(listener) = listener {
        listener(event);
    }
}
