//! Connects our operations to Candle's graph through one-element tokens.
//!
//! Candle's custom operations take three tensors at most, and its backward pass makes zeros and sums for every
//! gradient. So a tracked value carries a one-element *token* in Candle's graph and an *accumulator* of its gradient.
//! Candle sorts, walks and sums tokens; our `bwd` then moves or adds the real gradients from accumulator to
//! accumulator, in place. Parameters enter by a token of their own and features leave as ordinary tensors, so a user's
//! `loss.backward()` works, and a loss may consist of any of Candle's operations.

use super::buffer::{Buffer, Pod};
use super::gradient::{Differentiable, Elements, Gradient, Gradients};
use super::number::{Real, with_slice};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, TensorId, bail};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
    /// While `backward` runs: where parameters' gradients are stored instead of in Candle's store.
    static SINK: RefCell<Option<Vec<(TensorId, Gradient)>>> = const { RefCell::new(None) };
}

/// The sum of the gradients that have reached a value so far.
type Accumulator<T> = Arc<Mutex<Option<Elements<T>>>>;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave an accumulator half written: it is replaced or taken whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tracked end of a value: its token in Candle's graph and its gradient's accumulator.
#[derive(Clone)]
pub(crate) struct Edge<T: Pod> {
    token: Tensor,
    accumulator: Accumulator<T>,
}

impl<T: Differentiable> Edge<T> {
    /// Hands a finished gradient over: moved if it is the first, added otherwise.
    pub fn give(&self, gradient: Buffer<T>) {
        self.give_elements(Elements::Full(gradient));
    }

    /// The same for a gradient in either form.
    pub fn give_elements(&self, gradient: Elements<T>) {
        let mut sum = lock(&self.accumulator);
        *sum = Some(match sum.take() {
            None => gradient,
            Some(sum) => sum.add(gradient),
        });
    }

    /// Lets a kernel write (`false`) or add to (`true`) the gradient of `len` elements, without a temporary.
    pub fn with(&self, len: usize, f: impl FnOnce(&mut [T], bool) -> Result<()>) -> Result<()> {
        let mut sum = lock(&self.accumulator);
        let (mut gradient, add) = match sum.take() {
            Some(sum) => (sum.full(), true),
            None => (Buffer::arbitrary(len), false),
        };
        // A partly written buffer is no gradient.
        f(&mut gradient, add)?;
        *sum = Some(Elements::Full(gradient));
        Ok(())
    }
}

fn token() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

/// Tensor -> token. In backward the accumulated gradient becomes the tensor's gradient.
struct Enter<T: Pod>(Accumulator<T>);

impl<T: Differentiable> CustomOp1 for Enter<T> {
    fn name(&self) -> &'static str {
        "enter"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token())
    }
    fn bwd(&self, tensor: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let Some(gradient) = lock(&self.0).take() else {
            // Candle expects a gradient of everything that is not a variable.
            return if tensor.is_variable() { Ok(None) } else { tensor.zeros_like().map(Some) };
        };
        let gradient = T::gradient(gradient);
        let sunk = SINK.with_borrow_mut(|sink| match sink {
            Some(sink) if tensor.is_variable() => {
                sink.push((tensor.id(), gradient));
                None
            }
            _ => Some(gradient),
        });
        sunk.map(|gradient| gradient.into_tensor(tensor.shape())).transpose()
    }
}

/// The edge of a tensor that is trainable or computed from a trainable one; `None` for a frozen one.
pub(crate) fn enter<T: Differentiable>(t: &Tensor) -> Result<Option<Edge<T>>> {
    if !t.track_op() || !RECORDING.get() {
        return Ok(None);
    }
    let accumulator = Accumulator::default();
    Ok(Some(Edge { token: t.apply_op1(Enter(accumulator.clone()))?, accumulator }))
}

type Backward<T> = Box<dyn FnOnce(Buffer<T>) -> Result<()> + Send>;

/// Tokens -> token. In backward the closure takes the gradient of the result and feeds the parents' accumulators.
struct Node<T: Pod> {
    accumulator: Accumulator<T>,
    backward: Mutex<Option<Backward<T>>>,
}

impl<T: Differentiable> CustomOp1 for Node<T> {
    fn name(&self) -> &'static str {
        "node"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token())
    }
    fn bwd(&self, tokens: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let Some(backward) = lock(&self.backward).take() else {
            bail!(
                "backward ran a second time over one graph, whose activations are freed by then: \
                 add the losses up first, or run forward again"
            )
        };
        let gradient = lock(&self.accumulator).take();
        if let Some(gradient) = gradient {
            backward(gradient.full())?;
        }
        Ok(Some(tokens.zeros_like()?))
    }
}

