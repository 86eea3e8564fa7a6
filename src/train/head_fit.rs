//! Gathers features of the training data, and fits a linear head to them.

use crate::data::{Dataset, Subset, folds};
use crate::error::{Error, Result};
use crate::features::{Cut, FeatureCache, FeatureExtractor, FeatureSet};
use crate::ops::with_slice;
use crate::probe::{Classes, Columns, Known, MOST_SIDE, fit, select, targets};
use crate::report::HeadFit;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of the features that a head is fitted to, at most.
const MOST_BYTES: usize = 512 << 20;

/// Bytes of the features of all stages that columns are selected by, at most.
const SELECT_BYTES: usize = 256 << 20;

/// Samples that columns are selected by, at most.
const SELECT_SAMPLES: usize = 1500;

/// Folds of these samples, each of which judges columns that were ranked without it.
const FOLDS: usize = 3;

/// Samples whose features are gathered at a time, where not all are kept.
const CHUNK: usize = 256;

/// A fitted head.
pub(super) struct Fitted {
    /// (classes, kept)
    pub weight: Vec<f64>,
    /// (classes)
    pub bias: Vec<f64>,
    /// The columns that a head over all stages keeps.
    pub columns: Option<Vec<usize>>,
    pub report: HeadFit,
}

/// The training samples, with what makes their features.
pub(super) struct Samples<'a, P> {
    dataset: &'a Arc<dyn Dataset>,
    classes: Classes,
    extractor: &'a FeatureExtractor<'a>,
    cache: &'a FeatureCache,
    seed: u64,
    progress: P,
    seconds: f64,
}

impl<'a, P: FnMut(usize, usize)> Samples<'a, P> {
    /// `progress` gets how many of the samples of a pass have gone through the network.
    pub fn new(
        dataset: &'a Arc<dyn Dataset>,
        extractor: &'a FeatureExtractor<'a>,
        cache: &'a FeatureCache,
        seed: u64,
        progress: P,
    ) -> Result<Self> {
        let classes = Classes::of(dataset.as_ref())?;
        Ok(Self { dataset, classes, extractor, cache, seed, progress, seconds: 0.0 })
    }

    /// Seconds that gathering features took.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// A head over the network's own features.
    pub fn over_features(&mut self) -> Result<Fitted> {
        let cut = [Cut::Boundary(self.extractor.blocks())];
        let width = self.gather(&cut, &[0], None)?.elem_count();
        let indices = self.sample(most(width));
        let x = Columns::new(&self.gather(&cut, &indices, None)?)?;
        let fit = fit(&x, &targets(self.dataset.as_ref(), &indices)?, None)?;
        let report = report(&indices, width, width, fit.known);
        Ok(Fitted { weight: fit.weight, bias: fit.bias, columns: None, report })
    }

    /// A head over the useful columns of all stages.
    pub fn over_stages(&mut self) -> Result<Fitted> {
        let cuts = [Cut::Stages { pooled: 1 }, Cut::Stages { pooled: 4 }];
        let width = self.gather(&cuts, &[0], None)?.elem_count();
        let first = self.sample(SELECT_SAMPLES.min(SELECT_BYTES / (4 * width)).max(1));
        let x = Columns::new(&self.gather(&cuts, &first, None)?)?;
        // Too few samples or groups for folds: nothing tells which columns are useful.
        let part = Subset::over(self.dataset, first.clone())?;
        let folds = folds(&part, FOLDS, self.seed).ok();
        let selection = select(&x, &targets(self.dataset.as_ref(), &first)?, folds.as_deref())?;
        let kept = selection.columns;
        let index = Tensor::from_vec(kept.iter().map(|&c| c as u32).collect::<Vec<_>>(), kept.len(), &Device::Cpu)?;
        let own = x.raw().index_select(&index, 1)?;
        drop(x);
        self.cache.forget_others(None);
        // The samples that the columns were selected by, then the others.
        let known: BTreeSet<usize> = first.iter().copied().collect();
        let others = self.sample(most(kept.len()).max(first.len()));
        let others: Vec<usize> = others.into_iter().filter(|i| !known.contains(i)).collect();
        let all =
            if others.is_empty() { own } else { Tensor::cat(&[own, self.gather(&cuts, &others, Some(&index))?], 0)? };
        let indices = [first, others].concat();
        let fit = fit(&Columns::new(&all)?, &targets(self.dataset.as_ref(), &indices)?, selection.known)?;
        let report = report(&indices, kept.len(), width, fit.known);
        Ok(Fitted { weight: fit.weight, bias: fit.bias, columns: Some(kept), report })
    }

