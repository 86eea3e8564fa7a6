//! What the frozen blocks make of every sample, computed once and kept.

use crate::backbone::Network;
use crate::data::{Batch, Dataset, Features, Loader, Targets, batch_end};
use crate::error::Result;
use crate::ops::no_grad;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Features of all samples at the freeze boundary, for each of the fixed views.
pub(super) struct FeatureCache {
    dataset: Arc<dyn Dataset>,
    /// By view, then in batches of `size` samples in the dataset's order.
    views: Vec<Vec<Tensor>>,
    size: usize,
    pub bytes: usize,
    /// The phase of the plan, from 0, that freezes those blocks.
    phase: usize,
}

/// How many samples are computed at a time.
const SIZE: usize = 32;

impl FeatureCache {
    /// Computes the features, unless they would take more than `budget` bytes (`None` then).
    #[allow(clippy::too_many_arguments)] // private, and called in one place
    pub fn compute(
        dataset: &Arc<dyn Dataset>,
        loader: &Loader,
        network: &Network,
        frozen_blocks: usize,
        views: usize,
        budget: usize,
        (device, dtype): (&Device, DType),
        phase: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Option<Self>> {
        let total = dataset.len();
        let mut cache = Self { dataset: dataset.clone(), views: vec![], size: SIZE, bytes: 0, phase };
        let loader = loader.clone().batch_size(SIZE).drop_last(false);
        for view in 0..views {
            let mut parts = Vec::with_capacity(total.div_ceil(SIZE));
            let mut done = view * total;
            for batch in loader.batches((0..total).collect(), view as u64, device)? {
                let batch = batch?;
                let features = no_grad(|| network.prefix(&batch.images.to_dtype(dtype)?, frozen_blocks))?;
                let bytes = features.elem_count() * features.dtype().size_in_bytes();
                if parts.is_empty()
                    && view == 0
                    && (bytes / batch.len().max(1)).saturating_mul(total).saturating_mul(views) > budget
                {
                    return Ok(None);
                }
                cache.bytes += bytes;
                parts.push(features);
                done += batch.len();
                progress(done, total * views);
            }
            cache.views.push(parts);
        }
        Ok(Some(cache))
    }

    /// A batch of features instead of images.
    pub fn batch(&self, indices: &[usize], view: usize, classes: usize, device: &Device) -> Result<Batch> {
        let parts = &self.views[view % self.views.len().max(1)];
        let rows: Vec<Tensor> = indices
            .iter()
            .map(|i| {
                // The last part may hold one sample more than the others.
                let part = (i / self.size).min(parts.len().saturating_sub(1));
                parts[part].narrow(0, i - part * self.size, 1)
            })
            .collect::<candle_core::Result<_>>()?;
        let tensor = Tensor::cat(&rows, 0)?;
        let targets: Vec<_> = indices.iter().map(|&i| self.dataset.target(i)).collect();
        let targets = Targets::join(&targets, classes, |k| self.dataset.name(indices[k]), device)?;
        let images = Tensor::zeros((indices.len(), 0, 0, 0), tensor.dtype(), device)?;
        let features = Some(Features { tensor, phase: self.phase });
        Ok(Batch { images, targets, indices: indices.to_vec(), features })
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
