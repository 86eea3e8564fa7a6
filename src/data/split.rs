//! Splits and folds, stratified by class, that keep groups together.

use super::strata::strata;
use super::{Dataset, Sample, SampleInfo};
use crate::rng::Seed;
use crate::{Error, Result};
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Some samples of a dataset, in any order. A clone is cheap.
#[derive(Clone)]
pub struct Subset {
    dataset: Arc<dyn Dataset>,
    indices: Arc<[usize]>,
    augment_indices: Arc<[usize]>,
    skipped: Option<usize>,
}

impl Subset {
    /// The samples with these indices, which may repeat.
    ///
    /// # Errors
    /// If an index is not below the dataset's length.
    pub fn new<D: Dataset + Clone + 'static>(dataset: &D, indices: Vec<usize>) -> Result<Self> {
        let skipped = dataset.skipped();
        Self::of(Arc::new(dataset.clone()), indices, skipped)
    }

    /// As [`Subset::new`], of a shared dataset.
    pub(crate) fn over(dataset: &Arc<dyn Dataset>, indices: Vec<usize>) -> Result<Self> {
        Self::of(Arc::clone(dataset), indices, None)
    }

    /// `skipped`: how many of the dataset's skipped samples count here.
    fn of(dataset: Arc<dyn Dataset>, indices: Vec<usize>, skipped: Option<usize>) -> Result<Self> {
        if let Some(i) = indices.iter().find(|&&i| i >= dataset.len()) {
            return Err(Error::invalid("subset", format!("index {i} of a dataset of {} samples", dataset.len())));
        }
        // A repeated sample is augmented differently each time.
        let mut repeats = BTreeMap::new();
        let augment_index = |&i: &usize| {
            let repeat = repeats.entry(i).or_insert(0);
            let index = dataset.info(i).augment_index + *repeat * dataset.len();
            *repeat += 1;
            index
        };
        let augment_indices = indices.iter().map(augment_index).collect();
        Ok(Self { dataset, indices: indices.into(), augment_indices, skipped })
    }

    /// The indices into the whole dataset.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn classes(&self) -> &[String] {
        self.dataset.classes()
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        self.dataset.info(self.indices[i]).augment_index(self.augment_indices[i])
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        self.dataset.sample(self.indices[i])
    }

    fn fingerprint(&self, i: usize) -> Option<u64> {
        self.dataset.fingerprint(self.indices[i])
    }

    /// Those of the whole dataset; of two parts of one split, the first counts them.
    fn skipped(&self) -> Option<usize> {
        self.skipped
    }
}

impl std::fmt::Debug for Subset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subset({} of {})", self.indices.len(), self.dataset.len())
    }
}

/// Splits a dataset in two: about `fraction` of each class go to the second part, say 0.15 for validation.
///
/// Each class of two or more samples is in both parts. Whole groups go to one part or the other, and classes are
/// balanced as well as groups allow. The same seed gives the same parts. A sample with a soft target counts as its most
/// probable class. One with several labels counts as its rarest label alone: the one that the fewest samples have, of
/// equal ones the first. Rare labels are the ones that chance would spread unevenly (Sechidis, Tsoumakas and Vlahavas
/// 2011, "On the Stratification of Multi-Label Data"); the other labels of its samples are not balanced. Samples without
/// labels are balanced among themselves.
///
/// # Errors
/// If `fraction` is not between 0 and 1, or the samples and groups cannot be split.
pub fn split<D: Dataset + Clone + 'static>(dataset: &D, fraction: f64, seed: u64) -> Result<(Subset, Subset)> {
    let (train, valid) = split_indices(dataset, fraction, seed)?;
    let dataset: Arc<dyn Dataset> = Arc::new(dataset.clone());
    both(&dataset, train, valid)
}

/// Splits a dataset `k` times into (train, valid) so that each sample is in exactly one of the validation parts.
///
/// Classes and groups are treated as in [`split`].
///
/// # Errors
/// If `k` is below 2 or above the number of samples and groups, or a fold would be empty.
pub fn k_fold<D: Dataset + Clone + 'static>(dataset: &D, k: usize, seed: u64) -> Result<Vec<(Subset, Subset)>> {
    let folds = folds(dataset, k, seed)?;
    let dataset: Arc<dyn Dataset> = Arc::new(dataset.clone());
    (0..k)
        .map(|fold| {
            let (valid, train): (Vec<usize>, Vec<usize>) = (0..folds.len()).partition(|&i| folds[i] == fold);
            both(&dataset, train, valid)
        })
        .collect()
}

/// Both parts; the first counts the samples that the dataset skipped.
fn both(dataset: &Arc<dyn Dataset>, train: Vec<usize>, valid: Vec<usize>) -> Result<(Subset, Subset)> {
    let train = Subset::of(Arc::clone(dataset), train, dataset.skipped())?;
    Ok((train, Subset::of(Arc::clone(dataset), valid, Some(0))?))
}

