//! A step on paper: what a training step takes and gives back, without computing anything.
//!
//! A sketch stands for a feature map and goes through the same layers. Where the CPU's operations take a buffer it takes
//! a sheet of paper with a number of bytes on it, and it lays the same ones aside for the way back, in rooms like those
//! of the buffers. The pages touched there are the step's memory. It has to follow `value` and `value::step`; a test
//! compares it with what real steps take.

use super::buffer::{POOLED, Room, block_size};
use super::geometry::{Geometry, Padding};
use super::map::{ConvStep, Norm};
use super::real::{Algorithm, Real};
use candle_core::{DType, Result, bail};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Numbers that Winograd's kernel gradient holds for a while beside its arguments, about: values at the points.
const AT_HAND: usize = 3 << 20;

/// The pool of buffers on paper: rooms as the real one has them, and which of their pages were ever touched.
#[derive(Default)]
struct Rooms(Vec<(Room, Vec<bool>)>);

/// Bytes whose touch is noted together: some pages of the system.
const PAGE: usize = 1 << 16;

impl Rooms {
    /// Room and place of so many bytes; small ones are not pooled.
    fn take(&mut self, bytes: usize) -> Option<(usize, usize)> {
        if bytes < POOLED {
            return None;
        }
        let mut found = self.0.iter_mut().enumerate().find_map(|(i, (room, _))| Some((i, room.take(bytes)?)));
        if found.is_none() {
            let mut room = Room::new(bytes, self.0.iter().map(|(room, _)| room.bytes()).sum());
            found = room.take(bytes).map(|at| (self.0.len(), at));
            let pages = room.bytes() / PAGE + 1;
            self.0.push((room, vec![false; pages]));
        }
        let (i, at) = found?;
        self.0[i].1[at / PAGE..(at + bytes).div_ceil(PAGE)].fill(true);
        found
    }

    fn touched(&self) -> usize {
        self.0.iter().flat_map(|(_, pages)| pages).filter(|touched| **touched).count() * PAGE
    }
}

/// A buffer on paper.
struct Sheet {
    bytes: usize,
    place: Option<(usize, usize)>,
    rooms: Arc<Mutex<Rooms>>,
}

impl Drop for Sheet {
    fn drop(&mut self) {
        if let Some((room, at)) = self.place {
            lock(&self.rooms).0[room].0.put(at, self.bytes);
        }
    }
}

type Slot = Arc<Mutex<Option<Sheet>>>;

type Backward = Box<dyn FnOnce(&Tape, Sheet) + Send>;

/// What is left to do on the way back: with the gradient of the result, whose sheet it gets.
struct Node {
    slot: Slot,
    backward: Backward,
}

/// Everything about one step.
struct Tape {
    rooms: Arc<Mutex<Rooms>>,
    nodes: Mutex<Vec<Node>>,
    /// Gradients of parameters, and the packed copies of frozen kernels.
    stays: Mutex<Vec<Sheet>>,
    /// The most numbers that one thread keeps as scratch memory.
    scratch: Mutex<usize>,
    /// Bytes per number.
    size: usize,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands a gradient over; where there is one it is added to that.
fn give(slot: &Slot, gradient: Sheet) {
    lock(slot).get_or_insert(gradient);
}

impl Tape {
    fn sheet(&self, numbers: usize) -> Sheet {
        self.bytes(numbers * self.size)
    }

    fn bytes(&self, bytes: usize) -> Sheet {
        let bytes = block_size(bytes).unwrap_or(bytes);
        let place = lock(&self.rooms).take(bytes);
        Sheet { bytes, place, rooms: self.rooms.clone() }
    }

    /// A gradient of `numbers` that is written, or added to what is there.
    fn with(&self, slot: &Slot, numbers: usize) {
        let mut slot = lock(slot);
        if slot.is_none() {
            *slot = Some(self.sheet(numbers));
        }
    }
}

/// What the way back keeps of data that it will read.
#[derive(Clone)]
struct Kept {
    /// How many numbers are made again from what is held, if it is not the data itself.
    made: Option<usize>,
    held: Vec<Arc<Sheet>>,
}

impl Kept {
    /// The numbers that are made again, for as long as the sheet lives.
    fn make(&self, tape: &Tape) -> Option<Sheet> {
        self.made.map(|numbers| tape.sheet(numbers))
    }
}

/// A feature map on paper.
#[derive(Clone)]
pub(crate) struct Sketch {
    tape: Arc<Tape>,
    /// (N, H, W, C)
    dims: [usize; 4],
    data: Arc<Sheet>,
    slot: Option<Slot>,
    recipe: Option<Kept>,
}

impl Sketch {
    /// Images (N, C, H, W); `before`: the step before, whose rooms are used again.
    pub fn new((n, c, h, w): (usize, usize, usize, usize), dtype: DType, before: Option<&Aftermath>) -> Self {
        let size = dtype.size_in_bytes();
        let rooms = before.map(|b| b.rooms.clone()).unwrap_or_default();
        let tape = Tape { rooms, nodes: Mutex::default(), stays: Mutex::default(), scratch: Mutex::default(), size };
        let data = Arc::new(tape.sheet(n * c * h * w));
        Self { tape: Arc::new(tape), dims: [n, h, w, c], data, slot: None, recipe: None }
    }

