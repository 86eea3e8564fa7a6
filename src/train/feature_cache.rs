//! What the frozen blocks make of every sample, computed once and kept.

use crate::backbone::Network;
use crate::data::{Batch, Dataset, Loader, Targets};
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
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Option<Self>> {
        let total = dataset.len();
        let mut cache = Self { dataset: dataset.clone(), views: vec![], size: SIZE, bytes: 0 };
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
            .map(|i| parts[i / self.size].narrow(0, i % self.size, 1))
            .collect::<candle_core::Result<_>>()?;
        let features = Tensor::cat(&rows, 0)?;
        let targets: Vec<_> = indices.iter().map(|&i| self.dataset.target(i)).collect();
        let targets = Targets::join(&targets, classes, |k| self.dataset.name(indices[k]), device)?;
        let images = Tensor::zeros((indices.len(), 0, 0, 0), features.dtype(), device)?;
        Ok(Batch { images, targets, indices: indices.to_vec(), features: Some(features) })
    }

    /// All samples in order, in batches.
    pub fn in_order(&self, size: usize) -> impl Iterator<Item = Vec<usize>> {
        let total = self.dataset.len();
        (0..total.div_ceil(size)).map(move |i| (i * size..(i * size + size).min(total)).collect())
    }
}
