//! What frozen blocks make of samples, computed once and kept for whoever asks again.

use super::feature_file::FeatureFile;
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Where the features of frozen blocks are kept, so that each image passes those blocks once instead of once an epoch.
///
/// A clone shares what is kept: give one cache to several runs, folds or strategies, and each sample's features are
/// computed by the first that needs them. They are found again by the bytes of the frozen weights, the cut, the
/// [`InputSpec`](crate::InputSpec), the view where views are random, and
/// [`Dataset::fingerprint`](crate::Dataset::fingerprint); samples without a fingerprint are kept for one phase of one
/// run. What is trained on kept features ends in the same bytes as without them.
///
/// Without a cache of its own a [`FineTuner`](crate::FineTuner) makes one, which goes with the phase. One that you hold
/// goes with its last clone; until then its features stay in memory, up to the budget, the oldest making room.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{DType, Device, Tensor}};
/// use candle_finetune::{FeatureCache, FineTuner, Strategy, k_fold};
///
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let data = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// let cache = FeatureCache::new().budget(1 << 30).dtype(DType::F16);
/// # let mut plan = Strategy::SmallSimilar.plan(&backbone, 6);
/// # plan.phases.iter_mut().for_each(|p| p.epochs = 1);
/// for (train, valid) in k_fold(&data, 4, 42)? {
///     let tuner = FineTuner::new(backbone.clone()).strategy(Strategy::SmallSimilar).cache(&cache);
///     # let tuner = tuner.plan(plan.clone());
///     println!("{}", tuner.fit(&train, &valid)?.report);
/// }
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct FeatureCache {
    budget: usize,
    dir: Option<PathBuf>,
    dtype: Option<DType>,
    kept: Arc<Mutex<Kept>>,
    /// Bytes of room that was given and is not filled yet.
    promised: Arc<AtomicUsize>,
}

/// Bytes of memory that features may take unless something else is said.
const BUDGET: usize = 2 << 30;

impl Default for FeatureCache {
    fn default() -> Self {
        Self::new()
    }
}

impl FeatureCache {
    /// In memory, 2 GiB at most.
    pub fn new() -> Self {
        Self { budget: BUDGET, dir: None, dtype: None, kept: Arc::default(), promised: Arc::default() }
    }

    /// Nothing is kept: frozen blocks compute anew in every epoch.
    pub fn off() -> Self {
        Self::new().budget(0)
    }

