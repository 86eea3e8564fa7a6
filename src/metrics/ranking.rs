//! What depends on the probabilities of an evaluation and not only on its most probable classes.

use super::float::any_float_option;
use super::labels::{THRESHOLD, best_threshold};
use super::task::Task;
use serde::{Deserialize, Serialize};

/// Ranks that are counted: top-k accuracies are known up to this k.
pub(super) const RANKS: usize = 10;

/// Bins of the confidence.
pub(super) const BINS: usize = 15;

/// Probabilities that are kept for the figures that need all of them, at most: with one class per sample, and with lists
/// of labels, whose thresholds need them.
pub(super) fn most_probabilities(task: Task) -> usize {
    match task {
        Task::Classes => 1 << 20,
        Task::Labels => 1 << 24,
    }
}

/// Ranks, calibration, and the curves over all thresholds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Ranking {
    /// Samples whose class has rank 1, 2, ...
    pub ranks: Vec<usize>,
    /// For each bin of the confidence: samples, the sum of their confidences, and those that are correct.
    pub bins: Vec<(usize, f64, usize)>,
    /// The figures of a summary, which has no probabilities: of each class against all others, the mean over the classes
    /// that have samples and are not all samples.
    #[serde(with = "any_float_option")]
    roc_auc: Option<f64>,
    #[serde(with = "any_float_option")]
    average_precision: Option<f64>,
    /// Of a summary, or where they are known already, for lists of labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thresholds: Option<Vec<f32>>,
    #[serde(skip, default = "All::lost")]
    all: All,
}

/// The probabilities of all samples, row by row, if they are few enough.
#[derive(Debug, Clone, PartialEq, Default)]
struct All {
    classes: usize,
    /// Of each probability, whether the sample is of the class.
    own: Vec<bool>,
    rows: Vec<f32>,
    /// Whether samples have lists of labels.
    labels: bool,
    /// More than are kept, a sample without finite ones, or a summary.
    lost: bool,
}

impl Ranking {
    /// Of an evaluation out of a report that has none.
    pub fn unknown() -> Self {
        Self { all: All::lost(), ..Self::default() }
    }

    /// Adds a sample by its logits, which are finite, and the logarithm of the sum of their exponentials.
    pub fn add(&mut self, truth: usize, logits: &[f64], log_sum: f64) {
        let Some(&own) = logits.get(truth) else { return };
        let before = |(i, &v): (usize, &f64)| v > own || (v == own && i < truth);
        let rank = logits.iter().enumerate().filter(|&other| before(other)).count();
        if self.ranks.is_empty() {
            (self.ranks, self.bins) = (vec![0; RANKS], vec![(0, 0.0, 0); BINS]);
        }
        if let Some(count) = self.ranks.get_mut(rank) {
            *count += 1;
        }
        let confidence = (logits.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v)) - log_sum).exp();
        // Bins are open below and closed above.
        let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
        let (samples, sum, correct) = &mut self.bins[bin];
        (*samples, *sum, *correct) = (*samples + 1, *sum + confidence, *correct + usize::from(rank == 0));
        let row = logits.iter().map(|v| (v - log_sum).exp() as f32);
        let own = (0..logits.len()).map(|class| class == truth);
        self.all.add(own, row, logits.len(), most_probabilities(Task::Classes));
    }

    /// Adds a sample with a list of labels by its probabilities.
    pub fn add_labels(&mut self, truth: &[f32], probabilities: &[f32]) {
        let own = truth.iter().map(|t| *t > 0.5);
        let most = most_probabilities(Task::Labels);
        self.all.add(own, probabilities.iter().copied(), probabilities.len(), most);
        self.all.labels = true;
    }

    /// For lists of labels, the threshold of each class with the highest F1.
    pub fn thresholds(&self) -> Option<Vec<f32>> {
        if self.thresholds.is_some() || !self.all.labels || self.all.lost {
            return self.thresholds.clone();
        }
        Some(self.all.columns().map(|column| best_threshold(&column).unwrap_or(THRESHOLD)).collect())
    }

    /// Keeps the thresholds, which take a sort of all probabilities.
    pub fn know(&mut self, thresholds: Vec<f32>) {
        self.thresholds = Some(thresholds);
    }

    /// The probabilities of each sample with a list of labels, in order, each with whether the sample has the label; none
    /// if they are not known.
    pub fn rows(&self) -> impl Iterator<Item = (&[f32], &[bool])> {
        let classes = self.all.classes.max(1);
        let known = self.all.labels && !self.all.lost;
        self.all.rows.chunks(classes).zip(self.all.own.chunks(classes)).filter(move |_| known)
    }

    /// Notes a sample without finite logits.
    pub fn lose(&mut self) {
        self.all = All::lost();
    }

    /// Computed when it is asked for: a validation after each epoch does not need it.
    pub fn roc_auc(&self) -> Option<f64> {
        self.roc_auc.or_else(|| self.all.mean(roc_auc))
    }

    /// The same.
    pub fn average_precision(&self) -> Option<f64> {
        self.average_precision.or_else(|| self.all.mean(average_precision))
    }

    pub fn join(&mut self, other: &Self) {
        if self.ranks.is_empty() {
            (self.ranks, self.bins) = (other.ranks.clone(), other.bins.clone());
        } else {
            self.ranks.iter_mut().zip(&other.ranks).for_each(|(sum, count)| *sum += count);
            for (sum, bin) in self.bins.iter_mut().zip(&other.bins) {
                *sum = (sum.0 + bin.0, sum.1 + bin.1, sum.2 + bin.2);
            }
        }
        self.all.join(&other.all);
        (self.roc_auc, self.average_precision, self.thresholds) = (None, None, None);
    }

    /// The mean distance of accuracy and confidence over the bins, weighted by their samples.
    pub fn calibration_error(&self) -> f64 {
        let all: usize = self.bins.iter().map(|bin| bin.0).sum();
        let distance = |&(_, sum, correct): &(usize, f64, usize)| (correct as f64 - sum).abs();
        self.bins.iter().map(distance).sum::<f64>() / all as f64
    }

    /// The same without the probabilities.
    pub fn summary(&self) -> Self {
        let (roc_auc, average_precision, thresholds) = (self.roc_auc(), self.average_precision(), self.thresholds());
        let (ranks, bins) = (self.ranks.clone(), self.bins.clone());
        Self { ranks, bins, roc_auc, average_precision, thresholds, all: All::lost() }
    }
}

