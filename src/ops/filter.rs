//! A convolution's weights, and the order in which its loops want them.

use super::buffer::Buffer;
use super::geometry::Geometry;
use super::reading::Reading;
use super::real::{Algorithm, Epilogue, Real, with_slice};
use crate::fingerprint::{Fingerprint, Float};
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;
use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A convolution's kernel (K, C / groups, KH, KW) or a matrix (K, C), and its packed copies where it is frozen.
#[derive(Clone)]
pub(crate) struct Filter(Arc<Inner>);

struct Inner {
    tensor: Tensor,
    /// A factor per output channel, from a batch norm that is folded into the kernel (f64, on the CPU).
    factors: Option<Tensor>,
    /// Whether to keep packed copies.
    keeps: bool,
    packed: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
    /// The kernel times its factors, where something takes it unpacked.
    product: OnceLock<Tensor>,
}

/// A kernel that is ready for one geometry.
#[derive(Clone)]
pub(crate) struct Kernel<T: Real> {
    algorithm: Algorithm,
    weights: Weights,
    /// Where it is frozen: packed once for ever. Else it is packed for each use, which takes no memory meanwhile.
    packed: Option<Arc<Packed<T>>>,
}

#[derive(Clone)]
enum Weights {
    /// They may change.
    Learn(Arc<Reading>),
    Frozen(Filter),
}

/// A frozen kernel in the orders of its algorithm.
struct Packed<T: Real> {
    algorithm: Algorithm,
    there: Buffer<T>,
    /// Made when first asked for, if it differs: few frozen kernels have anything that learns before them.
    back: OnceLock<Buffer<T>>,
}

impl Filter {
    pub fn new(tensor: Tensor) -> Self {
        let keeps = !tensor.track_op();
        Self::with(tensor, None, keeps)
    }

    /// Without packed copies: one that will be used a few times only.
    pub fn passing(&self) -> Self {
        Self::with(self.0.tensor.clone(), self.0.factors.clone(), false)
    }

    /// A frozen kernel times a factor per output channel (f64, on the CPU).
    pub fn times(&self, factors: Tensor) -> Self {
        Self::with(self.0.tensor.clone(), Some(factors), self.0.keeps)
    }

    fn with(tensor: Tensor, factors: Option<Tensor>, keeps: bool) -> Self {
        Self(Arc::new(Inner { tensor, factors, keeps, packed: Mutex::default(), product: OnceLock::new() }))
    }

    /// The kernel as it came, without factors.
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
        // On the CPU, since not every device knows f64.
        let wide = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        wide.broadcast_mul(&factors.reshape(((), 1, 1, 1))?)?.to_dtype(tensor.dtype())?.to_device(tensor.device())
    }

    /// The same, kept.
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

    /// The kernel as the geometry's algorithm wants it.
    pub fn kernel<T: Real>(&self, g: &Geometry) -> Result<Kernel<T>> {
        let algorithm = T::algorithm(g);
        let tensor = &self.0.tensor;
        let weights =
            if tensor.track_op() { Weights::Learn(Reading::new(tensor)) } else { Weights::Frozen(self.clone()) };
        // `Dense` takes the weights as they lie.
        let keeps = self.0.keeps && algorithm != Algorithm::Dense;
        let packed = if keeps { Some(self.packed(algorithm, g)?) } else { None };
        Ok(Kernel { algorithm, weights, packed })
    }

    fn packed<T: Real>(&self, algorithm: Algorithm, g: &Geometry) -> Result<Arc<Packed<T>>> {
        let find = |packed: &[Arc<dyn Any + Send + Sync>]| {
            packed.iter().filter_map(|p| p.clone().downcast::<Packed<T>>().ok()).find(|p| p.algorithm == algorithm)
        };
        let list = || self.0.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = find(&list()) {
            return Ok(known);
        }
        // Packing runs on rayon's threads, which may take up other work of the caller's meanwhile, and that may want
        // this very lock. So it is not held; whoever comes second drops what he made.
        let there = with_slice(&self.weights()?, |w| Ok(T::pack(algorithm, w, g, false)))?;
        let new = Arc::new(Packed { algorithm, there, back: OnceLock::new() });
        let mut packed = list();
        if let Some(known) = find(&packed) {
            return Ok(known);
        }
        packed.push(new.clone());
        Ok(new)
    }

    /// The kernel times its factors, if that is kept.
    pub fn kept_product(&self) -> Option<&Tensor> {
        self.0.product.get()
    }

    /// The name and the checksum of each packed copy.
    pub fn packed_sums(&self) -> Vec<(String, u64)> {
        fn of<T: Real + Float>(packed: &Packed<T>, i: usize) -> Vec<(String, u64)> {
            let sum = |b: &Buffer<T>| Fingerprint::new("packed").floats(b).finish();
            let there = (format!("packed kernel {i}"), sum(&packed.there));
            let back = packed.back.get().map(|back| (format!("packed kernel {i} for the way back"), sum(back)));
            std::iter::once(there).chain(back).collect()
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
    /// Lets `f` read them. `keep`: as they will be asked for again.
    fn with<T: Real, R>(&self, keep: bool, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
        match self {
            Self::Learn(reading) => reading.with(f),
            Self::Frozen(filter) if keep => with_slice(filter.product()?, f),
            Self::Frozen(filter) => with_slice(&filter.weights()?, f),
        }
    }
}

impl<T: Real> Kernel<T> {
    /// y = act(conv(x, w) + bias + residual)
    pub fn conv(&self, x: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) -> Result<()> {
        if let Some(packed) = &self.packed {
            T::conv(self.algorithm, x, &packed.there, g, e, y);
            return Ok(());
        }
        self.once(g, false, |w| T::conv(self.algorithm, x, w, g, e, y))
    }

    /// The gradient of the input, written or added.
    pub fn input(&self, dy: &[T], g: &Geometry, dx: &mut [T], add: bool) -> Result<()> {
        let Some(packed) = &self.packed else {
            return self.once(g, true, |w| T::conv_input(self.algorithm, dy, w, g, dx, add));
        };
        if !self.algorithm.turns() {
            T::conv_input(self.algorithm, dy, &packed.there, g, dx, add);
            return Ok(());
        }
        if packed.back.get().is_none() {
            // Made outside the cell's lock: packing uses the thread pool, whose threads may come here for this kernel.
            let made = self.weights.with(false, |w| Ok(T::pack(self.algorithm, w, g, true)))?;
            let _ = packed.back.set(made);
        }
        if let Some(back) = packed.back.get() {
            T::conv_input(self.algorithm, dy, back, g, dx, add);
        }
        Ok(())
    }

    /// Lets `f` use the weights in their algorithm's order, and forgets that again.
    fn once(&self, g: &Geometry, back: bool, f: impl FnOnce(&[T])) -> Result<()> {
        self.weights.with(true, |w| {
            match self.algorithm {
                Algorithm::Dense => f(w),
                algorithm => f(&T::pack(algorithm, w, g, back)),
            }
            Ok(())
        })
    }
}
