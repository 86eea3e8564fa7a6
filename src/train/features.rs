//! The features that one phase trains or validates on.

use super::feature_cache::{FeatureCache, Row, RowKey};
use crate::backbone::Network;
use crate::data::{Batch, Dataset, Features, Loader, Targets, batch_end};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::ops::{is_finite, no_grad};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Features of all samples at the freeze boundary, for each of the fixed views.
pub(super) struct KeptFeatures {
    dataset: Arc<dyn Dataset>,
    /// By view, then in the dataset's order.
    rows: Vec<Row>,
    views: usize,
    /// The network's own type.
    dtype: DType,
    /// The phase of the plan, from 0, that freezes those blocks.
    phase: usize,
}

/// What makes features of samples.
pub(super) struct Maker<'a> {
    pub loader: &'a Loader,
    pub network: &'a Network,
    pub frozen_blocks: usize,
    /// Blocks, weights and input, as a number.
    pub made: u64,
    pub dtype: DType,
    pub device: &'a Device,
    /// The phase of the plan, from 0.
    pub phase: usize,
    /// Whether features that are not finite are an error, since nothing can be learnt from them. A validation counts
    /// them.
    pub must_be_finite: bool,
}

/// How many samples are computed at a time.
const SIZE: usize = 32;

impl KeptFeatures {
    /// Looks for the features in `cache` and computes what is missing; `None` if there is no room for that. With
    /// `chance`, the number that stands for it, each view is another one.
    pub fn gather(
        dataset: &Arc<dyn Dataset>,
        maker: &Maker<'_>,
        cache: &FeatureCache,
        (views, chance): (usize, Option<u64>),
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Option<Self>> {
        let total = dataset.len();
        let prints: Vec<Option<u64>> = (0..total).map(|i| dataset.fingerprint(i)).collect();
        let key = |at: usize| {
            let (view, i) = (at / total, at % total);
            let random = |chance| Fingerprint::new("view").number(chance).numbers(&[view, dataset.origin(i)]).finish();
            let view = chance.map_or(0, random);
            Some(RowKey { made: maker.made, of: prints[i]?, view })
        };
        let keys: Vec<Option<RowKey>> = (0..total * views).map(key).collect();
        let mut rows = cache.find(&keys);
        let missing: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_none()).collect();
        let loader = maker.loader.clone().batch_size(SIZE).drop_last(false);
        let mut part = None;
        let mut done = 0;
        for view in missing.chunk_by(|a, b| a / total == b / total) {
            let order = view.iter().map(|at| at % total).collect();
            for batch in loader.batches(order, (view[0] / total) as u64, maker.device)? {
                let batch = batch?;
                let images = batch.images.to_dtype(maker.dtype)?;
                let features = no_grad(|| maker.network.prefix(&images, maker.frozen_blocks))?;
                let stored = features.to_dtype(cache.stored(maker.dtype))?;
                if maker.must_be_finite {
                    check_finite(&features, &stored, dataset.as_ref(), &batch.indices)?;
                }
                let features = stored;
                if part.is_none() {
                    let row = features.elem_count() / batch.len().max(1) * features.dtype().size_in_bytes();
                    part = cache.room(&features, row.saturating_mul(missing.len()))?;
                }
                let Some(part) = &mut part else { return Ok(None) };
                part.append(features)?;
                done += batch.len();
                progress(done, missing.len());
            }
        }
        if let Some(part) = part {
            let keys: Vec<_> = missing.iter().map(|&at| keys[at]).collect();
            let part = cache.keep(part, &keys);
            for (number, at) in missing.into_iter().enumerate() {
                rows[at] = Some(Row { part: Arc::clone(&part), number });
            }
        }
        let rows = rows.into_iter().flatten().collect();
        Ok(Some(Self { dataset: dataset.clone(), rows, views, dtype: maker.dtype, phase: maker.phase }))
    }

    /// A batch of features instead of images.
    pub fn batch(&self, indices: &[usize], view: usize, classes: usize, device: &Device) -> Result<Batch> {
        let first = view % self.views.max(1) * self.dataset.len();
        // Some rows may lie in memory and others in a file, which keeps half precision as f32, on the CPU.
        let row = |i: &usize| Ok(self.rows[first + i].tensor()?.to_device(device)?.to_dtype(self.dtype)?);
        let rows: Vec<Tensor> = indices.iter().map(row).collect::<Result<_>>()?;
        let tensor = Tensor::cat(&rows, 0)?;
        let targets: Vec<_> = indices.iter().map(|&i| self.dataset.target(i)).collect();
        let targets = Targets::join(&targets, classes, |k| self.dataset.name(indices[k]), device)?;
        let images = Tensor::zeros((indices.len(), 0, 0, 0), tensor.dtype(), device)?;
        let features = Some(Features { tensor, phase: self.phase });
        Ok(Batch { images, targets, indices: indices.to_vec(), features })
    }

    /// Bytes of all rows, wherever they lie.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(Row::bytes).sum()
    }

    /// All samples in order, in the loader's batches: other ones might round differently.
    pub fn in_order(&self, size: usize) -> impl Iterator<Item = Vec<usize>> {
        let (total, mut from) = (self.dataset.len(), 0);
        std::iter::from_fn(move || {
            let end = batch_end(from, total, size);
            let indices: Vec<usize> = (from..end).collect();
            from = end;
            (!indices.is_empty()).then_some(indices)
        })
    }
}

/// Refuses features that nothing can be learnt from: not finite as computed, or as cached in a narrower type.
fn check_finite(computed: &Tensor, stored: &Tensor, dataset: &dyn Dataset, indices: &[usize]) -> Result<()> {
    if is_finite(stored)? {
        return Ok(());
    }
    if is_finite(computed)? {
        let problem = format!("{:?} cannot hold these features, which are too large; use BF16 or F32", stored.dtype());
        return Err(Error::invalid("feature cache's dtype", problem));
    }
    for (row, &i) in indices.iter().enumerate() {
        if !is_finite(&computed.get(row)?)? {
            return Err(Error::NotFinite {
                what: format!("the features of the frozen blocks for {}", dataset.name(i)),
            });
        }
    }
    Ok(())
}
