//! Counts for lists of labels, and the thresholds that suit them.

use serde::{Deserialize, Serialize};

/// The threshold of a probability where none was chosen.
pub(crate) const THRESHOLD: f32 = 0.5;

/// The binary cross entropy of a logit x and a target t in nats, softplus(x) - t x, without overflow.
pub(crate) fn binary_cross_entropy(logit: f64, target: f64) -> f64 {
    logit.max(0.0) + (-logit.abs()).exp().ln_1p() - target * logit
}

/// How often one label was predicted, and rightly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LabelCounts {
    /// Predicted, and the sample has it.
    pub hits: usize,
    /// Predicted, and the sample does not have it.
    pub false_alarms: usize,
    /// Not predicted, but the sample has it.
    pub misses: usize,
}

impl LabelCounts {
    /// Adds one sample; returns whether the label is right.
    pub fn add(&mut self, predicted: bool, truth: bool) -> bool {
        match (predicted, truth) {
            (true, true) => self.hits += 1,
            (true, false) => self.false_alarms += 1,
            (false, true) => self.misses += 1,
            (false, false) => {}
        }
        predicted == truth
    }

    pub fn join(&mut self, other: &Self) {
        self.hits += other.hits;
        self.false_alarms += other.false_alarms;
        self.misses += other.misses;
    }
}

/// The threshold with the highest F1 for a column of probabilities that falls, each with whether its sample has the
/// label: halfway between two neighbours, and of equal F1 the one nearest to a half. `None` without a sample that has the
/// label.
pub(super) fn best_threshold(column: &[(f32, bool)]) -> Option<f32> {
    let positives = column.iter().filter(|(_, own)| *own).count();
    if positives == 0 {
        return None;
    }
    let (mut best, mut hits, mut taken) = (None::<(f64, f32)>, 0, 0);
    for run in column.chunk_by(|a, b| a.0 == b.0) {
        (hits, taken) = (hits + run.iter().filter(|(_, own)| *own).count(), taken + run.len());
        let f1 = 2.0 * hits as f64 / (taken + positives) as f64;
        let next = column.get(taken).map_or(0.0, |next| next.0);
        let threshold = f32::midpoint(run[0].0, next);
        let nearer = |other: f32| (threshold - THRESHOLD).abs() < (other - THRESHOLD).abs();
        if best.is_none_or(|(of_best, other)| f1 > of_best || (f1 == of_best && nearer(other))) {
            best = Some((f1, threshold));
        }
    }
    best.map(|(_, threshold)| threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_have_the_highest_f1() {
        let column = [(0.9, true), (0.8, true), (0.6, false), (0.4, true), (0.1, false)];
        // Taking 4: precision 3/4, recall 1, F1 6/7; taking 2: 1, 2/3, F1 4/5.
        assert_eq!(best_threshold(&column), Some(0.25));
        assert_eq!(best_threshold(&[(0.9, true), (0.1, false)]), Some(0.5));
        // Of ties at one probability all are taken or none.
        assert_eq!(best_threshold(&[(0.7, true), (0.7, false), (0.2, false)]), Some(0.45));
        assert_eq!(best_threshold(&[(0.7, true)]), Some(0.35));
        assert_eq!(best_threshold(&[(0.7, false)]), None);
    }
}
