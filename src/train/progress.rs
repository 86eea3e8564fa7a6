//! Sums over an epoch while it runs.

use super::report::EpochReport;
use crate::metrics::Evaluation;
use std::time::Instant;

/// What is known of the epoch so far.
pub(super) struct Progress {
    started: Instant,
    pub seconds: f64,
    steps: usize,
    seen: usize,
    judged: usize,
    correct: usize,
    loss: f64,
    norm: f64,
}

impl Progress {
    pub fn new() -> Self {
        Self { started: Instant::now(), seconds: 0.0, steps: 0, seen: 0, judged: 0, correct: 0, loss: 0.0, norm: 0.0 }
    }

    pub fn judged(&mut self, correct: usize, of: usize) {
        self.correct += correct;
        self.judged += of;
    }

    pub fn step(&mut self, loss: f64, norm: f64, samples: usize) {
        self.steps += 1;
        self.seen += samples;
        self.loss += loss;
        self.norm += norm;
        self.seconds = self.started.elapsed().as_secs_f64();
    }

    pub fn steps(&self) -> usize {
        self.steps
    }

    pub fn report(&self, phase: usize, epoch: usize, lr: f64, valid: Option<&Evaluation>) -> EpochReport {
        let steps = self.steps.max(1) as f64;
        EpochReport {
            phase,
            epoch,
            lr,
            train_loss: self.loss / steps,
            train_top1: (self.judged > 0).then(|| self.correct as f64 / self.judged as f64),
            gradient_norm: self.norm / steps,
            valid_loss: valid.map(|v| v.loss),
            valid_top1: valid.map(Evaluation::top1),
            seconds: self.seconds,
            images_per_second: self.seen as f64 / self.seconds.max(1e-9),
        }
    }
}
