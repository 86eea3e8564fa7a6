//! The position of a run in its plan.

use super::best::Patience;
use super::progress::Progress;
use crate::schedule::Plateau;
use serde::{Deserialize, Serialize};

/// Counters over the whole run. The streams of random numbers are addressed by them, so they are all its random state.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Counters {
    /// The phase that comes next, from 0.
    pub next_phase: usize,
    /// Epochs ended: the number of the order of the samples and of their augmentation.
    pub epochs: usize,
    /// Steps made.
    pub steps: usize,
    /// Forward passes in training: each has its own dropout mask.
    pub forwards: u64,
    /// Whether the head was fitted, if the plan says so.
    #[serde(default)]
    pub head_fitted: bool,
    /// Whether the fitted head was offered as epoch 0.
    #[serde(default)]
    pub start_offered: bool,
}

/// The phase in progress.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct PhaseState {
    /// The phase, from 0.
    pub index: usize,
    /// The epoch in progress or next, from 0.
    pub epoch: usize,
    /// Batches handed out. The schedule follows these, however many steps a loop makes of them.
    pub batches: usize,
    /// Steps made.
    pub steps: usize,
    /// Whether the first step is still to be audited.
    pub audit_pending: bool,
    pub patience: Patience,
    /// Of a schedule that reacts to plateaus.
    #[serde(default)]
    pub plateau: Plateau,
}

/// The epoch in progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct EpochState {
    /// Samples handed out.
    pub taken: usize,
    pub progress: Progress,
}

/// The position of a run in its plan.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Position {
    pub counters: Counters,
    /// The phase in progress.
    pub phase: Option<PhaseState>,
    /// The epoch in progress.
    pub epoch: Option<EpochState>,
}

/// Where a phase ends, in steps: with more data an epoch has more of them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stop {
    /// The steps that the schedule of the learning rate spans.
    pub scheduled: usize,
    /// The steps that are made of them.
    pub made: usize,
    /// The factors that plateaus had put on the rate, epoch by epoch of the run that set the stop; empty for schedules
    /// that do not react to them.
    pub scales: Vec<f64>,
    /// Steps of an epoch of that run.
    pub per_epoch: usize,
}
