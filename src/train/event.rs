//! Events reported during training.

use crate::error::Error;
use crate::report::{EpochReport, HeadFit, Report};
use std::io::Write;

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
        /// The norm of all gradients before clipping.
        gradient_norm: f64,
    },
    /// The run goes on from a checkpoint of its run directory, after this many steps.
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

/// A listener that writes the plan, then a line per epoch.
///
/// A line that cannot be written is dropped; the run continues.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, candle_core::Device};
/// use candle_finetune::{FineTuner, progress_lines};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let tuner = FineTuner::new(backbone).on_event(progress_lines(std::io::stderr()));
/// # let _ = tuner;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub fn progress_lines(mut out: impl Write + Send + 'static) -> impl FnMut(&Event<'_>) + Send + 'static {
    move |event| {
        // A closed pipe is no reason to lose the training.
        let _ = match event {
            Event::Start(report) => writeln!(out, "{}", report.header()),
            Event::Features { done, total } if done == total => writeln!(out, "features of {total} samples computed"),
            Event::HeadFit(fit) => writeln!(out, "{fit}"),
            Event::Epoch(report) => writeln!(out, "{report}"),
            Event::Resumed { step } => writeln!(out, "resumed at step {step}"),
            Event::SkippedCheckpoint(error) => writeln!(out, "a damaged checkpoint is skipped: {error}"),
            Event::Fold { number, folds, top1 } => writeln!(out, "fold {number} of {folds}: top1 {top1:.4}"),
            _ => Ok(()),
        };
    }
}
