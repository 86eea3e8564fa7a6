//! Whether mirrored and cropped views keep their class.

use super::evidence::ViewProbe;
use super::measure::{Sampled, sample};
use crate::backbone::Backbone;
use crate::data::{Augment, Dataset, Loader, Transform};
use crate::error::Result;
use crate::features::{Cut, FeatureCache, FeatureExtractor, FeatureSet};
use crate::fingerprint::Fingerprint;
use crate::probe::{Labels, judge_views, units};
use candle_core::Tensor;
use std::sync::Arc;

/// Compares at most `most` images with views of them, at the stage that recognises the images best by its mean
/// features. `None` for samples that are tensors, which are not augmented.
pub(super) fn measure_views(
    backbone: &Backbone,
    data: &Arc<dyn Dataset>,
    most: usize,
    cache: &FeatureCache,
    workers: Option<usize>,
    seed: u64,
) -> Result<Option<ViewProbe>> {
    if Loader::gives_tensors(data)? {
        return Ok(None);
    }
    let Sampled { indices, classes, size } = sample(data.as_ref(), most, seed)?;
    let labels = Labels { classes, count: size.classes, units: units(data.as_ref(), &indices) };
    let all: Vec<usize> = (0..indices.len()).collect();
    let own = FeatureCache::new();
    let features = |augment: Option<Augment>| -> Result<Vec<Tensor>> {
        let extractor = FeatureExtractor::new(backbone)?;
        let extractor = workers.into_iter().fold(extractor, FeatureExtractor::workers);
        let (extractor, cache) = match &augment {
            Some(augment) => {
                let print = Fingerprint::new("views").number(seed).text(&format!("{augment:?}")).finish();
                let transform = Transform::train(backbone.input_spec(), augment)?;
                (extractor.transform(transform, seed, Some(print)), &own)
            }
            None => (extractor, cache),
        };
        let cuts = [Cut::Stages { pooled: 1 }];
        let set = match FeatureSet::gather(data, &indices, 1, &extractor, &cuts, cache)? {
            Some(set) => Some(set),
            None => FeatureSet::gather(data, &indices, 1, &extractor, &cuts, &own.clone().budget(usize::MAX))?,
        };
        let Some(set) = set else { return Ok(vec![]) };
        (0..set.outputs().count()).map(|output| set.features(output, &all, 0)).collect()
    };
    let plain = features(None)?;
    let judged = |augment: Augment| -> Result<(f64, f64)> {
        let mut best = (0.0, 0.0);
        for (plain, view) in plain.iter().zip(features(Some(augment))?) {
            let verdict = judge_views(&Tensor::cat(&[plain, &view], 0)?, &labels)?;
            // Of equal ones the last.
            if verdict.top1() >= best.0 {
                best = (verdict.top1(), verdict.view_top1());
            }
        }
        Ok(best)
    };
    let (top1, mirrored) = judged(Augment::none().flip(1.0))?;
    let (_, cropped) = judged(Augment::none().crop_scale(0.35, 1.0))?;
    Ok(Some(ViewProbe { samples: indices.len(), top1, mirrored, cropped }))
}
