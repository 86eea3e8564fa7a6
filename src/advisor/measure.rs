//! Measures a dataset by one pass of a sample through the frozen network.

use super::evidence::{Evidence, Probe, SizeFigures, StageProbe};
use super::policy::Policy;
use crate::backbone::Backbone;
use crate::data::{Dataset, Target, largest};
use crate::error::{Error, Result};
use crate::features::{Cut, FeatureCache, FeatureExtractor, FeatureSet};
use crate::probe::{Gram, Labels};
use crate::rng::Seed;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// The samples that are looked at, in the dataset's order, and the figures of all.
pub(super) struct Sampled {
    pub indices: Vec<usize>,
    pub classes: Vec<u32>,
    pub size: SizeFigures,
}

/// Takes at most `most` samples, of each class the same fraction, at random.
pub(super) fn sample(data: &dyn Dataset, most: usize, seed: u64) -> Result<Sampled> {
    let count = data.classes().len();
    let mut of_class: Vec<Vec<usize>> = vec![vec![]; count];
    for i in 0..data.len() {
        let info = data.info(i);
        let class = match &info.target {
            Target::Class(class) => *class as usize,
            Target::Soft(p) => largest(p),
            Target::Labels(_) => {
                let problem = "its samples have label sets, which the advisor cannot judge; choose a strategy yourself";
                return Err(Error::invalid("dataset", problem));
            }
        };
        let Some(members) = of_class.get_mut(class) else {
            return Err(Error::LabelOutOfRange { sample: info.to_string(), label: class as u64, classes: count });
        };
        members.push(i);
    }
    let sizes: Vec<usize> = of_class.iter().map(Vec::len).collect();
    let size = SizeFigures::new(&sizes);
    let fraction = (most as f64 / data.len().max(1) as f64).min(1.0);
    let mut taken: Vec<(usize, u32)> = vec![];
    for (class, mut members) in of_class.into_iter().enumerate() {
        // At least two, where there are two: one to learn from and one to judge.
        let wanted = (members.len() as f64 * fraction).round() as usize;
        members.shuffle(&mut Seed(seed).stream("advice", &[class as u64]));
        members.truncate(wanted.max(2));
        taken.extend(members.into_iter().map(|i| (i, class as u32)));
    }
    taken.sort_unstable();
    let (indices, classes) = taken.into_iter().unzip();
    Ok(Sampled { indices, classes, size })
}

/// The rows that are left out together: the samples of a group, or one sample.
fn units(data: &dyn Dataset, indices: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut units = vec![];
    for (row, &i) in indices.iter().enumerate() {
        match data.info(i).group {
            Some(group) => groups.entry(group).or_default().push(row),
            None => units.push(vec![row]),
        }
    }
    units.extend(groups.into_values());
    units
}

/// The probes of every stage, on features pooled to one cell and to 4 x 4 cells, of a sample of the data in one pass.
pub(super) fn measure(
    backbone: &Backbone,
    data: &Arc<dyn Dataset>,
    policy: &Policy,
    cache: &FeatureCache,
    workers: Option<usize>,
    seed: u64,
) -> Result<Evidence> {
    let begun = Instant::now();
    if data.is_empty() {
        return Err(Error::invalid("dataset", "holds no samples; there is nothing to advise on"));
    }
    if data.classes().len() < 2 {
        let problem = format!("has only {} class; at least 2 are needed", data.classes().len());
        return Err(Error::invalid("dataset", problem));
    }
    let extractor = FeatureExtractor::new(backbone)?;
    let extractor = workers.into_iter().fold(extractor, FeatureExtractor::workers);
    let cuts = [Cut::Stages { pooled: 1 }, Cut::Stages { pooled: 4 }];
    // One sample tells how many bytes each takes.
    let own = FeatureCache::new();
    let one = FeatureSet::gather(data, &[0], 1, &extractor, &cuts, &own)?.map_or(0, |one| one.bytes());
    let most = policy.sample.min(policy.bytes / one.max(1)).max(1);
    let Sampled { indices, classes, size } = sample(data.as_ref(), most, seed)?;
    let set = match FeatureSet::gather(data, &indices, 1, &extractor, &cuts, cache)? {
        Some(set) => set,
        // A cache without room: the features live for the advice alone.
        None => FeatureSet::gather(data, &indices, 1, &extractor, &cuts, &own.budget(usize::MAX))?
            .ok_or_else(|| Error::invalid("feature cache", "has no room for the features of the advice"))?,
    };
    let labels = Labels { classes, count: data.classes().len(), units: units(data.as_ref(), &indices) };
    let all: Vec<usize> = (0..indices.len()).collect();
    let probe = |output: usize| -> Result<Probe> {
        let gram = Gram::new(&set.features(output, &all, 0)?)?;
        Ok(Probe::new(&gram.ridge(&labels)?, &gram.neighbours(&labels)?))
    };
    let names: Vec<String> = set.outputs().map(str::to_string).collect();
    let count = names.len() / cuts.len();
    let stages = names.into_iter().take(count).enumerate();
    let stages = stages
        .map(|(at, stage)| Ok(StageProbe { stage, mean: probe(at)?, grid: probe(count + at)? }))
        .collect::<Result<_>>()?;
    Ok(Evidence { size, samples: indices.len(), stages, seconds: begun.elapsed().as_secs_f64() })
}
