//! What an evaluation counts.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of running a network over labelled data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evaluation {
    /// Samples whose likeliest class is the right one.
    pub correct: usize,
    /// All samples.
    pub total: usize,
    /// The mean cross entropy in nats, without label smoothing.
    pub loss: f64,
    /// Rows are the true classes, columns the predicted ones; counts.
    pub confusion: Vec<Vec<usize>>,
}

impl Evaluation {
    pub(crate) fn new(classes: usize) -> Self {
        Self { correct: 0, total: 0, loss: 0.0, confusion: vec![vec![0; classes]; classes] }
    }

    /// Counts one sample; `loss` holds the sum until [`Evaluation::close`].
    pub(crate) fn count(&mut self, truth: usize, predicted: usize, loss: f64) {
        self.total += 1;
        self.correct += usize::from(truth == predicted);
        self.loss += loss;
        if let Some(cell) = self.confusion.get_mut(truth).and_then(|row| row.get_mut(predicted)) {
            *cell += 1;
        }
    }

    pub(crate) fn close(mut self) -> Self {
        self.loss /= self.total.max(1) as f64;
        self
    }

    /// The share of samples whose likeliest class is the right one, in [0, 1].
    pub fn top1(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// The mean over the classes of the share of each that is recognised, in [0, 1]: not swayed by large classes.
    pub fn balanced(&self) -> f64 {
        let shares: Vec<f64> = self
            .confusion
            .iter()
            .enumerate()
            .filter_map(|(i, row)| {
                let all: usize = row.iter().sum();
                (all > 0).then(|| row[i] as f64 / all as f64)
            })
            .collect();
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }
}

/// `top1 0.9412 144/153`
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "top1 {:.4} {}/{}", self.top1(), self.correct, self.total)
    }
}
