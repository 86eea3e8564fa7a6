//! Selects the best epoch.

use super::snapshot::Snapshot;
use crate::error::Result;
use crate::metrics::{Evaluation, Metric, Task};
use serde::{Deserialize, Serialize};

/// The epochs that may still turn out to be the best, with their weights.
///
/// The rule: among the epochs whose accuracy is within one standard error of the best one, the one with the lowest
/// validation loss. With few validation samples accuracies differ randomly: two epochs are compared on the samples that
/// one of them gets right and the other wrong (a paired comparison), while the loss depends on every sample. (After the
/// one-standard-error rule of Breiman et al. 1984, "Classification and regression trees".) An epoch whose loss or
/// logits are not finite is never kept.
///
/// For other metrics: the best value; ties go to the lowest loss, then the earliest epoch.
///
/// Weights are kept of few epochs at a time: those that no other epoch matches in both accuracy and loss, and that are
/// within one standard error of the best so far. A dropped epoch is not reconsidered, so the rule is exact except for
/// epochs that a later best would have admitted.
#[derive(Debug, Clone, Default)]
pub(super) struct Best {
    pub metric: Metric,
    /// By falling accuracy, and so by falling loss.
    pub kept: Vec<Epoch>,
}

/// An epoch with its weights.
#[derive(Debug, Clone)]
pub(super) struct Epoch {
    /// Over all phases, from 1; 0 for the head as it was fitted.
    pub number: usize,
    /// Whether the weights are the moving averages.
    pub averaged: bool,
    pub evaluation: Evaluation,
    pub weights: Snapshot,
}

/// Epochs whose weights are kept at a time, at most: a bound on memory.
const MOST: usize = 3;

impl Best {
    pub fn new(metric: Metric) -> Self {
        Self { metric, kept: vec![] }
    }

    /// Whether the epoch is the best so far: its number, and whether its weights are the averages. `weights` is called for
    /// an epoch that may turn out to be the best.
    pub fn offer(
        &mut self,
        (number, averaged): (usize, bool),
        evaluation: &Evaluation,
        weights: impl FnOnce() -> Result<Snapshot>,
    ) -> Result<bool> {
        if !evaluation.is_finite() {
            return Ok(false);
        }
        // The probabilities of all labels are large, and a summary has what they are needed for.
        let lean;
        let evaluation = match evaluation.task() {
            Task::Labels => {
                lean = Evaluation { outcomes: evaluation.outcomes.clone(), ..evaluation.summary() };
                &lean
            }
            Task::Classes => evaluation,
        };
        if self.metric != Metric::Top1 {
            if self.metric.value(evaluation).is_nan() {
                return Err(self.metric.without_value("metric"));
            }
            let better = self.winner().is_none_or(|best| self.is_better(evaluation, &best.evaluation));
            if better {
                self.kept = vec![Epoch { number, averaged, evaluation: evaluation.clone(), weights: weights()? }];
            }
            return Ok(better);
        }
        let matched = |a: &Evaluation, b: &Evaluation| a.correct >= b.correct && a.loss <= b.loss;
        if self.kept.iter().any(|k| matched(&k.evaluation, evaluation)) {
            return Ok(false);
        }
        if let Some(most) = self.kept.first()
            && most.evaluation.correct > evaluation.correct
            && !within_one_error(&most.evaluation, evaluation)
        {
            return Ok(false);
        }
        self.kept.retain(|k| !matched(evaluation, &k.evaluation));
        // The most accurate of those kept is the first, and it stays the most accurate unless the new one is.
        if self.kept.first().is_none_or(|most| evaluation.correct > most.evaluation.correct) {
            self.kept.retain(|k| within_one_error(evaluation, &k.evaluation));
        }
        // Dropped before the weights are copied, to bound the memory: neither the most accurate nor the winner.
        if self.kept.len() >= MOST {
            self.kept.remove(1);
        }
        self.kept.push(Epoch { number, averaged, evaluation: evaluation.clone(), weights: weights()? });
        self.kept.sort_by_key(|k| std::cmp::Reverse(k.evaluation.correct));
        Ok(self.winner().is_some_and(|best| (best.number, best.averaged) == (number, averaged)))
    }

