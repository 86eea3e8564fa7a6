//! Sums over an epoch while it runs.

use crate::metrics::Evaluation;
use crate::report::EpochReport;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The sums of the epoch so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Progress {
    #[serde(skip, default = "Instant::now")]
    started: Instant,
    /// Seconds before `started`, in a session that was resumed.
    before: f64,
    /// Seconds of training until the last step.
    seconds: f64,
    steps: usize,
    /// Samples handed out.
    seen: usize,
    /// Samples handed out since the last step.
    pending: usize,
    /// Samples of the steps, which weigh the losses.
    weight: usize,
    /// Samples whose predictions were compared with their targets, and how many were correct.
    predicted: usize,
    correct: usize,
    loss: f64,
    norm: f64,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            before: 0.0,
            seconds: 0.0,
            steps: 0,
            seen: 0,
            pending: 0,
            weight: 0,
            predicted: 0,
            correct: 0,
            loss: 0.0,
            norm: 0.0,
        }
    }

    /// The same for a state, whose clock starts again when it is resumed.
    pub fn paused(&self) -> Self {
        Self { before: self.seconds, ..self.clone() }
    }

    /// Starts the clock again.
    pub fn resumed(&self) -> Self {
        Self { started: Instant::now(), ..self.clone() }
    }

    /// Leaves out time that was not spent on training.
    pub fn exclude(&mut self, time: Duration) {
        self.started += time;
    }

    pub fn hand_out(&mut self, samples: usize) {
        self.seen += samples;
        self.pending += samples;
    }

    pub fn predict(&mut self, correct: usize, of: usize) {
        self.correct += correct;
        self.predicted += of;
    }

    /// A step on the samples handed out since the last one; `loss` is their mean. A further step on the same samples
    /// weighs as one sample. Returns the samples.
    pub fn step(&mut self, loss: f64, norm: f64) -> usize {
        let handed_out = std::mem::take(&mut self.pending);
        let samples = handed_out.max(1);
        self.steps += 1;
        self.weight += samples;
        self.loss += loss * samples as f64;
        self.norm += norm;
        self.seconds = self.before + self.started.elapsed().as_secs_f64();
        handed_out
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    pub fn report(&self, phase: usize, epoch: usize, lr: f64, valid: Option<&Evaluation>) -> EpochReport {
        EpochReport {
            phase,
            epoch,
            lr,
            train_loss: self.loss / self.weight as f64,
            train_top1: (self.predicted > 0).then(|| self.correct as f64 / self.predicted as f64),
            gradient_norm: self.norm / self.steps.max(1) as f64,
            valid_loss: valid.map(|v| v.loss),
            valid_top1: valid.map(Evaluation::top1),
            valid_interval: valid.map(Evaluation::interval),
            valid_metric: None,
            best: false,
            seconds: self.seconds,
            images_per_second: self.seen as f64 / self.seconds.max(1e-9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_weigh_by_samples_and_rates_count_what_was_handed_out() {
        let mut progress = Progress::new();
        progress.hand_out(32);
        assert_eq!(progress.step(1.0, 2.0), 32);
        // Two batches before one step.
        progress.hand_out(32);
        progress.hand_out(32);
        assert_eq!(progress.step(2.0, 4.0), 64);
        progress.hand_out(4);
        assert_eq!(progress.step(10.0, 6.0), 4);
        let report = progress.report(1, 1, 0.1, None);
        assert!((report.train_loss - (32.0 + 64.0 * 2.0 + 4.0 * 10.0) / 100.0).abs() < 1e-12);
        assert!((report.gradient_norm - 4.0).abs() < 1e-12);
        assert!((report.images_per_second * report.seconds - 100.0).abs() < 1e-6 || report.seconds < 1e-9);
        assert_eq!(progress.step(1.0, 1.0), 0, "no further sample");
    }
}
