//! Makes batches on background threads, ahead of the training step.

use super::batch::{Inputs, Prepared, batch_count, batch_end, join_images};
use super::{Batch, Dataset, Sample, Target, Targets, Transform};
use crate::rng::Seed;
use crate::{Error, Result};
use candle_core::Device;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Makes batches of a dataset on background threads.
///
/// The batches depend on the dataset, the order, the seed and the epoch, never on the number of threads. At most two
/// batches and one sample per thread are prepared ahead.
///
/// ```
/// use candle_finetune::{Image, InputSpec, Loader, Transform, VecDataset};
/// use candle_finetune::candle_core::Device;
///
/// let image = Image::from_rgb8(40, 30, vec![9; 40 * 30 * 3])?;
/// let data = VecDataset::new(vec![(image, 0); 5], vec!["dull".into()])?;
/// let loader = Loader::new(&data, Transform::eval(&InputSpec::new(32))?).batch_size(2);
/// let (order, epoch) = (vec![4, 2, 0], 0);
/// for batch in loader.batches(order, epoch, &Device::Cpu)? {
///     let batch = batch?;
///     assert_eq!(batch.images()?.dims()[1..], [3, 32, 32]);
/// }
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    transform: Transform,
    batch_size: usize,
    seed: u64,
    workers: usize,
    drop_last: bool,
}

impl Loader {
    /// Batches of 32, seed 0, one thread per core but at most four.
    pub fn new<D: Dataset + Clone + 'static>(dataset: &D, transform: Transform) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let dataset = Arc::new(dataset.clone());
        Self { dataset, transform, batch_size: 32, seed: 0, workers: cores.min(4), drop_last: false }
    }

    /// Sets the number of samples per batch. The last batch of an epoch may be smaller; a leftover single sample joins
    /// the previous batch, since batch statistics need more than one sample.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Sets the seed of the augmentation.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the number of threads. With 0, the caller's thread makes each batch when it asks for it.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets whether an incomplete last batch is dropped.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// The seed of the augmentation.
    pub(crate) fn seed_of(&self) -> Seed {
        Seed(self.seed)
    }

    /// The number of classes.
    pub(crate) fn classes(&self) -> usize {
        self.dataset.classes().len()
    }

    /// Whether the samples are tensors, which are not transformed, judging by the first.
    pub(crate) fn gives_tensors<D: Dataset>(dataset: &D) -> Result<bool> {
        guarded(dataset, 0, || Ok(matches!(dataset.sample(0)?, Sample::Tensor(_))))
    }

    /// The number of batches for this many samples.
    pub fn batch_count(&self, samples: usize) -> usize {
        if self.drop_last { samples / self.batch_size.max(1) } else { batch_count(samples, self.batch_size) }
    }

    /// Starts making batches of the samples with the indices in `order`, augmented for `epoch`, on `device`.
    ///
    /// An error takes the place of its batch and ends the iteration. Dropping the iterator stops the threads and waits
    /// for them.
    pub fn batches(&self, order: Vec<usize>, epoch: u64, device: &Device) -> Result<Batches> {
        self.batches_of(order, &[], epoch, device)
    }

    /// The same for an order with repeated samples: `views` has the number of the augmentation for each place, in place of
    /// `epoch`. Empty for an order without repeats.
    pub(crate) fn batches_of(
        &self,
        mut order: Vec<usize>,
        views: &[u64],
        epoch: u64,
        device: &Device,
    ) -> Result<Batches> {
        if self.batch_size == 0 {
            return Err(Error::invalid("batch_size", "is 0; it must be at least 1"));
        }
        if let Some(i) = order.iter().find(|&&i| i >= self.dataset.len()) {
            return Err(Error::invalid("order", format!("index {i} of a dataset of {} samples", self.dataset.len())));
        }
        if self.drop_last {
            order.truncate(order.len() / self.batch_size * self.batch_size);
        }
        let ahead = self.batch_size.saturating_mul(2).saturating_add(self.workers);
        let state = Mutex::new(State { next: 0, taken: 0, ready: BTreeMap::new(), stop: false });
        let job = Arc::new(Job {
            loader: self.clone(),
            order,
            views: views.to_vec(),
            epoch,
            ahead,
            state,
            changed: Condvar::new(),
        });
        let mut workers = Vec::new();
        for k in 0..self.workers.min(job.order.len()) {
            let work = Arc::clone(&job);
            match std::thread::Builder::new().name(format!("loader {k}")).spawn(move || work.run()) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    // Fewer threads make the same batches; with none, the caller's thread makes them.
                    tracing::warn!(%error, started = k, "cannot start another loader thread");
                    break;
                }
            }
        }
        Ok(Batches { job, workers, at: 0, device: device.clone() })
    }
}