    /// Sets how many bytes of memory features may take. Features that would take more go to [`FeatureCache::dir`], or
    /// without one are computed anew in every epoch.
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Sets the folder for features that exceed the budget: files there, which go with the features. The folder is
    /// made if it is not there. Training fails with [`Error::Io`] if a file cannot be written.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_path_buf());
        self
    }

    /// Sets the type in which features wait: `DType::F16` or `DType::BF16` take half of the memory, and round. By
    /// default it is the network's own. A session refuses other types than these, `F32` and `F64`.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Bytes of memory that features take now.
    pub fn in_memory(&self) -> usize {
        self.lock().in_memory()
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.dtype {
            None | Some(DType::F16 | DType::BF16 | DType::F32 | DType::F64) => Ok(()),
            Some(dtype) => {
                let problem = format!("{dtype:?} cannot hold features; F16, BF16, F32 and F64 can");
                Err(Error::invalid("feature cache's dtype", problem))
            }
        }
    }

    /// Whether it can keep anything at all.
    pub(super) fn is_off(&self) -> bool {
        self.budget == 0 && self.dir.is_none()
    }

    /// The type in which features wait, of a network that computes in `dtype`.
    pub(super) fn stored(&self, dtype: DType) -> DType {
        self.dtype.unwrap_or(dtype)
    }

    /// Room for rows like those of `sample`, of `bytes` in all: in memory, in a file, or not at all.
    pub(super) fn room(&self, sample: &Tensor, bytes: usize) -> Result<Option<Part>> {
        let mut kept = self.lock();
        let others = self.promised.load(Ordering::SeqCst);
        if kept.make_room(bytes.saturating_add(others), self.budget) {
            self.promised.fetch_add(bytes, Ordering::SeqCst);
            let promised = Some(Promise { to: Arc::clone(&self.promised), bytes });
            let store = Store::Memory { parts: vec![], starts: vec![] };
            return Ok(Some(Part { store, rows: 0, bytes: 0, promised }));
        }
        drop(kept);
        let Some(dir) = &self.dir else { return Ok(None) };
        let store = Store::File(FeatureFile::create(dir, sample)?);
        Ok(Some(Part { store, rows: 0, bytes: 0, promised: None }))
    }

    /// Takes what was computed. Row k is found again by `keys[k]`, where there is one.
    pub(super) fn keep(&self, mut part: Part, keys: &[Option<RowKey>]) -> Arc<Part> {
        let mut kept = self.lock();
        part.promised = None;
        let part = Arc::new(part);
        kept.alive.retain(|part| part.strong_count() > 0);
        kept.alive.push(Arc::downgrade(&part));
        let mut found_by = 0;
        for (row, key) in keys.iter().enumerate() {
            let Some(key) = key else { continue };
            // Another run may have been as quick; its row is the same, and stays.
            let old = kept.rows.get(key).is_some_and(|(part, _)| part.strong_count() > 0);
            if !old {
                kept.rows.insert(*key, (Arc::downgrade(&part), row));
                found_by += 1;
            }
        }
        if found_by > 0 {
            kept.held.push(Arc::clone(&part));
        }
        part
    }

    /// The rows that are there.
    pub(super) fn find(&self, keys: &[Option<RowKey>]) -> Vec<Option<Row>> {
        let mut kept = self.lock();
        let found: Vec<Option<Row>> = keys
            .iter()
            .map(|key| {
                let (part, number) = kept.rows.get(key.as_ref()?)?;
                Some(Row { part: part.upgrade()?, number: *number })
            })
            .collect();
        // What was used last goes last.
        kept.held.sort_by_cached_key(|part| found.iter().flatten().any(|row| Arc::ptr_eq(&row.part, part)));
        found
    }

    /// Forgets what other blocks or weights than `made` made, if nobody else holds this cache.
    pub(super) fn forget_others(&self, made: Option<u64>) {
        if Arc::strong_count(&self.kept) > 1 {
            return;
        }
        let mut kept = self.lock();
        kept.rows.retain(|key, _| Some(key.made) == made);
        let used: Vec<*const Part> = kept.rows.values().map(|(part, _)| part.as_ptr()).collect();
        kept.held.retain(|part| used.contains(&Arc::as_ptr(part)));
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for FeatureCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kept = self.lock();
        write!(f, "FeatureCache({} samples, {} of {} bytes)", kept.rows.len(), kept.in_memory(), self.budget)
    }
}

/// What a row of features was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RowKey {
    /// The blocks, their weights, and what an image becomes before them.
    pub made: u64,
    /// The sample.
    pub of: u64,
    /// What chance did to it; 0 if nothing.
    pub view: u64,
}

#[derive(Default)]
struct Kept {
    /// What stays although no run uses it, by the last use.
    held: Vec<Arc<Part>>,
    /// Everything that takes memory.
    alive: Vec<Weak<Part>>,
    rows: HashMap<RowKey, (Weak<Part>, usize)>,
}

impl Kept {
    fn in_memory(&self) -> usize {
        self.alive.iter().filter_map(Weak::upgrade).map(|part| part.in_memory()).sum()
    }

    /// Lets go of what no run uses, the oldest first, until there are `bytes` left; nothing, if that would not do.
    fn make_room(&mut self, bytes: usize, budget: usize) -> bool {
        let taken = self.in_memory();
        let excess = taken.saturating_add(bytes).saturating_sub(budget);
        let idle = |part: &Arc<Part>| Arc::strong_count(part) == 1;
        if self.held.iter().filter(|part| idle(part)).map(|part| part.in_memory()).sum::<usize>() < excess {
            return false;
        }
        let mut gone = 0;
        self.held.retain(|part| {
            let goes = gone < excess && idle(part) && part.in_memory() > 0;
            gone += if goes { part.in_memory() } else { 0 };
            !goes
        });
        self.rows.retain(|_, (part, _)| part.strong_count() > 0);
        true
    }
}

/// Rows of features that were computed together.
pub(super) struct Part {
    store: Store,
    rows: usize,
    bytes: usize,
    promised: Option<Promise>,
}