    /// (N, C, H, W)
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let [n, h, w, c] = self.dims;
        (n, c, h, w)
    }

    fn len(&self) -> usize {
        self.dims.iter().product()
    }

    fn kept(&self) -> Kept {
        self.recipe.clone().unwrap_or_else(|| Kept { made: None, held: vec![self.data.clone()] })
    }

    /// A result, with what it does on the way back if anything behind it learns.
    fn result(
        &self,
        dims: [usize; 4],
        data: Sheet,
        learns: bool,
        backward: impl FnOnce(&Tape, Sheet) + Send + 'static,
    ) -> Self {
        let slot = learns.then(Slot::default);
        if let Some(slot) = &slot {
            lock(&self.tape.nodes).push(Node { slot: slot.clone(), backward: Box::new(backward) });
        }
        Self { tape: self.tape.clone(), dims, data: Arc::new(data), slot, recipe: None }
    }

    pub fn conv_step(&self, step: &ConvStep, residual: Option<&Self>) -> Result<Self> {
        let tape = &self.tape;
        let kernel = step.filter.dims()?;
        let g = Geometry::new(self.dims, kernel, step.stride, step.dilation, step.groups, step.padding)?;
        let dims = [g.n, g.oh, g.ow, g.k];
        let learns = step.filter.tensor().track_op();
        let algorithm = f32::algorithm(&g);
        let packed = tape.sheet(packed_len(algorithm, &g));
        if let Algorithm::Winograd { points } = algorithm {
            let mut scratch = lock(&tape.scratch);
            *scratch = super::conv::winograd_scratch(points * points * g.c * g.k, tape.size).max(*scratch);
        }
        let (normed, affine) = match &step.norm {
            Norm::None { bias } => (false, bias.is_some_and(candle_core::Tensor::track_op)),
            Norm::Batch { gamma, beta, .. } | Norm::Fixed { gamma, beta, .. } => {
                (true, gamma.track_op() || beta.track_op())
            }
        };
        let gates = step.act.gates_by_result();
        let any = learns || affine || self.slot.is_some() || residual.is_some_and(|r| r.slot.is_some());
        let z = Arc::new(tape.sheet(g.output_len()));
        let mut packed = Some(packed);
        if !learns && algorithm != Algorithm::Dense {
            lock(&tape.stays).extend(packed.take());
        }
        drop(packed);
        // Without a norm, an activation whose slope its result does not tell is a pass of its own.
        let y = if normed || !gates { Some(tape.sheet(g.output_len())) } else { None };
        let again = normed && g.groups == 1 && g.c * g.kh * g.kw <= 32;
        let keeps_result = !normed && step.act != super::Activation::Identity;
        let x = learns.then(|| self.kept());
        let (input, through) = (self.slot.clone(), residual.and_then(|r| r.slot.clone()));
        let out_len = g.output_len();

        let mut recipe = None;
        if normed && any && residual.is_none() {
            recipe = Some(Kept { made: Some(out_len), held: if again { vec![] } else { vec![z.clone()] } });
        }
        let keeps_z = (normed && !again) || keeps_result;
        let held_z = keeps_z.then(|| z.clone());
        let (data, held_y): (Arc<Sheet>, Option<Arc<Sheet>>) = match y {
            Some(y) => {
                let y = Arc::new(y);
                let held = (normed && residual.is_some()).then(|| y.clone());
                (y, held)
            }
            None => (z.clone(), None),
        };
        drop(z);
        let backward = move |tape: &Tape, d: Sheet| {
            let sums = again.then(|| tape.sheet(out_len));
            let passed = (normed && through.is_some()).then(|| tape.sheet(out_len));
            drop((sums, held_z, held_y));
            if let (Some(slot), Some(passed)) = (&through, passed) {
                give(slot, passed);
            }
            if let Some(x) = x {
                let made = x.make(tape);
                let len = g.kernel_len();
                let outer = algorithm == Algorithm::Dense && g.n <= 16 && len >= 1 << 18;
                let gradient = tape.sheet(if outer { g.n * (g.k + g.c * g.h * g.w) } else { len });
                let at_hand = match algorithm {
                    Algorithm::Winograd { .. } => tape.sheet(AT_HAND + len.min(2 << 20)),
                    Algorithm::Direct { .. } => tape.sheet(super::conv::direct_gradient_memory(&g)),
                    _ => tape.sheet(0),
                };
                drop((at_hand, made));
                lock(&tape.stays).push(gradient);
            }
            if let Some(input) = input {
                tape.with(&input, g.input_len());
                drop(tape.sheet(packed_len(algorithm, &g)));
            }
            if let (Some(slot), false) = (&through, normed) {
                give(slot, d);
            }
        };
        let mut result = self.result(dims, tape.sheet(0), any, backward);
        (result.data, result.recipe) = (data, recipe);
        Ok(result)
    }

