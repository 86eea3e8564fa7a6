//! Measures a dataset by one pass of a sample through the frozen network.

use super::evidence::{CurvePoint, Evidence, Probe, SizeFigures, StageProbe};
use super::policy::Policy;
use crate::backbone::Backbone;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::features::{Cut, FeatureCache, FeatureExtractor, FeatureSet};
use crate::metrics::Task;
use crate::probe::{Classes, Gram, Labels, units};
use std::sync::Arc;

/// Samples of a class below which a part of the data tells nothing.
const LEAST_OF_PART: usize = 4;

/// The samples that are looked at, in the dataset's order, and the figures of all.
pub(super) struct Sampled {
    pub indices: Vec<usize>,
    pub classes: Vec<u32>,
    pub size: SizeFigures,
}

/// Takes at most `most` samples, of each class the same fraction, at random.
pub(super) fn sample(data: &dyn Dataset, most: usize, seed: u64) -> Result<Sampled> {
    Ok(sample_of(&Classes::of(data)?, most, seed))
}

fn sample_of(classes: &Classes, most: usize, seed: u64) -> Sampled {
    let size = SizeFigures::new(&classes.sizes());
    let (indices, classes) = classes.sample(most, seed, "advice");
    Sampled { indices, classes, size }
}

/// The probes of every stage, on features pooled to one cell and to 4 x 4 cells, of a sample of the data in one pass. The
/// seconds of the whole advice are its caller's.
pub(super) fn measure(
    backbone: &Backbone,
    data: &Arc<dyn Dataset>,
    policy: &Policy,
    cache: &FeatureCache,
    workers: Option<usize>,
    seed: u64,
) -> Result<Evidence> {
    if data.is_empty() {
        return Err(Error::invalid("dataset", "holds no samples; there is nothing to advise on"));
    }
    let task = Task::of_data(data.as_ref())?;
    // One label that some samples have and others do not is enough.
    let known = Classes::of(data.as_ref())?;
    if known.sizes().len() < 2 {
        let problem = match task {
            Task::Classes => format!("has only {} class; at least 2 are needed", data.classes().len()),
            Task::Labels => {
                "has one rarest label for all samples, so nothing tells them apart; choose a strategy".into()
            }
        };
        return Err(Error::invalid("dataset", problem));
    }
    let extractor = FeatureExtractor::new(backbone)?;
    let extractor = workers.into_iter().fold(extractor, FeatureExtractor::workers);
    let cuts = [Cut::Stages { pooled: 1 }, Cut::Stages { pooled: 4 }];
    // One sample tells how many bytes each takes.
    let own = FeatureCache::new();
    let one = FeatureSet::gather(data, &[0], 1, &extractor, &cuts, &own)?.map_or(0, |one| one.bytes());
    let most = policy.sample.min(policy.bytes / one.max(1)).max(1);
    let Sampled { indices, classes, size } = sample_of(&known, most, seed);
    let set = match FeatureSet::gather(data, &indices, 1, &extractor, &cuts, cache)? {
        Some(set) => set,
        // A cache without room: the features live for the advice alone.
        None => FeatureSet::gather(data, &indices, 1, &extractor, &cuts, &own.budget(usize::MAX))?
            .ok_or_else(|| Error::invalid("feature cache", "has no room for the features of the advice"))?,
    };
    let labels = Labels { classes, count: size.classes, units: units(data.as_ref(), &indices) };
    let all: Vec<usize> = (0..indices.len()).collect();
    let judged = |gram: &Gram| -> Result<Probe> { Ok(Probe::new(&gram.ridge(&labels)?, &gram.neighbours(&labels)?)) };
    let mut together: Option<Gram> = None;
    let mut probe = |output: usize| -> Result<Probe> {
        let gram = Gram::new(&set.features(output, &all, 0)?)?;
        together = Some(match &together {
            Some(before) => before.beside(&gram)?,
            None => gram.clone(),
        });
        judged(&gram)
    };
    let names: Vec<String> = set.outputs().map(str::to_string).collect();
    let count = names.len() / cuts.len();
    let stages = names.into_iter().take(count).enumerate();
    let stages = stages
        .map(|(at, stage)| Ok(StageProbe { stage, mean: probe(at)?, grid: probe(count + at)? }))
        .collect::<Result<_>>()?;
    let mut learning_curve = vec![];
    for part in [4, 2] {
        let (some, of_class) = known.sample(indices.len() / part, seed, "advice");
        let rows: Vec<usize> = some.iter().filter_map(|i| indices.binary_search(i).ok()).collect();
        let least = (0..labels.count as u32).map(|class| of_class.iter().filter(|&&of| of == class).count()).min();
        if let (Some(gram), true) = (&together, least >= Some(LEAST_OF_PART)) {
            let top1 = gram.among(&rows)?.ridge(&labels.among(&rows))?.top1();
            learning_curve.push(CurvePoint { samples: rows.len(), top1 });
        }
    }
    let together = together.as_ref().map(judged).transpose()?;
    learning_curve.extend(together.iter().map(|all| CurvePoint { samples: indices.len(), top1: all.ridge }));
    Ok(Evidence { task, size, samples: indices.len(), stages, together, learning_curve, views: None, seconds: 0.0 })
}
