//! A phase: some epochs with the same frozen blocks, optimizer and schedule.

use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::optim::Optimizer;
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};

/// A part of a [`Plan`](crate::Plan) with a fixed set of frozen and of trainable tensors.
///
/// The plan's version covers its serialised form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Phase {
    /// What is frozen.
    pub freeze: FreezePolicy,
    /// How batch norms behave in trainable blocks.
    pub batch_norm: BatchNormMode,
    /// Passes over the training data.
    pub epochs: usize,
    /// The update rule, with the head's learning rate and the weight decay.
    pub optimizer: Optimizer,
    /// The backbone's learning rate divided by the head's.
    pub backbone_lr_scale: f64,
    /// The learning rate of each stage divided by that of the stage after it.
    pub layer_decay: f64,
    /// How the learning rate moves during the phase.
    pub schedule: Schedule,
    /// Whether the plan's augmentation applies in this phase. Without it, the features of frozen blocks are computed
    /// once.
    #[serde(default = "augmented", alias = "augment")] // version 1 of plans calls it `augment`, or leaves it out
    pub augmented: bool,
}

/// The default for plans saved before phases could choose.
fn augmented() -> bool {
    true
}

impl Phase {
    /// A phase in which everything is trained at the optimizer's rate, batch norms use the batch's statistics, and the
    /// plan's augmentation applies.
    ///
    /// ```
    /// use candle_finetune::{BatchNormMode, FreezePolicy, Optimizer, Phase, Plan};
    /// let phase = Phase::new(5, Optimizer::adamw(1e-3)).freeze(FreezePolicy::First(3)).batch_norm(BatchNormMode::Frozen);
    /// let plan = Plan::new(vec![phase]);
    /// assert_eq!(plan.total_epochs(), 5);
    /// ```
    pub fn new(epochs: usize, optimizer: Optimizer) -> Self {
        Self {
            freeze: FreezePolicy::Nothing,
            batch_norm: BatchNormMode::Train,
            epochs,
            optimizer,
            backbone_lr_scale: 1.0,
            layer_decay: 1.0,
            schedule: Schedule::constant(),
            augmented: true,
        }
    }

    /// How many moments the optimizer keeps of each parameter, with the momentum that the schedule may give it.
    pub(crate) fn moments(&self) -> usize {
        self.schedule.momentum(0, 1).map_or(self.optimizer, |momentum| self.optimizer.momentum(momentum)).moments()
    }

    /// Sets what is frozen.
    pub fn freeze(mut self, freeze: FreezePolicy) -> Self {
        self.freeze = freeze;
        self
    }

    /// Sets how batch norms behave in trainable blocks.
    pub fn batch_norm(mut self, batch_norm: BatchNormMode) -> Self {
        self.batch_norm = batch_norm;
        self
    }

    /// Sets the number of passes over the training data.
    pub fn epochs(mut self, epochs: usize) -> Self {
        self.epochs = epochs;
        self
    }

    /// Sets the update rule, with the head's learning rate and the weight decay.
    pub fn optimizer(mut self, optimizer: Optimizer) -> Self {
        self.optimizer = optimizer;
        self
    }

    /// Sets the backbone's learning rate divided by the head's.
    pub fn backbone_lr_scale(mut self, backbone_lr_scale: f64) -> Self {
        self.backbone_lr_scale = backbone_lr_scale;
        self
    }

    /// Sets the learning rate of each stage divided by that of the stage after it.
    pub fn layer_decay(mut self, layer_decay: f64) -> Self {
        self.layer_decay = layer_decay;
        self
    }

    /// Sets how the learning rate moves during the phase.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets whether the plan's augmentation applies in this phase.
    pub fn augmented(mut self, augmented: bool) -> Self {
        self.augmented = augmented;
        self
    }
}
