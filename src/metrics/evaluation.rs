//! The result of an evaluation.

use super::confusion::Confusion;
use super::interval::wilson_interval;
use std::fmt;

/// The result of running a network over labelled data. [`Scores`](crate::Scores) makes it.
///
/// As JSON it also holds the values derived from its counts: `interval`, `largest_class` and every
/// [`Metric`](crate::Metric), such as `top1` and `balanced_accuracy`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// Samples whose most probable class is the target's.
    pub correct: usize,
    /// All samples.
    pub total: usize,
    /// Samples whose logits are not finite: they have no most probable class and count as wrong.
    pub not_finite: usize,
    /// The mean cross entropy in nats, without label smoothing. Not finite if some logits are not.
    pub loss: f64,
    /// How often each class is predicted as which.
    pub confusion: Confusion,
    /// Whether each sample was correct, in the data's order: to compare evaluations sample by sample.
    pub(crate) outcomes: Vec<bool>,
}

impl Evaluation {
    /// The same without the outcome of each sample.
    pub(crate) fn summary(&self) -> Self {
        Self { outcomes: vec![], ..self.clone() }
    }

    /// Whether each sample was correct, in the data's order: to compare two evaluations of the same data sample by sample.
    /// Empty for an evaluation out of a report.
    pub fn outcomes(&self) -> &[bool] {
        &self.outcomes
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
        self
    }

    /// Whether all logits and the loss were finite.
    pub(crate) fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.not_finite == 0
    }

    /// Top-1 accuracy: the fraction of samples whose most probable class is the target's, in [0, 1].
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
        let classes = self.confusion.samples();
        let recalls = classes.iter().map(|(&class, &all)| {
            let correct = self.confusion.count(class as usize, class as usize);
            correct as f64 / all as f64
        });
        recalls.sum::<f64>() / classes.len().max(1) as f64
    }

    /// The fraction of the most frequent class among the samples, in [0, 1]: the accuracy of always predicting it.
    pub fn largest_class(&self) -> f64 {
        let most = self.confusion.samples().into_values().max().unwrap_or(0);
        most as f64 / self.total.max(1) as f64
    }
}

/// `top1 0.9412 144/153`
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "top1 {:.4} {}/{}", self.top1(), self.correct, self.total)
    }
}
