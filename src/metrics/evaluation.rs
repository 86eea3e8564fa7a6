//! The result of an evaluation.

use super::confusion::Confusion;
use super::interval::wilson_interval;
use super::labels::LabelCounts;
use super::ranking::Ranking;
use super::task::Task;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The result of running a network over labelled data. [`Scores`](crate::Scores) makes it.
///
/// As JSON it also holds the values derived from its counts: `interval`, `largest_class` and every
/// [`Metric`](crate::Metric), such as `top1` and `balanced_accuracy`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Samples whose most probable class is the target's; of lists of labels, those whose labels are all right.
    pub correct: usize,
    /// All samples.
    pub total: usize,
    /// Samples whose logits are not finite: they have no most probable class and count as wrong.
    pub not_finite: usize,
    /// The mean cross entropy in nats, without label smoothing and weights; of lists of labels the mean binary cross entropy
    /// over samples and classes. Not finite if some logits are not.
    pub loss: f64,
    /// How often each class is predicted as which; empty for lists of labels.
    pub confusion: Confusion,
    /// Whether each sample was correct, in the data's order: to compare evaluations sample by sample.
    pub(crate) outcomes: Vec<bool>,
    /// Ranks and calibration; empty in reports of versions that had none.
    pub(crate) ranking: Ranking,
    /// Of each class, for lists of labels.
    pub(crate) labels: Vec<LabelCounts>,
}

/// How well one class is recognised. A figure without samples to divide by is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClassScores {
    /// The class, an index into the labels.
    pub class: u32,
    /// Samples of the class.
    pub samples: usize,
    /// The fraction of the samples predicted as the class that are of it, in [0, 1].
    pub precision: f64,
    /// The fraction of its samples that are predicted as it, in [0, 1].
    pub recall: f64,
    /// The harmonic mean of precision and recall, in [0, 1].
    pub f1: f64,
}

impl Evaluation {
    /// The same without the outcome of each sample.
    pub(crate) fn summary(&self) -> Self {
        Self { outcomes: vec![], ranking: self.ranking.summary(), ..self.clone() }
    }

    /// Whether each sample was correct, in the data's order: to compare two evaluations of the same data sample by sample.
    /// Empty for an evaluation out of a report.
    pub fn outcomes(&self) -> &[bool] {
        &self.outcomes
    }

    /// Whether samples have one class or a list of labels.
    pub fn task(&self) -> Task {
        if self.labels.is_empty() { Task::Classes } else { Task::Labels }
    }

    /// For lists of labels, the threshold of each class with the highest F1 on these samples, or a half for a class that no
    /// sample has; `None` otherwise, and for more than 16 million probabilities.
    pub fn best_thresholds(&self) -> Option<Vec<f32>> {
        self.ranking.thresholds()
    }

    /// The same with the labels counted at their best thresholds instead, if they are known.
    pub(crate) fn at_best_thresholds(mut self) -> Self {
        let Some(thresholds) = self.best_thresholds() else { return self };
        if self.ranking.rows().count() != self.total {
            return self;
        }
        self.labels = vec![LabelCounts::default(); thresholds.len()];
        let labels = &mut self.labels;
        let right = |(row, own): (&[f32], &[bool])| {
            let of = labels.iter_mut().zip(row.iter().zip(&thresholds)).zip(own);
            // Each is counted, also after a wrong one.
            of.fold(true, |right, ((counts, (p, threshold)), &own)| counts.add(p >= threshold, own) && right)
        };
        self.outcomes = self.ranking.rows().map(right).collect();
        self.correct = self.outcomes.iter().filter(|&&right| right).count();
        self.ranking.know(thresholds);
        self
    }

    /// The evaluation of these samples and then those of `other`.
    pub(crate) fn join(mut self, other: &Self) -> Self {
        let total = self.total + other.total;
        self.loss = (self.loss * self.total as f64 + other.loss * other.total as f64) / total.max(1) as f64;
        self.correct += other.correct;
        self.not_finite += other.not_finite;
        self.total = total;
        self.confusion.add_all(&other.confusion);
        self.outcomes.extend_from_slice(&other.outcomes);
        self.ranking.join(&other.ranking);
        self.labels.resize(self.labels.len().max(other.labels.len()), LabelCounts::default());
        self.labels.iter_mut().zip(&other.labels).for_each(|(sum, counts)| sum.join(counts));
        self
    }