impl All {
    fn add(&mut self, own: impl Iterator<Item = bool>, row: impl Iterator<Item = f32>, classes: usize, most: usize) {
        if self.lost || self.rows.len() + classes > most {
            *self = Self::lost();
            return;
        }
        self.classes = classes;
        self.own.extend(own);
        self.rows.extend(row);
    }

    fn lost() -> Self {
        Self { lost: true, ..Self::default() }
    }

    fn join(&mut self, other: &Self) {
        let most = most_probabilities(if other.labels { Task::Labels } else { Task::Classes });
        if self.lost || other.lost || self.rows.len() + other.rows.len() > most {
            *self = Self::lost();
            return;
        }
        (self.classes, self.labels) = (other.classes, other.labels);
        self.own.extend(&other.own);
        self.rows.extend(&other.rows);
    }

    /// The probabilities of each class, falling, with whether the sample is of it.
    fn columns(&self) -> impl Iterator<Item = Vec<(f32, bool)>> + '_ {
        (0..self.classes).map(|class| {
            let step = self.classes.max(1);
            let column = self.rows.iter().skip(class).step_by(step).zip(self.own.iter().skip(class).step_by(step));
            let mut column: Vec<(f32, bool)> = column.map(|(&p, &own)| (p, own)).collect();
            column.sort_by(|a, b| b.0.total_cmp(&a.0));
            column
        })
    }

    /// The mean of a figure of each class against all others.
    fn mean(&self, figure: fn(&[(f32, bool)]) -> Option<f64>) -> Option<f64> {
        let figures: Vec<f64> = self.columns().filter_map(|column| figure(&column)).collect();
        let count = figures.len();
        (count > 0).then(|| figures.into_iter().sum::<f64>() / count as f64)
    }
}

/// Runs of equal scores of a column that falls: positives and all of each.
fn runs(column: &[(f32, bool)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    column.chunk_by(|a, b| a.0 == b.0).map(|run| (run.iter().filter(|(_, own)| *own).count() as f64, run.len() as f64))
}

/// The probability that a sample of the class scores higher than another, with ties as halves (Hanley and McNeil 1982).
fn roc_auc(column: &[(f32, bool)]) -> Option<f64> {
    let positives = column.iter().filter(|(_, own)| *own).count() as f64;
    let negatives = column.len() as f64 - positives;
    let (mut above, mut area) = (0.0, 0.0);
    for (own, all) in runs(column) {
        area += (all - own) * (above + own / 2.0);
        above += own;
    }
    (positives > 0.0 && negatives > 0.0).then(|| area / positives / negatives)
}

/// The mean precision over the samples of the class, each at its own threshold.
fn average_precision(column: &[(f32, bool)]) -> Option<f64> {
    let positives = column.iter().filter(|(_, own)| *own).count() as f64;
    let (mut above, mut taken, mut sum) = (0.0, 0.0, 0.0);
    for (own, all) in runs(column) {
        (above, taken) = (above + own, taken + all);
        sum += own * above / taken;
    }
    (positives > 0.0).then(|| sum / positives)
}
