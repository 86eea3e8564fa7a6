//! A convolution's weights, and the packed orders in which the kernels read them.

use super::buffer::Buffer;
use super::epilogue::Epilogue;
use super::geometry::Geometry;
use super::kernels::conv::{Algorithm, Choice, Direction, choose};
use super::number::with_slice;
use super::saved::SavedTensor;
use super::simd::Lanes;
use crate::fingerprint::{Fingerprint, Float};
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A convolution's kernel (K, C / groups, KH, KW) or a matrix (K, C), and its packed copies if it is frozen.
#[derive(Clone)]
pub(crate) struct Filter(Arc<Inner>);

struct Inner {
    tensor: Tensor,
    /// A factor per output channel, from a batch norm that is folded into the kernel (f64, on the CPU).
    factors: Option<Tensor>,
    /// Whether to cache packed copies.
    caches: bool,
    packed: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
    /// The kernel times its factors, if it is read unpacked.
    product: OnceLock<Tensor>,
}

/// A filter that is ready for one geometry.
#[derive(Clone)]
pub(crate) struct PreparedFilter<T: Lanes> {
    pub choice: Choice,
    weights: Weights,
    /// A frozen filter is packed once. A trainable one is packed for each use, and takes no memory in between.
    packed: Option<Arc<Packed<T>>>,
}

#[derive(Clone)]
enum Weights {
    /// They may change before backward.
    Learning(Arc<SavedTensor>),
    Frozen(Filter),
}

/// A frozen kernel in the orders of its algorithm.
struct Packed<T: Lanes> {
    algorithm: Algorithm,
    forward: Buffer<T>,
    /// Packed at the first use, if the order differs: most frozen kernels have no trainable tensor before them.
    backward: OnceLock<Buffer<T>>,
}

impl Filter {
    pub fn new(tensor: Tensor) -> Self {
        let caches = !tensor.track_op();
        Self::with(tensor, None, caches)
    }

    /// Without packed copies: for a filter that is used a few times only.
    pub fn temporary(&self) -> Self {
        Self::with(self.0.tensor.clone(), self.0.factors.clone(), false)
    }

    /// A frozen kernel times a factor per output channel (f64, on the CPU).
    pub fn times(&self, factors: Tensor) -> Self {
        Self::with(self.0.tensor.clone(), Some(factors), self.0.caches)
    }

    fn with(tensor: Tensor, factors: Option<Tensor>, caches: bool) -> Self {
        Self(Arc::new(Inner { tensor, factors, caches, packed: Mutex::default(), product: OnceLock::new() }))
    }

    /// The kernel as it was given, without factors.
    pub fn tensor(&self) -> &Tensor {
        &self.0.tensor
    }

    /// The kernel times its factors. Computed in f64, rounded once.
    fn weights(&self) -> Result<Tensor> {
        let (tensor, Some(factors)) = (&self.0.tensor, &self.0.factors) else { return Ok(self.0.tensor.clone()) };
        if tensor.device().is_cpu() && tensor.dtype() == DType::F32 {
            let factors = factors.to_vec1::<f64>()?;
            let product = with_slice::<f32, _>(tensor, |w| {
                let row = (w.len() / factors.len().max(1)).max(1);
                let mut product = vec![0.0; w.len()];
                let rows = product.par_chunks_mut(row).zip(w.par_chunks(row)).zip(&factors);
                rows.for_each(|((to, from), &factor)| {
                    to.iter_mut().zip(from).for_each(|(to, &w)| *to = (f64::from(w) * factor) as f32);
                });
                Ok(product)
            })?;
            return Tensor::from_vec(product, tensor.shape(), &Device::Cpu);
        }
        // On the CPU, since not every device supports f64.
        let wide = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        wide.broadcast_mul(&factors.reshape(((), 1, 1, 1))?)?.to_dtype(tensor.dtype())?.to_device(tensor.device())
    }

    /// The same, cached.
    pub fn product(&self) -> Result<&Tensor> {
        if self.0.factors.is_none() {
            return Ok(&self.0.tensor);
        }
        if let Some(product) = self.0.product.get() {
            return Ok(product);
        }
        let product = self.weights()?;
        Ok(self.0.product.get_or_init(|| product))
    }

    /// (K, C / groups, KH, KW)
    pub fn dims(&self) -> Result<(usize, usize, usize, usize)> {
        if let [k, c] = *self.0.tensor.dims() { Ok((k, c, 1, 1)) } else { self.0.tensor.dims4() }
    }

    /// Whether the kernel is trainable or computed from a trainable tensor.
    pub fn learns(&self) -> bool {
        self.0.tensor.track_op()
    }

    /// Whether the filter keeps a packed copy where this choice is made.
    pub fn caches_packed(&self, choice: Choice) -> bool {
        self.0.caches && !choice.reads_unpacked()
    }