    /// Whether all logits and the loss were finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.not_finite == 0
    }

    /// Top-1 accuracy: the fraction of samples whose most probable class is the target's, in [0, 1]. For lists of labels the
    /// exact match ratio: the fraction of samples whose labels are all right.
    pub fn top1(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// The 95 % confidence interval of [`top1`](Self::top1) (Wilson 1927): the accuracy to expect on further data of
    /// this kind. (0, 1) without samples. See [`wilson_interval`].
    pub fn interval(&self) -> (f64, f64) {
        wilson_interval(self.correct, self.total)
    }

    /// Balanced accuracy: the mean recall over the classes, in [0, 1], in which small classes weigh as much as large
    /// ones. Classes without samples are left out.
    pub fn balanced_accuracy(&self) -> f64 {
        if self.task() == Task::Labels {
            let recalls: Vec<f64> = self.per_class().iter().filter(|c| c.samples > 0).map(|c| c.recall).collect();
            return recalls.iter().sum::<f64>() / recalls.len().max(1) as f64;
        }
        let classes = self.confusion.samples();
        let recalls = classes.iter().map(|(&class, &all)| {
            let correct = self.confusion.count(class as usize, class as usize);
            correct as f64 / all as f64
        });
        recalls.sum::<f64>() / classes.len().max(1) as f64
    }

    /// Top-k accuracy: the fraction of samples whose class is among the k most probable ones, in [0, 1]; `None` for k of
    /// 0 or more than 10, for lists of labels, and for an evaluation out of a report that has no ranks.
    pub fn top_k(&self, k: usize) -> Option<f64> {
        let ranks = self.ranking.ranks.get(..k).filter(|ranks| !ranks.is_empty())?;
        Some(ranks.iter().sum::<usize>() as f64 / self.total.max(1) as f64)
    }

    /// Precision, recall and F1 of each class that has samples or predictions.
    ///
    /// ```
    /// use candle_finetune::{Scores, Targets, Task};
    /// use candle_finetune::candle_core::{Device, Tensor};
    ///
    /// let mut scores = Scores::new(Task::Classes);
    /// let logits = Tensor::new(&[[2f32, 0.0], [1.0, 3.0], [0.5, 0.0]], &Device::Cpu)?;
    /// scores.add(&logits, &Targets::Classes(vec![0, 1, 1]))?;
    /// let second = scores.evaluation().per_class()[1];
    /// assert_eq!((second.samples, second.precision, second.recall), (2, 1.0, 0.5));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn per_class(&self) -> Vec<ClassScores> {
        let (samples, predicted, hits) = self.class_counts();
        let classes: BTreeSet<u32> = samples.keys().chain(predicted.keys()).copied().collect();
        let of = |class: u32| {
            let correct = hits(class) as f64;
            let count = |of: &BTreeMap<u32, usize>| of.get(&class).copied().unwrap_or(0);
            let share = |of: usize| if of == 0 { 0.0 } else { correct / of as f64 };
            let (samples, predicted) = (count(&samples), count(&predicted));
            let (precision, recall) = (share(predicted), share(samples));
            let f1 = if correct == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) };
            ClassScores { class, samples, precision, recall, f1 }
        };
        classes.into_iter().map(of).collect()
    }

    /// Samples and predictions of each class that has any, and its right predictions.
    #[allow(clippy::type_complexity)] // two maps and a function, taken apart at once
    fn class_counts(&self) -> (BTreeMap<u32, usize>, BTreeMap<u32, usize>, Box<dyn Fn(u32) -> usize + '_>) {
        if self.task() == Task::Classes {
            let hits = |class: u32| self.confusion.count(class as usize, class as usize);
            return (self.confusion.samples(), self.confusion.predictions(), Box::new(hits));
        }
        let of = |count: fn(&LabelCounts) -> usize| {
            (0u32..).zip(&self.labels).map(|(class, counts)| (class, count(counts))).filter(|(_, n)| *n > 0).collect()
        };
        let hits = |class: u32| self.labels.get(class as usize).map_or(0, |counts| counts.hits);
        (of(|counts| counts.hits + counts.misses), of(|counts| counts.hits + counts.false_alarms), Box::new(hits))
    }

    /// The mean F1 over the classes, in [0, 1].
    pub fn macro_f1(&self) -> f64 {
        self.mean(|scores| scores.f1, |_| 1.0)
    }

    /// The mean F1 over the classes, each weighted by its samples, in [0, 1].
    pub fn weighted_f1(&self) -> f64 {
        self.mean(|scores| scores.f1, |scores| scores.samples as f64)
    }

    /// The mean precision over the classes, in [0, 1].
    pub fn macro_precision(&self) -> f64 {
        self.mean(|scores| scores.precision, |_| 1.0)
    }

    fn mean(&self, value: fn(&ClassScores) -> f64, weight: fn(&ClassScores) -> f64) -> f64 {
        let all = self.per_class();
        let weights: f64 = all.iter().map(weight).sum();
        all.iter().map(|scores| value(scores) * weight(scores)).sum::<f64>() / weights.max(f64::MIN_POSITIVE)
    }

    /// The area under the ROC curve of each class against all others, the mean over the classes, in [0, 1]; `None` for
    /// more than a million probabilities, of lists of labels 16 million, and if some are not finite.
    pub fn roc_auc(&self) -> Option<f64> {
        self.ranking.roc_auc()
    }

    /// The average precision of each class against all others, the mean over the classes, in [0, 1]; `None` as for
    /// [`Evaluation::roc_auc`].
    pub fn average_precision(&self) -> Option<f64> {
        self.ranking.average_precision()
    }

    /// The expected calibration error: the mean distance between the probability of the predicted class and the
    /// accuracy, over 15 bins of that probability (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599), in [0, 1].
    /// NaN without samples, and for lists of labels.
    pub fn calibration_error(&self) -> f64 {
        self.ranking.calibration_error()
    }

    /// The fraction of the most frequent class among the samples, in [0, 1]: the accuracy of always predicting it, with one
    /// class per sample.
    pub fn largest_class(&self) -> f64 {
        let (samples, ..) = self.class_counts();
        let most = samples.into_values().max().unwrap_or(0);
        most as f64 / self.total.max(1) as f64
    }
}

/// `top1 0.9412 144/153`; for lists of labels `exact match 0.4118 63/153, macro F1 0.7012`
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (share, Self { correct, total, .. }) = (self.top1(), self);
        match self.task() {
            Task::Classes => write!(f, "top1 {share:.4} {correct}/{total}"),
            Task::Labels => write!(f, "exact match {share:.4} {correct}/{total}, macro F1 {:.4}", self.macro_f1()),
        }
    }
}
