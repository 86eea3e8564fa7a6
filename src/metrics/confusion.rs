//! The confusion matrix, sparse.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The confusion matrix: how often samples of one class were predicted as another. It holds the cells that are not
/// zero, since with tens of thousands of classes the whole table would take gigabytes.
///
/// As JSON it is a list of `[true class, predicted class, count]`, with `null` as the class of samples without a
/// prediction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<Cell>", from = "Vec<Cell>")]
pub struct Confusion {
    cells: BTreeMap<(u32, Option<u32>), usize>,
}

/// True class, predicted class, count.
type Cell = (u32, Option<u32>, usize);

impl Confusion {
    pub(super) fn add(&mut self, truth: usize, predicted: usize) {
        *self.cells.entry((truth as u32, Some(predicted as u32))).or_default() += 1;
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        other.cells.iter().for_each(|(cell, count)| *self.cells.entry(*cell).or_default() += count);
    }

    /// A sample whose logits are not finite.
    pub(super) fn add_unpredicted(&mut self, truth: usize) {
        *self.cells.entry((truth as u32, None)).or_default() += 1;
    }

    /// How many samples of class `truth` were predicted as class `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> usize {
        self.cells.get(&(truth as u32, Some(predicted as u32))).copied().unwrap_or(0)
    }

    /// The cells that are not zero, as (true class, predicted class, count), in the order of the classes.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, usize)> + '_ {
        self.cells.iter().filter_map(|(&(truth, predicted), &count)| Some((truth, predicted?, count)))
    }

    /// How many samples are predicted as each class, of the classes that are predicted at all.
    pub fn predictions(&self) -> BTreeMap<u32, usize> {
        let mut predictions = BTreeMap::new();
        for (&(_, predicted), &count) in &self.cells {
            if let Some(predicted) = predicted {
                *predictions.entry(predicted).or_default() += count;
            }
        }
        predictions
    }

    /// How many samples of each true class there are, of the classes that have any.
    pub fn samples(&self) -> BTreeMap<u32, usize> {
        let mut samples = BTreeMap::new();
        for (&(truth, _), &count) in &self.cells {
            *samples.entry(truth).or_default() += count;
        }
        samples
    }
}

impl From<Confusion> for Vec<Cell> {
    fn from(confusion: Confusion) -> Self {
        confusion.cells.into_iter().map(|((truth, predicted), count)| (truth, predicted, count)).collect()
    }
}

impl From<Vec<Cell>> for Confusion {
    fn from(cells: Vec<Cell>) -> Self {
        Self { cells: cells.into_iter().map(|(truth, predicted, count)| ((truth, predicted), count)).collect() }
    }
}
