//! Accumulates an evaluation batch by batch.

use super::confusion::Confusion;
use super::evaluation::Evaluation;
use super::labels::{LabelCounts, THRESHOLD, binary_cross_entropy};
use super::ranking::Ranking;
use super::task::Task;
use crate::data::{Targets, largest};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Collects the outcome of each sample, batch by batch, into an [`Evaluation`]: for a custom evaluation, say one that
/// averages the logits of several views.
///
/// ```
/// use candle_finetune::{Metric, Scores, Targets, Task};
/// use candle_finetune::candle_core::{Device, Tensor};
///
/// let mut scores = Scores::new(Task::Classes);
/// let logits = Tensor::new(&[[2f32, 0.0], [1.0, 3.0], [0.5, 0.0]], &Device::Cpu)?;
/// scores.add(&logits, &Targets::Classes(vec![0, 1, 1]))?;
/// let evaluation = scores.evaluation();
/// assert_eq!(evaluation.to_string(), "top1 0.6667 2/3");
/// assert_eq!(Metric::BalancedAccuracy.value(&evaluation), 0.75);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Scores {
    task: Task,
    correct: usize,
    not_finite: usize,
    loss_sum: f64,
    confusion: Confusion,
    outcomes: Vec<bool>,
    ranking: Ranking,
    /// Of each class, for lists of labels.
    labels: Vec<LabelCounts>,
    /// The probability from which each label counts as predicted; a half, if there are none.
    thresholds: Vec<f32>,
}

impl Scores {
    /// Without samples.
    pub fn new(task: Task) -> Self {
        let (confusion, ranking) = (Confusion::default(), Ranking::default());
        let (outcomes, labels, thresholds) = (vec![], vec![], vec![]);
        Self { task, correct: 0, not_finite: 0, loss_sum: 0.0, confusion, outcomes, ranking, labels, thresholds }
    }

    /// Sets the probability from which each label counts as predicted, one per class, for [`Task::Labels`]. By default it
    /// is a half.
    pub fn thresholds(mut self, thresholds: Vec<f32>) -> Self {
        self.thresholds = thresholds;
        self
    }

    /// Adds a batch: for each sample the loss in f64 and whether it is correct. With one class per sample that is the cross
    /// entropy -sum(t log softmax(logits)), and whether the most probable class is the target's; with lists of labels the
    /// mean binary cross entropy over the classes, and whether every label is right. Logits (N, classes) that are not
    /// finite predict nothing.
    ///
    /// # Errors
    /// If the targets belong to another task ([`Task::of`]), there are not as many as rows of logits, or not as many
    /// thresholds as classes.
    pub fn add(&mut self, logits: &Tensor, targets: &Targets) -> Result<()> {
        let (n, classes) = logits.dims2()?;
        self.task.check(targets)?;
        if n != targets.len() {
            return Err(Error::invalid("scores", format!("{n} rows of logits and {} targets", targets.len())));
        }
        let rows = logits.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let truths = targets.dense(classes, &Device::Cpu)?.to_vec2::<f32>()?;
        if self.task == Task::Labels {
            return self.add_labels(&rows, &truths, classes);
        }
        for ((row, truth), class) in rows.iter().zip(&truths).zip(targets.classes()?) {
            let most = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
            let log_sum = row.iter().map(|v| (v - most).exp()).sum::<f64>().ln() + most;
            let weighted = row.iter().zip(truth).filter(|(_, t)| **t != 0.0);
            let loss = weighted.map(|(v, &t)| f64::from(t) * (log_sum - v)).sum();
            let predicted = row.iter().all(|v| v.is_finite()).then(|| largest(row));
            match predicted {
                Some(_) => self.ranking.add(class as usize, row, log_sum),
                None => self.ranking.lose(),
            }
            self.count(class as usize, predicted, if predicted.is_some() { loss } else { f64::NAN });
        }
        Ok(())
    }

    fn add_labels(&mut self, rows: &[Vec<f64>], truths: &[Vec<f32>], classes: usize) -> Result<()> {
        if self.thresholds.is_empty() {
            self.thresholds = vec![THRESHOLD; classes];
        }
        if self.thresholds.len() != classes {
            let problem = format!("{} for {classes} classes; give one per class", self.thresholds.len());
            return Err(Error::invalid("thresholds", problem));
        }
        self.labels.resize(classes, LabelCounts::default());
        for (row, truth) in rows.iter().zip(truths) {
            let finite = row.iter().all(|v| v.is_finite());
            let probabilities: Vec<f32> = row.iter().map(|v| (1.0 / (1.0 + (-v).exp())) as f32).collect();
            let mut all_right = finite;
            for (c, counts) in self.labels.iter_mut().enumerate() {
                let predicted = finite && probabilities[c] >= self.thresholds[c];
                all_right &= counts.add(predicted, truth[c] > 0.5);
            }
            if finite {
                let term = |(x, t): (&f64, &f32)| binary_cross_entropy(*x, (*t).into());
                self.loss_sum += row.iter().zip(truth).map(term).sum::<f64>() / classes as f64;
                self.ranking.add_labels(truth, &probabilities);
            } else {
                self.loss_sum += f64::NAN;
                self.not_finite += 1;
                self.ranking.lose();
            }
            self.correct += usize::from(all_right);
            self.outcomes.push(all_right);
        }
        Ok(())
    }

    /// Adds one sample; `predicted` is `None` where the logits are not finite.
    pub(crate) fn count(&mut self, truth: usize, predicted: Option<usize>, loss: f64) {
        self.loss_sum += loss;
        self.outcomes.push(predicted == Some(truth));
        match predicted {
            Some(predicted) => {
                self.correct += usize::from(truth == predicted);
                self.confusion.add(truth, predicted);
            }
            None => {
                self.not_finite += 1;
                self.confusion.add_unpredicted(truth);
            }
        }
    }

    /// The evaluation of all samples added.
    pub fn evaluation(self) -> Evaluation {
        let Self { task: _, correct, not_finite, loss_sum, confusion, outcomes, ranking, labels, thresholds: _ } = self;
        let total = outcomes.len();
        let loss = loss_sum / total.max(1) as f64;
        Evaluation { correct, total, not_finite, loss, confusion, outcomes, ranking, labels }
    }
}
