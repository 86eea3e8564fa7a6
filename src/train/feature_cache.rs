//! What the frozen blocks make of every sample, computed once and kept.

use crate::backbone::Network;
use crate::data::{Batch, Dataset, Features, Loader, Targets, batch_end};
use crate::error::Result;
use crate::ops::no_grad;
use crate::train::feature_file::FeatureFile;
use candle_core::{DType, Device, Tensor};
use std::path::PathBuf;
use std::sync::Arc;

/// How features are kept.
#[derive(Debug, Clone)]
pub(super) struct CacheSettings {
    /// Bytes of memory.
    pub budget: usize,
    /// Where those go that would take more.
    pub dir: Option<PathBuf>,
    /// The type in which they wait, if not their own.
    pub dtype: Option<DType>,
}

/// Features of all samples at the freeze boundary, for each of the fixed views.
pub(super) struct FeatureCache {
    dataset: Arc<dyn Dataset>,
    store: Store,
    views: usize,
    size: usize,
    pub bytes: usize,
    /// The network's own type.
    dtype: DType,
    /// The phase of the plan, from 0, that freezes those blocks.
    phase: usize,
}

enum Store {
    /// By view, then in batches of `size` samples in the dataset's order.
    Memory(Vec<Vec<Tensor>>),
    /// The samples of each view one after the other.
    File(FeatureFile),
}

/// How many samples are computed at a time.
const SIZE: usize = 32;

impl FeatureCache {
    /// Computes the features, unless they would take more than what is left of the budget and there is no folder for
    /// them (`None` then). `taken`: what other features take of it.
    #[allow(clippy::too_many_arguments)] // private, and called in one place
    pub fn compute(
        dataset: &Arc<dyn Dataset>,
        loader: &Loader,
        network: &Network,
        frozen_blocks: usize,
        views: usize,
        (settings, taken): (&CacheSettings, usize),
        (device, dtype): (&Device, DType),
        phase: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Option<Self>> {
        let total = dataset.len();
        let store = Store::Memory(vec![]);
        let mut cache = Self { dataset: dataset.clone(), store, views, size: SIZE, bytes: 0, dtype, phase };
        let loader = loader.clone().batch_size(SIZE).drop_last(false);
        for view in 0..views {
            let mut parts = Vec::with_capacity(total.div_ceil(SIZE));
            let mut done = view * total;
            for batch in loader.batches((0..total).collect(), view as u64, device)? {
                let batch = batch?;
                let features = no_grad(|| network.prefix(&batch.images.to_dtype(dtype)?, frozen_blocks))?;
                let features = features.to_dtype(settings.dtype.unwrap_or(dtype))?;
                let bytes = features.elem_count() * features.dtype().size_in_bytes();
                if done == 0 {
                    let all = (bytes / batch.len().max(1)).saturating_mul(total).saturating_mul(views);
                    match &settings.dir {
                        _ if all <= settings.budget.saturating_sub(taken) => {}
                        Some(dir) => cache.store = Store::File(FeatureFile::create(dir, &features)?),
                        None => return Ok(None),
                    }
                }
                cache.bytes += bytes;
                match &mut cache.store {
                    Store::Memory(_) => parts.push(features),
                    Store::File(file) => file.append(&features)?,
                }
                done += batch.len();
                progress(done, total * views);
            }
            if let Store::Memory(views) = &mut cache.store {
                views.push(parts);
            }
        }
        Ok(Some(cache))
    }

    /// A batch of features instead of images.
    pub fn batch(&self, indices: &[usize], view: usize, classes: usize, device: &Device) -> Result<Batch> {
        let view = view % self.views.max(1);
        let row = |&i: &usize| match &self.store {
            Store::Memory(views) => {
                // The last part may hold one sample more than the others.
                let part = (i / self.size).min(views[view].len().saturating_sub(1));
                Ok(views[view][part].narrow(0, i - part * self.size, 1)?)
            }
            Store::File(file) => file.row(view * self.dataset.len() + i),
        };
        let rows: Vec<Tensor> = indices.iter().map(row).collect::<Result<_>>()?;
        let tensor = Tensor::cat(&rows, 0)?.to_device(device)?.to_dtype(self.dtype)?;
        let targets: Vec<_> = indices.iter().map(|&i| self.dataset.target(i)).collect();
        let targets = Targets::join(&targets, classes, |k| self.dataset.name(indices[k]), device)?;
        let images = Tensor::zeros((indices.len(), 0, 0, 0), tensor.dtype(), device)?;
        let features = Some(Features { tensor, phase: self.phase });
        Ok(Batch { images, targets, indices: indices.to_vec(), features })
    }

    /// Bytes of memory.
    pub fn in_memory(&self) -> usize {
        if matches!(self.store, Store::Memory(_)) { self.bytes } else { 0 }
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