    /// About `most` samples, of each class the same fraction.
    fn sample(&self, most: usize) -> Vec<usize> {
        self.classes.sample(most, self.seed, "head fit").0
    }

    /// The features of samples in one row each, (samples, columns), f32, on the CPU; of the columns `kept` alone where
    /// given.
    fn gather(&mut self, cuts: &[Cut], indices: &[usize], kept: Option<&Tensor>) -> Result<Tensor> {
        let begun = Instant::now();
        // The features after all blocks are small, and a later phase may look for them: they are gathered in one piece.
        let boundary = matches!(cuts, [Cut::Boundary(_)]);
        let chunk = if boundary && !self.cache.is_off() { indices.len().max(1) } else { CHUNK };
        let mut values: Vec<f32> = Vec::new();
        for (k, part) in indices.chunks(chunk).enumerate() {
            let set = self.set(cuts, part, |done, _| (k * chunk + done, indices.len()))?;
            for at in (0..part.len()).collect::<Vec<usize>>().chunks(CHUNK) {
                let outputs: Vec<Tensor> = (0..set.outputs().count())
                    .map(|output| Ok(set.features(output, at, 0)?.flatten_from(1)?.to_device(&Device::Cpu)?))
                    .collect::<Result<_>>()?;
                let all = Tensor::cat(&outputs, 1)?.to_dtype(DType::F32)?;
                let wanted = kept.map_or(Ok(all.clone()), |kept| all.index_select(kept, 1))?;
                if values.is_empty() {
                    values.reserve_exact(wanted.dim(1)? * indices.len());
                }
                with_slice::<f32, _>(&wanted, |rows| {
                    values.extend(rows);
                    Ok(())
                })?;
            }
            drop(set);
            if kept.is_some() {
                // Of all samples they would fill the cache. A shared one keeps them: other runs may look for them.
                self.cache.forget_others(None);
            }
        }
        self.seconds += begun.elapsed().as_secs_f64();
        let width = values.len() / indices.len().max(1);
        Ok(Tensor::from_vec(values, (indices.len(), width), &Device::Cpu)?)
    }

    /// The features, in the cache if that has room.
    fn set(&mut self, cuts: &[Cut], part: &[usize], at: impl Fn(usize, usize) -> (usize, usize)) -> Result<FeatureSet> {
        let progress = &mut self.progress;
        // A cache without room: the features live for the fit alone.
        for cache in [self.cache, &FeatureCache::new().budget(usize::MAX)].into_iter().filter(|cache| !cache.is_off()) {
            let report = |done, total| {
                let (done, total) = at(done, total);
                // One sample tells the number of columns, and is no pass over the data.
                if total > 1 {
                    progress(done, total);
                }
            };
            if let Some(set) = FeatureSet::gather_with(self.dataset, part, 1, self.extractor, cuts, cache, report)? {
                return Ok(set);
            }
        }
        Err(Error::invalid("feature cache", "has no room for the features that the head is fitted to"))
    }
}

fn report(indices: &[usize], kept: usize, columns: usize, known: Known) -> HeadFit {
    let Known { penalty, temperature, top1 } = known;
    let samples = indices.len();
    HeadFit { samples, kept, columns, penalty, temperature, top1, valid_loss: None, valid_top1: None }
}

/// How many samples of features of this width are looked at.
fn most(width: usize) -> usize {
    let by_bytes = MOST_BYTES / (4 * width.max(1));
    if width < MOST_SIDE { by_bytes } else { by_bytes.min(MOST_SIDE) }
}
