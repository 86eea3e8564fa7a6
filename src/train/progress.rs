//! Sums over an epoch while it runs.

use crate::metrics::Evaluation;
use crate::report::EpochReport;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Steps of an epoch from which a loss that does not move tells something.
const FEW: usize = 8;

/// A loss below this may stay where it is: everything is learned.
const NOTHING: f64 = 1e-3;

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
    /// The lowest and the highest loss of a step, with rounding left out.
    losses: Option<(f64, f64)>,
    /// Parameters whose gradients were zero in every step.
    silent: Option<Vec<String>>,
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
            losses: None,
            silent: None,
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

    /// Seconds of training until the last step.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    pub fn hand_out(&mut self, samples: usize) {
        self.seen += samples;
        self.pending += samples;
    }

    pub fn predict(&mut self, correct: usize, of: usize) {
        self.correct += correct;
        self.predicted += of;
    }

    /// Gradients of the samples handed out since the last ones; `loss` is their mean. Returns how many samples there are.
    /// Further gradients of the same samples weigh as one sample.
    pub fn gradients(&mut self, loss: f64) -> usize {
        let samples = std::mem::take(&mut self.pending).max(1);
        self.weight += samples;
        self.loss += loss * samples as f64;
        let (low, high) = self.losses.unwrap_or((loss, loss));
        self.losses = Some((low.min(loss), high.max(loss)));
        samples
    }

    /// A step; `norm` is that of its gradients, `silent` the parameters whose gradients are zero.
    pub fn step(&mut self, norm: f64, silent: Vec<String>) {
        self.silent = Some(match self.silent.take() {
            Some(before) => before.into_iter().filter(|name| silent.contains(name)).collect(),
            None => silent,
        });
        self.steps += 1;
        self.norm += norm;
        self.seconds = self.before + self.started.elapsed().as_secs_f64();
    }

    /// What is probably wrong with an epoch that has had many steps: a loss that does not move, or parameters of the head
    /// that get no gradient.
    pub fn problems(&self, heads: &[String]) -> Vec<String> {
        if self.steps < FEW {
            return vec![];
        }
        let mut problems = vec![];
        if let Some((low, high)) = self.losses.filter(|(low, high)| *low > NOTHING && high - low <= 1e-6 * high) {
            problems.push(format!(
                "the training loss stays at {low:.6} in all {} steps, up to {:.0e}: raise the learning rate, or check that \
                 the labels differ",
                self.steps,
                high - low
            ));
        }
        let silent: Vec<&str> =
            self.silent.iter().flatten().filter(|name| heads.contains(name)).map(String::as_str).collect();
        if !silent.is_empty() {
            problems.push(format!(
                "the gradient of {} is zero in all {} steps, so the head does not learn: its hidden units are dead; lower the \
                 learning rate, or use another seed",
                silent.join(", "),
                self.steps
            ));
        }
        problems
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
            steps: self.steps,
            valid_loss: valid.map(|v| v.loss),
            valid_top1: valid.map(Evaluation::top1),
            valid_interval: valid.map(Evaluation::interval),
            valid_metric: None,
            averaged: None,
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
        progress.gradients(1.0);
        progress.step(2.0, vec!["a".into(), "b".into()]);
        // Two batches before one step.
        progress.hand_out(32);
        progress.hand_out(32);
        assert_eq!(progress.gradients(2.0), 64);
        progress.step(4.0, vec!["b".into()]);
        progress.hand_out(4);
        progress.gradients(10.0);
        progress.step(6.0, vec!["b".into(), "c".into()]);
        assert_eq!(progress.silent, Some(vec!["b".to_string()]));
        let report = progress.report(1, 1, 0.1, None);
        assert!((report.train_loss - (32.0 + 64.0 * 2.0 + 4.0 * 10.0) / 100.0).abs() < 1e-12);
        assert!((report.gradient_norm - 4.0).abs() < 1e-12);
        assert!((report.images_per_second * report.seconds - 100.0).abs() < 1e-6 || report.seconds < 1e-9);
        assert_eq!(progress.gradients(1.0), 1, "no further sample");
    }

    #[test]
    fn a_loss_that_stays_and_a_dead_head_are_told() {
        let heads = vec!["head.weight".to_string()];
        let problems = |losses: [f64; 9], silent: &str, steps: usize| {
            let mut progress = Progress::new();
            for loss in &losses[..steps] {
                progress.hand_out(4);
                progress.gradients(*loss);
                progress.step(1.0, vec![silent.to_string()]);
            }
            progress.problems(&heads)
        };
        let moving = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2];
        assert!(problems(moving, "conv.bias", 9).is_empty());
        assert!(problems([2.3; 9], "head.weight", 7).is_empty(), "too few steps");
        assert!(problems([0.0; 9], "conv.bias", 9).is_empty(), "all is learned");
        let found = problems([2.3; 9], "conv.bias", 9);
        assert!(found.len() == 1 && found[0].contains("2.3"), "{found:?}");
        let found = problems(moving, "head.weight", 8);
        assert!(found.len() == 1 && found[0].contains("head.weight"), "{found:?}");
    }
}
