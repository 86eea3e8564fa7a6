//! The memory model: a dry run of a training step that counts what it allocates and frees, without computing anything.
//!
//! A [`Symbolic`] map has sizes alone and goes through the same layers as a real one. Where the CPU form of an
//! operation takes a buffer, its symbolic form makes an [`Allocation`] of the same size in an [`Arena`], and it saves
//! the same ones for backward. The arena places blocks as the pool of buffers does; the pages that it has touched are
//! the step's memory. A test compares it with what real steps take. The multiply-adds of convolutions and fully connected
//! layers are counted on the way.

use super::buffer::{FreeList, POOLED, block_size};
use candle_core::DType;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Segments as the pool of buffers has them, and which of their pages were ever touched.
#[derive(Default)]
struct Arena(Vec<(FreeList, Vec<bool>)>);

/// Granularity of page tracking, in bytes.
const PAGE: usize = 1 << 16;

impl Arena {
    /// Segment and offset of a block of this many bytes; small ones are not pooled.
    fn take(&mut self, bytes: usize) -> Option<(usize, usize)> {
        if bytes < POOLED {
            return None;
        }
        let mut found = self.0.iter_mut().enumerate().find_map(|(i, (list, _))| Some((i, list.take(bytes)?)));
        if found.is_none() {
            let mut list = FreeList::new(bytes, self.0.iter().map(|(list, _)| list.bytes()).sum());
            found = list.take(bytes).map(|at| (self.0.len(), at));
            let pages = list.bytes() / PAGE + 1;
            self.0.push((list, vec![false; pages]));
        }
        let (i, at) = found?;
        self.0[i].1[at / PAGE..(at + bytes).div_ceil(PAGE)].fill(true);
        found
    }

    fn touched(&self) -> usize {
        self.0.iter().flat_map(|(_, pages)| pages).filter(|touched| **touched).count() * PAGE
    }
}

/// A buffer of the dry run. Its block is free again when it is dropped.
pub(super) struct Allocation {
    bytes: usize,
    /// Segment and offset, if it is pooled.
    block: Option<(usize, usize)>,
    arena: Arc<Mutex<Arena>>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some((segment, at)) = self.block {
            lock(&self.arena).0[segment].0.put(at, self.bytes);
        }
    }
}

/// The accumulator of a map's gradient.
pub(super) type Accumulator = Arc<Mutex<Option<Allocation>>>;

type Backward = Box<dyn FnOnce(&Tape, Allocation) + Send>;

/// The backward of one operation, given the gradient of its result.
struct Recorded {
    accumulator: Accumulator,
    backward: Backward,
}

/// One step.
pub(super) struct Tape {
    arena: Arc<Mutex<Arena>>,
    recorded: Mutex<Vec<Recorded>>,
    /// Allocations that live to the end of the step: gradients of parameters, and packed copies of frozen kernels.
    held: Mutex<Vec<Allocation>>,
    /// The most bytes that one thread keeps as scratch memory.
    scratch: Mutex<usize>,
    /// Bytes per element.
    element: usize,
    forward: Counter,
    backward: Counter,
}

