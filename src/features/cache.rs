//! The rows of features in memory or in a file, shared by everything that holds the cache.

use super::file::FeatureFile;
use super::key::RowKey;
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Caches the features of frozen blocks, so that each image passes those blocks once instead of once per epoch.
///
/// Clones share their features: give one cache to several runs, folds or strategies, and each sample's features are
/// computed by the first that needs them. The key of a sample's features is made of the bytes of the frozen weights,
/// the layers and pooling, the cut, the [`InputSpec`](crate::InputSpec), the type that is stored, the view where augmentation is random, and
/// [`Dataset::fingerprint`](crate::Dataset::fingerprint). Samples without a fingerprint are cached for one phase of one
/// run. Training on cached features ends in the same bytes as without a cache.
///
/// Without a cache of yours, a [`FineTuner`](crate::FineTuner) makes one for each phase. One that you hold lives as
/// long as its last clone; until then its features stay in memory, up to the budget, and the least recently used are
/// dropped first.
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
    contents: Arc<Mutex<Contents>>,
    /// Bytes of memory that were reserved and are not filled yet.
    reserved: Arc<AtomicUsize>,
}

/// Bytes of memory that features may take by default.
const BUDGET: usize = 2 << 30;

impl Default for FeatureCache {
    fn default() -> Self {
        Self::new()
    }
}

impl FeatureCache {
    /// In memory, 2 GiB at most.
    pub fn new() -> Self {
        Self { budget: BUDGET, dir: None, dtype: None, contents: Arc::default(), reserved: Arc::default() }
    }

    /// Caches nothing: frozen blocks are computed again in every epoch.
    pub fn off() -> Self {
        Self::new().budget(0)
    }

