//! What a run tells its listener.

use super::report::EpochReport;

/// Something that happened in a run, for progress bars and logs.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A phase begins.
    Phase {
        /// The phase, from 1.
        phase: usize,
        /// How many there are.
        phases: usize,
        /// How many leading blocks are frozen.
        frozen_blocks: usize,
    },
    /// The frozen part's features are being computed, once.
    Features {
        /// Samples done.
        done: usize,
        /// All samples.
        total: usize,
    },
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
    },
    /// An epoch is done and validated.
    Epoch(&'a EpochReport),
}