    /// By the rule for other metrics.
    fn is_better(&self, new: &Evaluation, best: &Evaluation) -> bool {
        let by = |metric: Metric| metric.compare(metric.value(new), metric.value(best));
        by(self.metric).then(by(Metric::Loss)).is_gt()
    }

    /// The best epoch so far.
    pub fn winner(&self) -> Option<&Epoch> {
        self.kept.last()
    }
}

/// Early stopping: epochs since the best value of the watched metric.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Patience {
    best: Option<f64>,
    since: usize,
}

impl Patience {
    /// Notes the value of an epoch. One that is not finite is never the best.
    pub fn note(&mut self, value: f64, metric: Metric) {
        let better = metric.improves(value, self.best);
        self.since = if better { 0 } else { self.since + 1 };
        self.best = if better { Some(value) } else { self.best };
    }

    /// Whether `limit` epochs, if there is a limit, have passed without a better value.
    pub fn is_exhausted(&self, limit: Option<usize>) -> bool {
        limit.is_some_and(|limit| self.since >= limit)
    }
}

/// Whether the difference in correct answers between the more accurate evaluation and another is at most its standard
/// error, sample by sample. Evaluations whose samples are not known to be the same are close only at equal accuracy.
fn within_one_error(most: &Evaluation, other: &Evaluation) -> bool {
    let n = most.outcomes.len();
    if n == 0 || n != other.outcomes.len() {
        return most.correct == other.correct;
    }
    let pairs = || most.outcomes.iter().zip(&other.outcomes);
    let better = pairs().filter(|&(&a, &b)| a && !b).count() as f64;
    let worse = pairs().filter(|&(&a, &b)| !a && b).count() as f64;
    let (difference, n) = (better - worse, n as f64);
    // The sum of n differences of -1, 0 or 1, with the unbiased estimate of their variance.
    let square_error = n / (n - 1.0).max(1.0) * (better + worse - difference * difference / n.max(1.0));
    difference <= square_error.sqrt() + 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Scores, Task};

    /// An evaluation of these answers with this loss.
    fn evaluation(right: &[u8], loss: f64) -> Evaluation {
        let mut scores = Scores::new(Task::Classes);
        right.iter().for_each(|&r| scores.count(0, Some(usize::from(r == 0)), loss));
        scores.evaluation()
    }

    fn offer(best: &mut Best, number: usize, evaluation: &Evaluation) -> bool {
        best.offer((number, false), evaluation, || Ok(Snapshot::default())).unwrap()
    }

    fn winner(best: &Best) -> Option<usize> {
        best.winner().map(|b| b.number)
    }

    #[test]
    fn within_one_standard_error_the_loss_decides() {
        let mut best = Best::default();
        assert!(offer(&mut best, 1, &evaluation(&[1, 1, 1, 1, 1, 1, 1, 0, 0, 0], 0.9)));
        // One more is right: a difference of 1 with an error of 1. The loss is higher, so the first one stays.
        assert!(!offer(&mut best, 2, &evaluation(&[1, 1, 1, 1, 1, 1, 1, 1, 0, 0], 1.5)));
        assert_eq!(winner(&best), Some(1));
        // Two more than the first: a difference of 2 with an error of sqrt(10 / 9 (2 - 0.4)) = 1.33.
        assert!(!offer(&mut best, 3, &evaluation(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 0], 2.0)));
        assert_eq!(winner(&best), Some(2), "the first is too far below, the second is not");
        // As accurate and a lower loss.
        assert!(offer(&mut best, 4, &evaluation(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 0], 1.0)));
        assert_eq!((winner(&best), best.kept.len()), (Some(4), 1));
        // Equal to the best, and worse in one of the two: no better.
        assert!(!offer(&mut best, 5, &evaluation(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 0], 1.0)));
        assert!(!offer(&mut best, 6, &evaluation(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 0], 1.2)));
        // A low loss does not make up for a difference beyond the standard error.
        assert!(!offer(&mut best, 7, &evaluation(&[1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 0.1)));
        assert_eq!(winner(&best), Some(4));
    }

    /// If the two disagree on many samples, the error of their difference is larger.
    #[test]
    fn the_comparison_is_paired() {
        let most = evaluation(&[1, 1, 1, 1, 1, 1, 0, 0, 0, 0], 1.0);
        let same = evaluation(&[1, 1, 1, 1, 0, 0, 0, 0, 0, 0], 0.5); // 2 fewer correct, none more: error 1.33
        let other = evaluation(&[1, 0, 0, 0, 0, 0, 1, 1, 1, 0], 0.5); // 5 fewer correct, 3 more: error 2.9
        assert!(!within_one_error(&most, &same));
        assert!(within_one_error(&most, &other));
        assert!(!within_one_error(&most, &evaluation(&[1, 1, 1], 0.5)), "other data");
    }

    #[test]
    fn what_is_not_finite_ranks_below_everything() {
        let mut best = Best::default();
        for loss in [f64::NAN, f64::INFINITY] {
            assert!(!offer(&mut best, 1, &evaluation(&[1, 1, 1], loss)));
        }
        let mut unpredicted = evaluation(&[1, 1], 0.1);
        unpredicted.not_finite = 1;
        assert!(!offer(&mut best, 2, &unpredicted) && winner(&best).is_none());
        assert!(offer(&mut best, 3, &evaluation(&[0, 0, 0], 9.0)));
        assert!(!offer(&mut best, 4, &evaluation(&[1, 1, 1], f64::NAN)));
        assert_eq!(winner(&best), Some(3));
    }

    /// Two classes of ten samples, of which this many are correct.
    fn of_two(correct: [usize; 2], loss: f64) -> Evaluation {
        let mut scores = Scores::new(Task::Classes);
        for (class, of) in correct.into_iter().enumerate() {
            (0..10).for_each(|k| scores.count(class, Some(if k < of { class } else { 1 - class }), loss));
        }
        scores.evaluation()
    }

    #[test]
    fn another_metric_decides_by_its_value_and_then_the_loss() {
        let mut best = Best::new(Metric::Loss);
        assert!(offer(&mut best, 1, &evaluation(&[1, 1, 1], 0.5)));
        assert!(!offer(&mut best, 2, &evaluation(&[1, 1, 1], 0.5)), "no better");
        assert!(!offer(&mut best, 3, &evaluation(&[1, 1, 1], f64::NAN)));
        assert!(offer(&mut best, 4, &evaluation(&[0, 0, 0], 0.4)), "whatever the accuracy");
        assert_eq!((winner(&best), best.kept.len()), (Some(4), 1));

        let mut best = Best::new(Metric::BalancedAccuracy);
        assert!(offer(&mut best, 1, &of_two([10, 4], 0.1)));
        assert!(offer(&mut best, 2, &of_two([7, 8], 0.9)), "one sample is more than a lower loss");
        assert!(offer(&mut best, 3, &of_two([8, 7], 0.8)), "of equal values the lower loss");
        assert!(!offer(&mut best, 4, &of_two([8, 7], 0.8)));
        assert_eq!(winner(&best), Some(3));
    }

    #[test]
    fn a_metric_without_a_value_is_refused() {
        // Counted without probabilities.
        let mut best = Best::new(Metric::RocAuc);
        let error =
            best.offer((1, false), &evaluation(&[1, 0], 0.5), || Ok(Snapshot::default())).unwrap_err().to_string();
        assert!(error.contains("roc_auc has no value") && error.contains("choose another metric"), "{error}");
        assert!(best.winner().is_none());
    }

    #[test]
    fn few_epochs_are_kept_at_a_time() {
        let mut best = Best::default();
        for number in 1..=20 {
            // Each epoch gets one more right, at a higher loss, and disagrees widely with the one before.
            let right: Vec<u8> = (0..400).map(|i| u8::from((i * 7 + number * 131) % 400 < 200 + number)).collect();
            offer(&mut best, number, &evaluation(&right, number as f64));
            assert!(best.kept.len() <= MOST);
        }
        assert_eq!(best.kept[0].number, 20, "the most accurate");
        assert!(best.kept.is_sorted_by(|a, b| a.evaluation.loss > b.evaluation.loss));
    }
}