    /// Sets how many bytes of memory features may take. Features that would take more go to a file in
    /// [`FeatureCache::dir`]; without one they are computed again in every epoch.
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Sets the folder for features that exceed the budget. Its files are deleted with the features. The folder is
    /// created if needed. Training fails with [`Error::Io`] if a file cannot be written.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_path_buf());
        self
    }

    /// Sets the type in which features are stored: `DType::F16` or `DType::BF16` take half of the memory, and round. By
    /// default it is the network's own. Other types than these, `F32` and `F64` are refused.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Bytes of memory that features take now.
    pub fn memory_bytes(&self) -> usize {
        self.lock().memory_bytes()
    }

    /// Rows of features that were computed and stored here so far: a sample, in one view, at one cut.
    pub fn computed(&self) -> usize {
        self.lock().computed
    }

    /// Rows of features that were found here so far, instead of being computed again.
    pub fn reused(&self) -> usize {
        self.lock().reused
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.dtype {
            None | Some(DType::F16 | DType::BF16 | DType::F32 | DType::F64) => Ok(()),
            Some(dtype) => {
                let problem = format!("{dtype:?} cannot hold features; F16, BF16, F32 and F64 can");
                Err(Error::invalid("feature cache's dtype", problem))
            }
        }
    }

    /// Whether it caches nothing.
    pub(crate) fn is_off(&self) -> bool {
        self.budget == 0 && self.dir.is_none()
    }

    /// Bytes of features that it has room for, as they are in `dtype`.
    pub(crate) fn room_bytes(&self, dtype: DType) -> usize {
        let (own, stored) = (dtype.size_in_bytes(), self.stored(dtype).size_in_bytes());
        if self.dir.is_some() { usize::MAX } else { self.budget / stored.max(1) * own }
    }

    /// The type in which features are stored, of a network that computes in `dtype`.
    pub(crate) fn stored(&self, dtype: DType) -> DType {
        self.dtype.unwrap_or(dtype)
    }

    /// Reserves room for rows like those of `sample`, of `bytes` in all: in memory or in a file; `None` if there is
    /// neither.
    pub(super) fn room(&self, sample: &Tensor, bytes: usize) -> Result<Option<Part>> {
        let mut contents = self.lock();
        let others = self.reserved.load(Ordering::SeqCst);
        if contents.make_room(bytes.saturating_add(others), self.budget) {
            self.reserved.fetch_add(bytes, Ordering::SeqCst);
            let reserved = Some(Reserved { of: Arc::clone(&self.reserved), bytes });
            let store = Store::Memory { parts: vec![], starts: vec![] };
            return Ok(Some(Part { store, rows: 0, bytes: 0, reserved }));
        }
        drop(contents);
        let Some(dir) = &self.dir else { return Ok(None) };
        let store = Store::File(FeatureFile::create(dir, sample)?);
        Ok(Some(Part { store, rows: 0, bytes: 0, reserved: None }))
    }

    /// Stores computed rows. The key of row k is `keys[k]`, if it has one.
    pub(super) fn keep(&self, mut part: Part, keys: &[Option<RowKey>]) -> Arc<Part> {
        let mut contents = self.lock();
        part.reserved = None;
        let part = Arc::new(part);
        contents.alive.retain(|part| part.strong_count() > 0);
        contents.alive.push(Arc::downgrade(&part));
        contents.computed += keys.len();
        let mut found_by = 0;
        for (row, key) in keys.iter().enumerate() {
            let Some(key) = key else { continue };
            // Another run may have computed the same row meanwhile; that one stays.
            let old = contents.rows.get(key).is_some_and(|(part, _)| part.strong_count() > 0);
            if !old {
                contents.rows.insert(*key, (Arc::downgrade(&part), row));
                found_by += 1;
            }
        }
        if found_by > 0 {
            contents.held.push(Arc::clone(&part));
        }
        part
    }

    /// The cached row of each key.
    pub(super) fn find(&self, keys: &[Option<RowKey>]) -> Vec<Option<Row>> {
        let mut contents = self.lock();
        let found: Vec<Option<Row>> = keys
            .iter()
            .map(|key| {
                let (part, number) = contents.rows.get(key.as_ref()?)?;
                Some(Row { part: part.upgrade()?, number: *number })
            })
            .collect();
        contents.reused += found.iter().flatten().count();
        // The least recently used come first, and are dropped first.
        contents.held.sort_by_cached_key(|part| found.iter().flatten().any(|row| Arc::ptr_eq(&row.part, part)));
        found
    }

    /// Drops the features of other blocks or weights than `made_by`, if this is the only handle to the cache.
    pub(crate) fn forget_others(&self, made_by: Option<u64>) {
        if Arc::strong_count(&self.contents) > 1 {
            return;
        }
        let mut contents = self.lock();
        contents.rows.retain(|key, _| Some(key.extractor) == made_by);
        let used: Vec<*const Part> = contents.rows.values().map(|(part, _)| part.as_ptr()).collect();
        contents.held.retain(|part| used.contains(&Arc::as_ptr(part)));
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for FeatureCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let contents = self.lock();
        write!(f, "FeatureCache({} samples, {} of {} bytes)", contents.rows.len(), contents.memory_bytes(), self.budget)
    }
}

#[derive(Default)]
struct Contents {
    /// Parts that stay although no run uses them, the least recently used first.
    held: Vec<Arc<Part>>,
    /// All parts that take memory.
    alive: Vec<Weak<Part>>,
    rows: HashMap<RowKey, (Weak<Part>, usize)>,
    computed: usize,
    reused: usize,
}

impl Contents {
    fn memory_bytes(&self) -> usize {
        self.alive.iter().filter_map(Weak::upgrade).map(|part| part.memory_bytes()).sum()
    }