/// Room that is kept free for a part until it is filled, or given up.
struct Promise {
    to: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.to.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

enum Store {
    /// Tensors of several rows, and the number of the first of each.
    Memory {
        parts: Vec<Tensor>,
        starts: Vec<usize>,
    },
    File(FeatureFile),
}

impl Part {
    /// Puts rows behind those that are there.
    pub fn append(&mut self, features: Tensor) -> Result<()> {
        let rows = features.dim(0)?;
        self.bytes += features.elem_count() * features.dtype().size_in_bytes();
        match &mut self.store {
            Store::Memory { parts, starts } => {
                starts.push(self.rows);
                parts.push(features);
            }
            Store::File(file) => file.append(&features)?,
        }
        self.rows += rows;
        Ok(())
    }

    fn in_memory(&self) -> usize {
        if matches!(self.store, Store::Memory { .. }) { self.bytes } else { 0 }
    }
}

/// One row of features, which keeps them alive.
#[derive(Clone)]
pub(super) struct Row {
    pub part: Arc<Part>,
    pub number: usize,
}

impl Row {
    /// A tensor of one row.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.part.store {
            Store::Memory { parts, starts } => {
                let at = starts.partition_point(|&start| start <= self.number).saturating_sub(1);
                Ok(parts[at].narrow(0, self.number - starts[at], 1)?)
            }
            Store::File(file) => file.row(self.number),
        }
    }

    pub fn bytes(&self) -> usize {
        self.part.bytes / self.part.rows.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn key(made: u64, of: u64) -> RowKey {
        RowKey { made, of, view: 0 }
    }

    /// Keeps two rows of 40 bytes under these keys.
    fn keep(cache: &FeatureCache, keys: &[Option<RowKey>], level: f32) -> Option<Arc<Part>> {
        let rows = Tensor::full(level, (2, 10), &Device::Cpu).unwrap();
        let mut part = cache.room(&rows, 80).unwrap()?;
        part.append(rows).unwrap();
        Some(cache.keep(part, keys))
    }

    fn level(row: Option<&Row>) -> Option<f32> {
        row.map(|row| row.tensor().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[9])
    }

    #[test]
    fn the_oldest_that_is_not_in_use_makes_room() {
        let cache = FeatureCache::new().budget(200);
        let keys = |of: u64| [Some(key(1, of)), Some(key(1, of + 1))];
        drop(keep(&cache, &keys(0), 0.0).unwrap());
        let second = keep(&cache, &keys(10), 1.0).unwrap();
        assert_eq!(cache.in_memory(), 160);
        // A look at the first makes the second the older, but that one is in use.
        assert_eq!(level(cache.find(&keys(0))[1].as_ref()), Some(0.0));
        drop(keep(&cache, &keys(20), 2.0).unwrap());
        assert_eq!(cache.in_memory(), 160);
        assert_eq!(cache.find(&keys(0)).iter().flatten().count(), 0);
        drop(second);
        assert_eq!(level(cache.find(&keys(10))[0].as_ref()), Some(1.0));
        drop(keep(&cache, &keys(30), 3.0).unwrap());
        assert_eq!(cache.find(&keys(20)).iter().flatten().count(), 0);
        let found: Vec<_> = [10, 30].map(|of| level(cache.find(&keys(of))[0].as_ref())).into();
        assert_eq!(found, [Some(1.0), Some(3.0)]);
        // More than there can be: nothing goes for it.
        let rows = Tensor::zeros((1, 10), DType::F32, &Device::Cpu).unwrap();
        assert!(cache.room(&rows, 201).unwrap().is_none());
        assert_eq!(cache.in_memory(), 160);
    }

    #[test]
    fn what_has_no_key_goes_with_whoever_made_it() {
        let cache = FeatureCache::new().budget(200);
        let part = keep(&cache, &[None, None], 1.0).unwrap();
        assert_eq!(cache.in_memory(), 80);
        drop(part);
        assert_eq!(cache.in_memory(), 0);
    }

    #[test]
    fn a_cache_of_ones_own_forgets() {
        let cache = FeatureCache::new();
        drop(keep(&cache, &[Some(key(1, 0)), Some(key(1, 1))], 1.0).unwrap());
        drop(keep(&cache, &[Some(key(2, 0)), Some(key(2, 1))], 2.0).unwrap());
        let other = cache.clone();
        cache.forget_others(None);
        assert_eq!(cache.in_memory(), 160, "somebody else holds it");
        drop(other);
        cache.forget_others(Some(2));
        assert_eq!((cache.in_memory(), level(cache.find(&[Some(key(2, 1))])[0].as_ref())), (80, Some(2.0)));
        cache.forget_others(None);
        assert_eq!(cache.in_memory(), 0);
    }
}
