//! Step-by-step training; `fit` uses it.

mod before;
mod epochs;
mod finish;
mod head_fit;
mod lr_finder;
mod phases;
mod resume;
mod start;
mod steps;
mod validation;

use super::anchors::Anchors;
use super::averages::Averages;
use super::best::Best;
use super::learner::Learners;
use super::listener::Listener;
use super::model::Model;
use super::pending::Pending;
use super::phase::RunningPhase;
use super::position::{Counters, Stop};
use super::sampler::Weights;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::features::FeatureCache;
use crate::loss::Loss;
use crate::metrics::Evaluation;
use crate::plan::Plan;
use crate::report::Report;
use before::Before;
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// A run in progress: its own copy of the trainable weights, the optimizer, and the position in the plan.
///
/// The loops follow the plan: it has phases, a phase has epochs, an epoch has batches. [`FineTuner::fit`] is a thin
/// wrapper around this; a custom loop is as short:
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
/// while session.next_phase()? {
///     while session.next_epoch()? {
///         while let Some(batch) = session.next_batch()? {
///             let logits = session.forward(&batch)?; // a Candle tensor with gradients tracked
///             let loss = Loss::cross_entropy().forward(&logits, &batch.targets)?; // or any loss made of Candle's operations
///             session.backward_step(&loss)?;
///         }
///     }
/// }
/// let tuned = session.finish()?;
/// # let _ = tuned;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// A call out of this order is an error that names the missing one. [`Session::state`] copies a run out at any
/// moment, and [`Session::resume`] continues it.
///
/// [`FineTuner::fit`]: crate::FineTuner::fit
pub struct Session {
    plan: Plan,
    seed: u64,
    workers: Option<usize>,
    cache: FeatureCache,
    audit: bool,
    listener: Listener,
    dataset: Arc<dyn Dataset>,
    /// The samples in their order, if the dataset identifies them all: found out when a state asks for it.
    data_identity: OnceCell<Option<u64>>,
    /// The validation samples in their order, of a run with a run directory.
    valid_identity: Option<u64>,
    model: Model,
    /// The plan's loss, with the weights of the classes computed from the data.
    loss: Loss,
    /// What each sample weighs in the draws of an epoch; `None` where each is drawn once.
    weights: Option<Weights>,
    learners: Learners,
    /// The gradients of batches that wait for their step.
    pending: Pending,
    /// The backbone's weights as the run began, if a penalty pulls back to them.
    anchors: Option<Anchors>,
    /// The moving averages of the weights, if the plan has a decay for them.
    averages: Averages,
    /// The evaluation of these averages that the epoch's end will look at.
    averages_valid: Option<Evaluation>,
    counters: Counters,
    phase: Option<RunningPhase>,
    /// Whether what a failed step can be repeated from is kept, and what it is.
    keeps_before: bool,
    before: Option<Before>,
    /// Where each phase ends, if not with its epochs.
    stops: Option<Vec<Stop>>,
    /// Whether the next call of `next_phase` or `next_epoch` continues the phase or epoch of a resumed state.
    continues: Continues,
    best: Best,
    report: Report,
    started: Instant,
    /// Seconds of the run before `started`, if it was resumed.
    seconds_before: f64,
    /// Rows of features that the cache had computed and reused before.
    counted_before: (usize, usize),
}

/// Whether a resumed state was within a phase, and within an epoch.
#[derive(Clone, Copy, Default)]
struct Continues {
    phase: bool,
    epoch: bool,
}

impl Session {
    /// A copy of every parameter that is trained in this phase, by canonical name, as it is now.
    ///
    /// The copies are linked to the parameters in Candle's graph, so that a loss may depend on them: a penalty on their
    /// size, or on their distance from the start.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let copy = |learner: &super::learner::Learner| Ok((learner.name.clone(), learner.variable.copy()?));
        self.learners.iter().map(copy).collect()
    }

    /// The gradients that a backward pass left in `store`, by canonical name: those of the parameters that it reached.
    /// See [`Session::step_with`].
    ///
    /// # Errors
    /// If a gradient cannot be read.
    pub fn gradients(&self, store: &GradStore) -> Result<Vec<(String, Tensor)>> {
        let found = self.learners.iter().filter_map(|learner| {
            let gradient = store.get(learner.variable.as_tensor())?;
            // Detached, since a gradient that tracks its origin would keep the whole graph alive.
            Some((learner.name.clone(), gradient.detach()))
        });
        Ok(found.collect())
    }

    /// A copy of every tensor of backbone and head by canonical name, running statistics included.
    ///
    /// # Errors
    /// If the device has no memory for a copy.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.model.tensors()
    }

    /// The report so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Whether the batch handed out last is the last of its epoch.
    pub fn epoch_done(&self) -> bool {
        let epoch = self.phase.as_ref().and_then(|phase| phase.epoch.as_ref());
        epoch.is_some_and(|epoch| epoch.sampler.is_done())
    }

    /// The phase in progress, from 1; `None` before the first and after the end of one.
    pub fn phase(&self) -> Option<usize> {
        self.phase.as_ref().map(|phase| phase.state.index + 1)
    }

    /// The epoch of the phase in progress, from 1; between two epochs, the next.
    pub fn epoch(&self) -> Option<usize> {
        self.phase.as_ref().map(|phase| phase.state.epoch + 1)
    }

    /// Whether gradients wait for further batches of their step ([`Plan::grad_accum`](crate::Plan::grad_accum)).
    pub fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The head's learning rate for the batch handed out last, after the schedule.
    pub fn lr(&self) -> Option<f64> {
        self.phase.as_ref().map(RunningPhase::lr)
    }
}

fn no_phase() -> Error {
    Error::invalid("session", "no phase has begun; call next_phase first")
}