/// Counts multiply-adds.
#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, count: u64) {
        // One thread walks through the layers.
        self.0.store(self.get().saturating_add(count), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a gradient to the accumulator: the first is kept, a later one is added and freed.
pub(super) fn give(accumulator: &Accumulator, gradient: Allocation) {
    lock(accumulator).get_or_insert(gradient);
}

impl Tape {
    pub fn allocate(&self, elements: usize) -> Allocation {
        self.allocate_bytes(elements * self.element)
    }

    pub fn allocate_bytes(&self, bytes: usize) -> Allocation {
        let bytes = block_size(bytes).unwrap_or(bytes);
        let block = lock(&self.arena).take(bytes);
        Allocation { bytes, block, arena: self.arena.clone() }
    }

    /// A gradient of this many elements, written or added to what is there.
    pub fn write(&self, accumulator: &Accumulator, elements: usize) {
        let mut sum = lock(accumulator);
        if sum.is_none() {
            *sum = Some(self.allocate(elements));
        }
    }

    /// Holds an allocation to the end of the step.
    pub fn hold(&self, allocation: Allocation) {
        lock(&self.held).push(allocation);
    }

    /// Counts multiply-adds of the forward pass.
    pub fn compute(&self, multiply_adds: u64) {
        self.forward.add(multiply_adds);
    }

    /// Counts multiply-adds of the backward pass.
    pub fn compute_backward(&self, multiply_adds: u64) {
        self.backward.add(multiply_adds);
    }

    /// Notes how many bytes of scratch memory each thread keeps, given the bytes of an element.
    pub fn scratch(&self, bytes: impl FnOnce(usize) -> usize) {
        let mut most = lock(&self.scratch);
        *most = bytes(self.element).max(*most);
    }
}

/// Data of the dry run that is saved for backward.
#[derive(Clone)]
pub(super) struct SavedSymbolic {
    /// How many elements are recomputed from the held data; `None` if the data itself is.
    pub recomputed: Option<usize>,
    pub held: Vec<Arc<Allocation>>,
    /// Whether a max-pool's result is recomputed from it.
    pub selectable: bool,
    /// How many convolutions are recomputed one from the other's result.
    pub depth: usize,
    /// Multiply-adds of recomputing it.
    pub multiply_adds: u64,
}

impl SavedSymbolic {
    /// The memory of recomputed data, for as long as it lives. Counts the multiply-adds of recomputing it.
    pub fn data(&self, tape: &Tape) -> Option<Allocation> {
        tape.compute_backward(self.multiply_adds);
        self.recomputed.map(|elements| tape.allocate(elements))
    }
}

/// A feature map of the dry run: sizes without elements.
#[derive(Clone)]
pub(crate) struct Symbolic {
    pub(super) tape: Arc<Tape>,
    /// (N, H, W, C)
    pub(super) dims: [usize; 4],
    pub(super) data: Arc<Allocation>,
    /// Where its gradient is summed, if any earlier tensor is trainable.
    pub(super) accumulator: Option<Accumulator>,
    /// How backward obtains the data, if it is not saved.
    pub(super) recompute: Option<SavedSymbolic>,
}

impl Symbolic {
    /// Images (N, C, H, W); `before`: the previous step, whose freed memory is reused.
    pub fn new((n, c, h, w): (usize, usize, usize, usize), dtype: DType, before: Option<&StepMemory>) -> Self {
        let arena = before.map(|b| b.arena.clone()).unwrap_or_default();
        let element = dtype.size_in_bytes();
        let tape = Tape {
            arena,
            recorded: Mutex::default(),
            held: Mutex::default(),
            scratch: Mutex::default(),
            element,
            forward: Counter::default(),
            backward: Counter::default(),
        };
        let data = Arc::new(tape.allocate(n * c * h * w));
        Self { tape: Arc::new(tape), dims: [n, h, w, c], data, accumulator: None, recompute: None }
    }

    /// (N, C, H, W)
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let [n, h, w, c] = self.dims;
        (n, c, h, w)
    }

    pub(super) fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Multiply-adds of the forward pass so far.
    pub fn multiply_adds(&self) -> u64 {
        self.tape.forward.get()
    }

    /// The data, saved for backward.
    pub(super) fn saved(&self) -> SavedSymbolic {
        let data = || SavedSymbolic {
            recomputed: None,
            held: vec![self.data.clone()],
            selectable: false,
            depth: 0,
            multiply_adds: 0,
        };
        self.recompute.clone().unwrap_or_else(data)
    }

    /// The result of an operation and, if any earlier tensor is trainable, what backward does.
    pub(super) fn record(
        &self,
        dims: [usize; 4],
        data: impl Into<Arc<Allocation>>,
        learns: bool,
        backward: impl FnOnce(&Tape, Allocation) + Send + 'static,
    ) -> Self {
        let accumulator = learns.then(Accumulator::default);
        if let Some(accumulator) = &accumulator {
            let recorded = Recorded { accumulator: accumulator.clone(), backward: Box::new(backward) };
            lock(&self.tape.recorded).push(recorded);
        }
        Self { tape: self.tape.clone(), dims, data: data.into(), accumulator, recompute: None }
    }

    /// The result of an operation whose backward allocates the gradient of its input and nothing else, and holds
    /// `saved` until then.
    pub(super) fn record_simple(&self, dims: [usize; 4], saved: Option<Arc<Allocation>>) -> Self {
        self.record_simple_with(dims, self.tape.allocate(dims.iter().product()), saved)
    }

    /// The same with data that was allocated before.
    pub(super) fn record_simple_with(
        &self,
        dims: [usize; 4],
        data: Allocation,
        saved: Option<Arc<Allocation>>,
    ) -> Self {
        let (input, len) = (self.accumulator.clone(), self.len());
        self.record(dims, data, input.is_some(), move |tape, _d| {
            if let Some(input) = &input {
                tape.write(input, len);
            }
            drop(saved);
        })
    }

    /// Backward, and the update. `moments`: elements of each of the moments that the first update makes.
    pub fn backward(self, moments: &[usize]) -> StepMemory {
        let Self { tape, data, accumulator, recompute, dims } = self;
        if let Some(accumulator) = &accumulator {
            tape.write(accumulator, dims.iter().product());
        }
        drop((data, accumulator, recompute));
        let recorded = std::mem::take(&mut *lock(&tape.recorded));
        for Recorded { accumulator, backward } in recorded.into_iter().rev() {
            let gradient = lock(&accumulator).take();
            if let Some(gradient) = gradient {
                backward(&tape, gradient);
            }
        }
        let moments = moments.iter().map(|&elements| tape.allocate(elements)).collect();
        let scratch = rayon::current_num_threads() * *lock(&tape.scratch);
        let (forward, backward) = (tape.forward.get(), tape.backward.get());
        StepMemory { arena: tape.arena.clone(), _moments: moments, scratch, forward, backward }
    }
}

/// The memory that a step has touched, with the optimizer's moments in it.
pub(crate) struct StepMemory {
    arena: Arc<Mutex<Arena>>,
    _moments: Vec<Allocation>,
    scratch: usize,
    /// Multiply-adds of the forward pass.
    pub forward: u64,
    /// Multiply-adds of the backward pass, with what it recomputes.
    pub backward: u64,
}

impl StepMemory {
    /// Bytes of the pages that were ever touched, and of the threads' scratch memory.
    pub fn touched(&self) -> usize {
        lock(&self.arena).touched() + self.scratch
    }
}