    pub fn max_pool(&self, kernel: usize, stride: usize, padding: Padding) -> Result<Self> {
        let c = self.dims[3];
        let g = Geometry::new(self.dims, (c, 1, kernel, kernel), stride, 1, c.max(1), padding)?;
        let (y, tap) = (self.tape.sheet(g.output_len()), Arc::new(self.tape.bytes(g.output_len())));
        let recipe = self.recipe.as_ref().map(|recipe| Kept {
            made: Some(g.output_len()),
            held: recipe.held.iter().chain([&tap]).cloned().collect(),
        });
        let mut result = self.simple([g.n, g.oh, g.ow, c], y, Some(tap));
        result.recipe = recipe;
        Ok(result)
    }

    /// An operation whose gradient takes nothing but the way back itself.
    fn simple(&self, dims: [usize; 4], y: Sheet, held: Option<Arc<Sheet>>) -> Self {
        let (input, len) = (self.slot.clone(), self.len());
        self.result(dims, y, self.slot.is_some(), move |tape, _d| {
            if let Some(input) = &input {
                tape.with(input, len);
            }
            drop(held);
        })
    }

    /// An average over pixels, down (or up) to `rows` x `columns`.
    pub fn average(&self, rows: usize, columns: usize) -> Self {
        let [n, _, _, c] = self.dims;
        self.simple([n, rows, columns, c], self.tape.sheet(n * rows * columns * c), None)
    }

    pub fn subsample(&self, stride: usize, before: usize, after: usize) -> Self {
        let [n, h, w, c] = self.dims;
        let dims = [n, h.div_ceil(stride), w.div_ceil(stride), before + c + after];
        self.simple(dims, self.tape.sheet(dims.iter().product()), None)
    }

    pub fn scale(&self, factors: &Self) -> Self {
        let x = factors.slot.is_some().then(|| self.kept());
        let (input, by, len, few) = (self.slot.clone(), factors.slot.clone(), self.len(), factors.len());
        let learns = input.is_some() || by.is_some();
        self.result(self.dims, self.tape.sheet(len), learns, move |tape, _d| {
            if let (Some(by), Some(x)) = (&by, x) {
                let made = x.make(tape);
                tape.with(by, few);
                drop(made);
            }
            if let Some(input) = &input {
                tape.with(input, len);
            }
        })
    }

    /// The way back. `moments`: numbers of each of the moments that the first update makes.
    pub fn back(self, moments: &[usize]) -> Aftermath {
        let Self { tape, data, slot, recipe, dims } = self;
        if let Some(slot) = &slot {
            tape.with(slot, dims.iter().product());
        }
        drop((data, slot, recipe));
        let nodes = std::mem::take(&mut *lock(&tape.nodes));
        for node in nodes.into_iter().rev() {
            let gradient = lock(&node.slot).take();
            if let Some(gradient) = gradient {
                (node.backward)(&tape, gradient);
            }
        }
        let moments = moments.iter().map(|&numbers| tape.sheet(numbers)).collect();
        let scratch = rayon::current_num_threads() * *lock(&tape.scratch);
        Aftermath { rooms: tape.rooms.clone(), _moments: moments, scratch }
    }
}

/// What a step leaves: rooms that it touched, and the optimizer's moments in them.
pub(crate) struct Aftermath {
    rooms: Arc<Mutex<Rooms>>,
    _moments: Vec<Sheet>,
    scratch: usize,
}

impl Aftermath {
    /// Bytes of the pages that were ever touched, and of the threads' scratch memory.
    pub fn touched(&self) -> usize {
        lock(&self.rooms).touched() + self.scratch
    }
}

/// Numbers of a packed kernel.
fn packed_len(algorithm: Algorithm, g: &Geometry) -> usize {
    match algorithm {
        Algorithm::Dense => 0,
        // The points, and the kernel in the direct order while they are made.
        Algorithm::Winograd { points } => g.c * g.k * (points * points + 9),
        _ => g.kernel_len(),
    }
}

/// A sketch among maps of another kind.
pub(crate) fn mixed<T>() -> Result<T> {
    bail!("a sketch meets sketches alone")
}