/// Records an operation. Without a tracked parent nothing is recorded, and `backward` with all that it saved is
/// dropped: a frozen part costs no memory.
pub(crate) fn record<T: Differentiable>(
    parents: &[Option<&Edge<T>>],
    backward: impl FnOnce(Buffer<T>) -> Result<()> + Send + 'static,
) -> Result<Option<Edge<T>>> {
    let tokens: Vec<&Tensor> = parents.iter().flatten().map(|edge| &edge.token).collect();
    if tokens.is_empty() {
        return Ok(None);
    }
    // Joining tokens is what lifts Candle's limit of three arguments.
    let joined = Tensor::cat(&tokens, 0)?;
    let accumulator = Accumulator::default();
    let node = Node { accumulator: accumulator.clone(), backward: Mutex::new(Some(Box::new(backward))) };
    Ok(Some(Edge { token: joined.apply_op1(node)?, accumulator }))
}

/// Token -> tensor: the door back into plain Candle.
struct Exit<T: Pod> {
    values: Mutex<Vec<T>>,
    shape: Shape,
    accumulator: Accumulator<T>,
}

impl<T: Differentiable> CustomOp1 for Exit<T> {
    fn name(&self) -> &'static str {
        "exit"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = std::mem::take(&mut *lock(&self.values));
        Ok((T::to_cpu_storage_owned(values), self.shape.clone()))
    }
    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = with_slice(gradient, |g| Ok(Buffer::copy_of(g)))?;
        Edge { token: token.clone(), accumulator: self.accumulator.clone() }.give(gradient);
        Ok(Some(token.zeros_like()?))
    }
}

/// An ordinary tensor of `values`, tracked if `edge` is.
pub(crate) fn exit<T: Differentiable>(
    edge: Option<&Edge<T>>,
    values: Vec<T>,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    let shape = shape.into();
    match edge {
        None => Tensor::from_vec(values, shape, &Device::Cpu),
        Some(edge) => {
            edge.token.apply_op1(Exit { values: Mutex::new(values), shape, accumulator: edge.accumulator.clone() })
        }
    }
}

/// Runs `f` without recording: evaluation and prediction. Recording resumes even if `f` panics.
pub(crate) fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            RECORDING.set(self.0);
        }
    }
    let _restore = Restore(RECORDING.replace(false));
    f()
}

/// The gradients of `loss` with respect to the named variables.
///
/// The same gradients as `loss.backward()`, bit for bit, but those of our own operations are moved to the caller
/// instead of being copied and added to zeros. A variable that the loss does not depend on has no entry.
pub(crate) fn backward<'a>(loss: &Tensor, names: impl IntoIterator<Item = (&'a str, TensorId)>) -> Result<Gradients> {
    struct Restore(Option<Vec<(TensorId, Gradient)>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SINK.set(self.0.take());
        }
    }
    let restore = Restore(SINK.replace(Some(Vec::new())));
    let store = loss.backward()?;
    let sunk = SINK.take().unwrap_or_default();
    drop(restore);
    by_name(store, sunk, names)
}

fn by_name<'a>(
    store: GradStore,
    sunk: Vec<(TensorId, Gradient)>,
    names: impl IntoIterator<Item = (&'a str, TensorId)>,
) -> Result<Gradients> {
    let mut own: HashMap<TensorId, Gradient> = HashMap::new();
    for (id, gradient) in sunk {
        // A variable may enter more than once (tied weights).
        let gradient = match own.remove(&id) {
            None => gradient,
            Some(other) => other.add(gradient)?,
        };
        own.insert(id, gradient);
    }
    let (mut all, mut seen) = (Gradients::new(), HashSet::new());
    for (name, id) in names {
        if !seen.insert(id) {
            bail!("{name} is a second name of one variable, which would be stepped twice");
        }
        // Detached, for a gradient that tracks its origin would keep the whole graph alive.
        let candle = store.get_id(id).map(|t| Gradient::Tensor(t.detach()));
        let gradient = match (own.remove(&id), candle) {
            (Some(own), Some(candle)) => own.add(candle)?,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => continue,
        };
        all.insert(name.to_string(), gradient);
    }
    Ok(all)
}

/// Copies a tensor's elements into a buffer of our own.
pub(crate) fn read<T: Real>(t: &Tensor) -> Result<Buffer<T>> {
    with_slice(t, |values| Ok(Buffer::copy_of(values)))
}

/// Whether every element is finite.
pub(crate) fn is_finite(t: &Tensor) -> Result<bool> {
    // x - x is NaN if x is not finite, else 0.
    let t = t.detach();
    let sum = (&t - &t)?.sum_all()?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_scalar::<f32>()?;
    Ok(sum == 0.0)
}