    /// Drops parts that no run uses, the least recently used first, until there are `bytes` left; none if that would
    /// not suffice.
    fn make_room(&mut self, bytes: usize, budget: usize) -> bool {
        let taken = self.memory_bytes();
        let excess = taken.saturating_add(bytes).saturating_sub(budget);
        let idle = |part: &Arc<Part>| Arc::strong_count(part) == 1;
        if self.held.iter().filter(|part| idle(part)).map(|part| part.memory_bytes()).sum::<usize>() < excess {
            return false;
        }
        let mut freed = 0;
        self.held.retain(|part| {
            let goes = freed < excess && idle(part) && part.memory_bytes() > 0;
            freed += if goes { part.memory_bytes() } else { 0 };
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
    reserved: Option<Reserved>,
}

/// Memory that is reserved for a part until it is filled, or dropped.
struct Reserved {
    of: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

enum Store {
    /// Tensors of several rows, and the index of the first row of each.
    Memory {
        parts: Vec<Tensor>,
        starts: Vec<usize>,
    },
    File(FeatureFile),
}

impl Part {
    /// Appends rows.
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

    fn memory_bytes(&self) -> usize {
        if matches!(self.store, Store::Memory { .. }) { self.bytes } else { 0 }
    }
}

/// One row of a part, which keeps the part alive.
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

    fn key(extractor: u64, sample: u64) -> RowKey {
        RowKey { extractor, sample, view: 0 }
    }

    /// Caches two rows of 40 bytes under these keys.
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
    fn the_least_recently_used_that_is_idle_makes_room() {
        let cache = FeatureCache::new().budget(200);
        let keys = |of: u64| [Some(key(1, of)), Some(key(1, of + 1))];
        drop(keep(&cache, &keys(0), 0.0).unwrap());
        let second = keep(&cache, &keys(10), 1.0).unwrap();
        assert_eq!(cache.memory_bytes(), 160);
        // Finding the first makes the second the less recently used, but that one is in use.
        assert_eq!(level(cache.find(&keys(0))[1].as_ref()), Some(0.0));
        drop(keep(&cache, &keys(20), 2.0).unwrap());
        assert_eq!(cache.memory_bytes(), 160);
        assert_eq!(cache.find(&keys(0)).iter().flatten().count(), 0);
        drop(second);
        assert_eq!(level(cache.find(&keys(10))[0].as_ref()), Some(1.0));
        drop(keep(&cache, &keys(30), 3.0).unwrap());
        assert_eq!(cache.find(&keys(20)).iter().flatten().count(), 0);
        let found: Vec<_> = [10, 30].map(|of| level(cache.find(&keys(of))[0].as_ref())).into();
        assert_eq!(found, [Some(1.0), Some(3.0)]);
        // More than the budget: nothing is dropped for it.
        let rows = Tensor::zeros((1, 10), DType::F32, &Device::Cpu).unwrap();
        assert!(cache.room(&rows, 201).unwrap().is_none());
        assert_eq!(cache.memory_bytes(), 160);
    }

    #[test]
    fn rows_without_keys_are_dropped_with_their_owner() {
        let cache = FeatureCache::new().budget(200);
        let part = keep(&cache, &[None, None], 1.0).unwrap();
        assert_eq!(cache.memory_bytes(), 80);
        drop(part);
        assert_eq!(cache.memory_bytes(), 0);
    }

    #[test]
    fn a_cache_that_nobody_shares_forgets() {
        let cache = FeatureCache::new();
        drop(keep(&cache, &[Some(key(1, 0)), Some(key(1, 1))], 1.0).unwrap());
        drop(keep(&cache, &[Some(key(2, 0)), Some(key(2, 1))], 2.0).unwrap());
        let other = cache.clone();
        cache.forget_others(None);
        assert_eq!(cache.memory_bytes(), 160, "another handle holds it");
        drop(other);
        cache.forget_others(Some(2));
        assert_eq!((cache.memory_bytes(), level(cache.find(&[Some(key(2, 1))])[0].as_ref())), (80, Some(2.0)));
        cache.forget_others(None);
        assert_eq!(cache.memory_bytes(), 0);
    }
}
