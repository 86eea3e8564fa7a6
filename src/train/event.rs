//! Events reported during training.

use crate::error::Error;
use crate::report::{EpochReport, HeadFit, Report};

/// Something that happened in a run, for progress bars and logs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins: its plan, samples and warnings are known. [`Report::header`] is this as text.
    Start(&'a Report),
    /// A phase begins.
    Phase {
        /// The phase, from 1.
        phase: usize,
        /// The number of phases.
        phases: usize,
        /// How many leading blocks are frozen.
        frozen_blocks: usize,
    },
    /// The features of the frozen blocks are being computed, once.
    Features {
        /// Samples done.
        done: usize,
        /// All samples.
        total: usize,
    },
    /// The head was fitted in closed form, and validated if the run validates.
    HeadFit(&'a HeadFit),
    /// An optimizer step is done.
    Step {
        /// The epoch of the phase, from 1.
        epoch: usize,
        /// The step of the epoch, from 1.
        step: usize,
        /// Steps of the epoch.
        steps: usize,
        /// The loss of the step's batch.
        loss: f64,
        /// The head's learning rate, after the schedule.
        lr: f64,
        /// The norm of all gradients, those of penalties included, before clipping by the norm.
        gradient_norm: f64,
        /// The optimizer step of the run, over all phases, from 1.
        run_step: usize,
        /// Samples of the step's batches; 0 for a further step on the same batch.
        samples: usize,
    },
    /// Something in the run that is probably a mistake.
    Warning(&'a str),
    /// The run goes on from a checkpoint, after this many steps.
    Resumed {
        /// Steps made before.
        step: usize,
    },
    /// A checkpoint of the run directory is damaged; an earlier one is taken.
    SkippedCheckpoint(&'a Error),
    /// An epoch is done and validated.
    Epoch(&'a EpochReport),
    /// A fold of a cross-validation is trained and predicted.
    Fold {
        /// The fold, counted over all repeats from 1.
        number: usize,
        /// The folds of all repeats.
        folds: usize,
        /// The accuracy on the fold, in [0, 1].
        top1: f64,
    },
}