/// The indices of both parts, each in ascending order.
pub(super) fn split_indices(dataset: &dyn Dataset, fraction: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Error::invalid("split", format!("a fraction of {fraction}; it must be between 0 and 1")));
    }
    let units = Units::new(dataset, seed);
    let mut in_valid = vec![false; dataset.len()];
    let wanted: Vec<f64> = units.class_sizes.iter().map(|&n| wanted_of(n, fraction)).collect();
    let mut valid = vec![0usize; wanted.len()];
    // How much closer to their targets the classes come if the unit moves to valid; `None` if that uses one of them up.
    let gain = |unit: &Unit, valid: &[usize]| -> Option<f64> {
        let uses_up = unit.counts.iter().any(|&(class, n)| valid[class] + n >= units.class_sizes[class]);
        let closer = |&(class, n): &(usize, usize)| {
            let missing = wanted[class] - valid[class] as f64;
            missing.powi(2) - (missing - n as f64).powi(2)
        };
        (!uses_up).then(|| unit.counts.iter().map(closer).sum())
    };
    for unit in &units.units {
        if gain(unit, &valid).is_some_and(|gain| gain > 0.0) {
            unit.counts.iter().for_each(|&(class, n)| valid[class] += n);
            unit.samples.iter().for_each(|&i| in_valid[i] = true);
        }
    }
    // Where every group is larger than what valid should hold, it holds the one that fits best.
    if !in_valid.contains(&true) {
        let gains = units.units.iter().filter_map(|unit| Some((unit, gain(unit, &valid)?)));
        let best = gains.reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.iter().for_each(|(unit, _)| unit.samples.iter().for_each(|&i| in_valid[i] = true));
    }
    let (valid, train): (Vec<usize>, Vec<usize>) = (0..dataset.len()).partition(|&i| in_valid[i]);
    if valid.is_empty() || train.is_empty() {
        let problem = format!(
            "{} samples in {} groups cannot be split in two; one class needs at least 2",
            dataset.len(),
            units.units.len()
        );
        return Err(Error::invalid("split", problem));
    }
    Ok((train, valid))
}

/// How many of a class of `n` go to valid: the nearest whole number, but neither none nor all.
fn wanted_of(n: usize, fraction: f64) -> f64 {
    if n < 2 { 0.0 } else { (n as f64 * fraction).round().clamp(1.0, n as f64 - 1.0) }
}

/// The fold in which each sample is validated, of `k` folds as those of [`k_fold`].
pub(crate) fn folds(dataset: &dyn Dataset, k: usize, seed: u64) -> Result<Vec<usize>> {
    let units = Units::new(dataset, seed);
    if k < 2 || k > units.units.len() {
        let problem = format!("k is {k}; use 2 to {}, the number of samples or groups", units.units.len());
        return Err(Error::invalid("k_fold", problem));
    }
    let mut folds = vec![0; dataset.len()];
    let mut counts = vec![vec![0usize; units.class_sizes.len()]; k];
    let mut sizes = vec![0usize; k];
    for unit in &units.units {
        // The fold where its classes are rarest so far; of equal ones the smallest.
        let cost = |fold: usize| -> f64 {
            let share = |&(class, n): &(usize, usize)| {
                let before: usize = counts[fold][class];
                n as f64 * (2 * before + n) as f64 / units.class_sizes[class] as f64
            };
            unit.counts.iter().map(share).sum()
        };
        let best = (0..k).min_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(sizes[a].cmp(&sizes[b]))).unwrap_or(0);
        unit.counts.iter().for_each(|&(class, n)| counts[best][class] += n);
        unit.samples.iter().for_each(|&i| folds[i] = best);
        sizes[best] += unit.samples.len();
    }
    if let Some(empty) = sizes.iter().position(|&size| size == 0) {
        return Err(Error::invalid("k_fold", format!("fold {empty} of {k} would be empty; use fewer folds")));
    }
    Ok(folds)
}

/// Samples that stay together: a group, or one ungrouped sample.
struct Unit {
    samples: Vec<usize>,
    /// The number of its samples of each class.
    counts: Vec<(usize, usize)>,
}

struct Units {
    /// Larger ones first, equal ones in random order.
    units: Vec<Unit>,
    /// The number of samples of each stratum; the last is for samples without a class.
    class_sizes: Vec<usize>,
}

impl Units {
    fn new(dataset: &dyn Dataset, seed: u64) -> Self {
        let stratum_of = strata(dataset);
        let mut class_sizes = vec![0; dataset.classes().len() + 1];
        let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let mut units: Vec<Vec<usize>> = Vec::new();
        for (i, &stratum) in stratum_of.iter().enumerate() {
            class_sizes[stratum] += 1;
            match dataset.info(i).group {
                Some(group) => groups.entry(group).or_default().push(i),
                None => units.push(vec![i]),
            }
        }
        units.extend(groups.into_values());
        units.shuffle(&mut Seed(seed).stream("split", &[]));
        units.sort_by_key(|samples| std::cmp::Reverse(samples.len()));
        let units = units
            .into_iter()
            .map(|samples| {
                let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
                for &i in &samples {
                    *counts.entry(stratum_of[i]).or_default() += 1;
                }
                Unit { samples, counts: counts.into_iter().collect() }
            })
            .collect();
        Self { units, class_sizes }
    }
}

#[cfg(test)]
mod tests;