/// The batches of one epoch, from [`Loader::batches`].
pub struct Batches {
    job: Arc<Job>,
    workers: Vec<JoinHandle<()>>,
    at: usize,
    device: Device,
}

/// The state that the threads of one epoch share.
struct Job {
    loader: Loader,
    order: Vec<usize>,
    views: Vec<u64>,
    epoch: u64,
    /// How many samples may be prepared ahead.
    ahead: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The position in the order that the next free thread works on.
    next: usize,
    /// How many positions the consumer has taken.
    taken: usize,
    ready: BTreeMap<usize, Result<Item>>,
    stop: bool,
}

struct Item {
    input: Prepared,
    target: Target,
}

impl Job {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's loop, until the order is exhausted.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.stop || state.next >= self.order.len() {
                return;
            }
            if state.next >= state.taken.saturating_add(self.ahead) {
                state = self.wait(state);
                continue;
            }
            let place = state.next;
            state.next += 1;
            drop(state);
            let item = self.make(place);
            state = self.lock();
            state.ready.insert(place, item);
            self.changed.notify_all();
        }
    }

    /// Makes the sample at a place of the order; a panic in the dataset's code becomes an error.
    fn make(&self, place: usize) -> Result<Item> {
        let (dataset, i) = (&self.loader.dataset, self.order[place]);
        let view = self.views.get(place).copied().unwrap_or(self.epoch);
        guarded(dataset, i, || {
            let Loader { dataset, transform, seed, .. } = &self.loader;
            let info = dataset.info(i);
            let input = match dataset.sample(i)? {
                Sample::Tensor(tensor) => Prepared::Tensor(tensor),
                Sample::Image(image) => Prepared::Values(
                    transform
                        .values(&image, *seed, view, info.augment_index as u64)
                        .map_err(|error| Error::bad_sample(info.to_string(), error.to_string()))?,
                ),
            };
            Ok(Item { input, target: info.target })
        })
    }

    /// Waits for the item at position `place`.
    fn take(&self, place: usize) -> Result<Item> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.ready.remove(&place) {
                state.taken = place + 1;
                self.changed.notify_all();
                return item;
            }
            state = self.wait(state);
        }
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }
}

/// Calls a dataset's code for sample `i`; a panic becomes an error.
fn guarded<T>(dataset: &dyn Dataset, i: usize, call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into());
        let name = catch_unwind(AssertUnwindSafe(|| dataset.info(i).to_string()));
        Err(Error::DatasetPanicked { sample: name.unwrap_or_else(|_| format!("sample {i}")), message })
    })
}

impl Batches {
    fn make(&mut self) -> Result<Batch> {
        let job = &self.job;
        let end = batch_end(self.at, job.order.len(), job.loader.batch_size);
        let indices = job.order[self.at..end].to_vec();
        let (mut inputs, mut targets) = (Vec::with_capacity(indices.len()), Vec::with_capacity(indices.len()));
        for place in self.at..end {
            let Item { input, target } = if self.workers.is_empty() { job.make(place)? } else { job.take(place)? };
            inputs.push(input);
            targets.push(target);
        }
        self.at = end;
        let dataset = &job.loader.dataset;
        let spec = job.loader.transform.spec();
        let name = |k: usize| dataset.info(indices[k]).to_string();
        let targets = Targets::join(&targets, dataset.classes().len(), name, &self.device)?;
        let images = join_images(inputs, (spec.channels, spec.size.0, spec.size.1), name, &self.device)?;
        Ok(Batch { inputs: Inputs::Images(images), targets, indices })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.job.order.len() {
            return None;
        }
        let batch = self.make();
        if batch.is_err() {
            self.at = self.job.order.len();
            self.job.stop();
        }
        Some(batch)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.job.stop();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of the dataset's code, so this returns no error worth reporting.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests;
