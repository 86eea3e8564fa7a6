//! Candle's graph orders the work; the data and its gradients live in our own buffers.
//!
//! Candle's custom operations take three tensors at most, and its backward pass makes zeros and sums for every
//! gradient. So a tracked value carries a one-element *token* in Candle's graph and a *slot* in which its gradient
//! gathers. Candle sorts, walks and sums tokens; our `bwd` then moves or accumulates the real gradients between
//! slots, in place. Parameters enter by a token of their own and features leave as ordinary tensors, so a user's
//! `loss.backward()` works, and a loss may be made of any of Candle's operations.

use super::buffer::{Buffer, Number};
use super::gradient::{Gradient, Gradients, Numbers};
use super::real::{Real, with_slice};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, TensorId, WithDType, bail};
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(true) };
    /// While `backward` runs: where parameters' gradients go instead of into Candle's store.
    static SINK: RefCell<Option<Vec<(TensorId, Gradient)>>> = const { RefCell::new(None) };
}

/// Where the gradient of a value gathers.
type Slot<T> = Arc<Mutex<Option<Numbers<T>>>>;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave a slot half written: it is replaced or taken whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tracked end of a value: its token in Candle's graph and the slot where its gradient gathers.
#[derive(Clone)]
pub(crate) struct Edge<T: Number> {
    token: Tensor,
    slot: Slot<T>,
}

impl<T: Real> Edge<T> {
    /// Hands a finished gradient over: moved if it is the first, added otherwise.
    pub fn give(&self, gradient: Buffer<T>) {
        self.give_numbers(Numbers::Full(gradient));
    }

    /// The same for a gradient in whichever form.
    pub fn give_numbers(&self, gradient: Numbers<T>) {
        let mut slot = lock(&self.slot);
        *slot = Some(match slot.take() {
            None => gradient,
            Some(sum) => sum.add(gradient),
        });
    }

    /// Lets a kernel write (`false`) or add to (`true`) the gradient of `len` elements, without a temporary.
    pub fn with(&self, len: usize, f: impl FnOnce(&mut [T], bool) -> Result<()>) -> Result<()> {
        let mut slot = lock(&self.slot);
        let (mut gradient, add) = match slot.take() {
            Some(sum) => (sum.full(), true),
            None => (Buffer::arbitrary(len), false),
        };
        // What was not written in full is no gradient.
        f(&mut gradient, add)?;
        *slot = Some(Numbers::Full(gradient));
        Ok(())
    }
}

fn token() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

/// Tensor -> token. On the way back the gathered gradient becomes the tensor's gradient.
struct Enter<T: Number>(Slot<T>);

impl<T: Real> CustomOp1 for Enter<T> {
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

/// The edge of a tensor that learns or lies behind one that does; `None` for a frozen one.
pub(crate) fn enter<T: Real>(t: &Tensor) -> Result<Option<Edge<T>>> {
    if !t.track_op() || !RECORDING.get() {
        return Ok(None);
    }
    let slot = Slot::default();
    Ok(Some(Edge { token: t.apply_op1(Enter(slot.clone()))?, slot }))
}

type Backward<T> = Box<dyn FnOnce(Buffer<T>) -> Result<()> + Send>;

/// Tokens -> token. On the way back `backward` takes the gradient of the result and feeds the parents' slots.
struct Node<T: Number> {
    slot: Slot<T>,
    backward: Mutex<Option<Backward<T>>>,
}

impl<T: Real> CustomOp1 for Node<T> {
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
        let gradient = lock(&self.slot).take();
        if let Some(gradient) = gradient {
            backward(gradient.full())?;
        }
        Ok(Some(tokens.zeros_like()?))
    }
}

/// Records an operation. Without a tracked parent nothing is recorded, and `backward` with all that it saved is
/// dropped: a frozen part costs no memory.
pub(crate) fn record<T: Real>(
    parents: &[Option<&Edge<T>>],
    backward: impl FnOnce(Buffer<T>) -> Result<()> + Send + 'static,
) -> Result<Option<Edge<T>>> {
    let tokens: Vec<&Tensor> = parents.iter().flatten().map(|edge| &edge.token).collect();
    if tokens.is_empty() {
        return Ok(None);
    }
    // Joining tokens is what lifts Candle's limit of three arguments.
    let joined = Tensor::cat(&tokens, 0)?;
    let slot = Slot::default();
    let node = Node { slot: slot.clone(), backward: Mutex::new(Some(Box::new(backward))) };
    Ok(Some(Edge { token: joined.apply_op1(node)?, slot }))
}

/// Token -> tensor: the door back into plain Candle.
struct Exit<T: Number> {
    values: Mutex<Vec<T>>,
    shape: Shape,
    slot: Slot<T>,
}

impl<T: Real> CustomOp1 for Exit<T> {
    fn name(&self) -> &'static str {
        "exit"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = std::mem::take(&mut *lock(&self.values));
        Ok((T::to_cpu_storage_owned(values), self.shape.clone()))
    }
    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = with_slice(gradient, |g| Ok(Buffer::copy_of(g)))?;
        Edge { token: token.clone(), slot: self.slot.clone() }.give(gradient);
        Ok(Some(token.zeros_like()?))
    }
}

/// An ordinary tensor of `values`, tracked if `edge` is.
pub(crate) fn exit<T: Real>(edge: Option<&Edge<T>>, values: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    match edge {
        None => Tensor::from_vec(values, shape, &Device::Cpu),
        Some(edge) => edge.token.apply_op1(Exit { values: Mutex::new(values), shape, slot: edge.slot.clone() }),
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

/// The gradients of every variable behind `loss`.
///
/// The same gradients as `loss.backward()`, bit for bit, but those of our own operations are moved to the caller
/// instead of being copied and added to zeros.
pub(crate) fn backward(loss: &Tensor) -> Result<Gradients> {
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
    gather(store, sunk)
}

fn gather(store: GradStore, sunk: Vec<(TensorId, Gradient)>) -> Result<Gradients> {
    let mut all = Gradients::new();
    for (id, gradient) in sunk {
        // A variable may enter more than once (tied weights).
        let gradient = match all.remove(&id) {
            None => gradient,
            Some(other) => other.add(gradient)?,
        };
        all.insert(id, gradient);
    }
    let ids: Vec<TensorId> = store.get_ids().copied().collect();
    for id in ids {
        let Some(t) = store.get_id(id) else { continue };
        // Detached, for a gradient that tracks its origin would keep the whole graph alive.
        let t = Gradient::Tensor(t.detach());
        let gradient = match all.remove(&id) {
            None => t,
            Some(other) => other.add(t)?,
        };
        all.insert(id, gradient);
    }
    Ok(all)
}

/// Reads a tensor's numbers into a buffer of our own.
pub(crate) fn read<T: Real + WithDType>(t: &Tensor) -> Result<Buffer<T>> {
    with_slice(t, |values| Ok(Buffer::copy_of(values)))
}

/// Whether every element is finite.
pub(crate) fn is_finite(t: &Tensor) -> Result<bool> {
    // What is not finite minus itself is NaN; everything else is 0.
    let t = t.detach();
    let sum = (&t - &t)?.sum_all()?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_scalar::<f32>()?;
    Ok(sum == 0.0)
}