    /// The kernel as the geometry's algorithm reads it.
    pub fn prepare<T: Lanes>(&self, g: &Geometry) -> Result<PreparedFilter<T>> {
        let choice = choose(g);
        let tensor = &self.0.tensor;
        let weights =
            if self.learns() { Weights::Learning(SavedTensor::new(tensor)) } else { Weights::Frozen(self.clone()) };
        let packed = if self.caches_packed(choice) { Some(self.packed(choice, g)?) } else { None };
        Ok(PreparedFilter { choice, weights, packed })
    }

    fn packed<T: Lanes>(&self, choice: Choice, g: &Geometry) -> Result<Arc<Packed<T>>> {
        let algorithm = choice.algorithm;
        let find = |packed: &[Arc<dyn Any + Send + Sync>]| {
            packed.iter().filter_map(|p| p.clone().downcast::<Packed<T>>().ok()).find(|p| p.algorithm == algorithm)
        };
        let list = || self.0.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = find(&list()) {
            return Ok(known);
        }
        // Packing runs on rayon's threads, which may take up other work of the caller's meanwhile, and that may take
        // this very lock. So it is not held; the thread that comes second drops its copy.
        let forward = with_slice(&self.weights()?, |w| Ok(choice.pack(w, g, Direction::Forward)))?;
        let new = Arc::new(Packed { algorithm, forward, backward: OnceLock::new() });
        let mut packed = list();
        if let Some(known) = find(&packed) {
            return Ok(known);
        }
        packed.push(new.clone());
        Ok(new)
    }

    /// The kernel times its factors, if that is cached.
    pub fn kept_product(&self) -> Option<&Tensor> {
        self.0.product.get()
    }

    /// The name and the checksum of each packed copy.
    pub fn packed_sums(&self) -> Vec<(String, u64)> {
        fn of<T: Lanes + Float>(packed: &Packed<T>, i: usize) -> Vec<(String, u64)> {
            let sum = |b: &Buffer<T>| Fingerprint::new("packed").floats(b).finish();
            let forward = (format!("packed kernel {i}"), sum(&packed.forward));
            let backward = packed.backward.get().map(|b| (format!("packed kernel {i} for backward"), sum(b)));
            std::iter::once(forward).chain(backward).collect()
        }
        let packed = self.0.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let each = |(i, p): (usize, &Arc<dyn Any + Send + Sync>)| match p.downcast_ref::<Packed<f32>>() {
            Some(p) => of(p, i),
            None => p.downcast_ref::<Packed<f64>>().map(|p| of(p, i)).unwrap_or_default(),
        };
        packed.iter().enumerate().flat_map(each).collect()
    }
}

impl Weights {
    /// Lets `f` read them. `cache`: whether to cache a product with factors, since it will be read again.
    fn with<T: Lanes, R>(&self, cache: bool, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
        match self {
            Self::Learning(saved) => saved.with(f),
            Self::Frozen(filter) if cache => with_slice(filter.product()?, f),
            Self::Frozen(filter) => with_slice(&filter.weights()?, f),
        }
    }
}

impl<T: Lanes> PreparedFilter<T> {
    /// y = act(conv(x, w) + bias + residual)
    pub fn conv(&self, x: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) -> Result<()> {
        if let Some(packed) = &self.packed {
            self.choice.forward(x, &packed.forward, g, e, y);
            return Ok(());
        }
        self.once(g, Direction::Forward, |w| self.choice.forward(x, w, g, e, y))
    }

    /// The gradient of the input, written or added.
    pub fn input_gradient(&self, dy: &[T], g: &Geometry, dx: &mut [T], add: bool) -> Result<()> {
        let Some(packed) = &self.packed else {
            return self.once(g, Direction::Backward, |w| self.choice.input_gradient(dy, w, g, dx, add));
        };
        if !self.choice.packs_for_backward() {
            self.choice.input_gradient(dy, &packed.forward, g, dx, add);
            return Ok(());
        }
        if packed.backward.get().is_none() {
            // Outside the cell's lock: packing uses the thread pool, whose threads may come here for this kernel.
            let new = self.weights.with(false, |w| Ok(self.choice.pack(w, g, Direction::Backward)))?;
            let _ = packed.backward.set(new);
        }
        if let Some(backward) = packed.backward.get() {
            self.choice.input_gradient(dy, backward, g, dx, add);
        }
        Ok(())
    }

    /// Lets `f` read the weights in the algorithm's order, and drops the packed copy.
    fn once(&self, g: &Geometry, direction: Direction, f: impl FnOnce(&[T])) -> Result<()> {
        self.weights.with(true, |w| {
            if self.choice.reads_unpacked() {
                f(w);
            } else {
                f(&self.choice.pack(w, g, direction));
            }
            Ok(())
        })
    }
}
