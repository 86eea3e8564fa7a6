//! In-place SGD and AdamW updates.

use super::buffer::Buffer;
use super::gradient::{Differentiable, Elements, Gradient};
use super::number::{Real, with_slice};
use super::saved::before_change;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// Elements that one task handles.
const PIECE: usize = 1 << 14;

/// The update of a parameter in one step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// PyTorch's SGD: g += decay w; m = momentum m + g (m = g at first); w -= lr (g + momentum m, or m).
    Sgd { lr: f64, momentum: f64, nesterov: bool, decay: f64, first: bool },
    /// AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), `step` counted from 1.
    AdamW { lr: f64, betas: (f64, f64), eps: f64, decay: f64, step: u64 },
}

/// The running moments of one parameter, in its own element type.
pub(crate) enum Moments {
    F32(Vec<Buffer<f32>>),
    F64(Vec<Buffer<f64>>),
    Device(Vec<Tensor>),
}

impl Moments {
    /// `count` moments of zero for a parameter.
    pub fn zeros(var: &Var, count: usize) -> Result<Self> {
        let len = var.elem_count();
        Ok(match (var.device().is_cpu(), var.dtype()) {
            (true, DType::F32) => Self::F32((0..count).map(|_| Buffer::zeros(len)).collect()),
            (true, DType::F64) => Self::F64((0..count).map(|_| Buffer::zeros(len)).collect()),
            _ => Self::Device((0..count).map(|_| var.zeros_like()).collect::<Result<_>>()?),
        })
    }

    /// Copies on the CPU, of one dimension.
    pub fn to_tensors(&self) -> Result<Vec<Tensor>> {
        match self {
            Self::F32(m) => m.iter().map(|m| Tensor::from_slice(m, m.len(), &Device::Cpu)).collect(),
            Self::F64(m) => m.iter().map(|m| Tensor::from_slice(m, m.len(), &Device::Cpu)).collect(),
            Self::Device(m) => m.iter().map(|m| m.flatten_all()?.to_device(&Device::Cpu)?.copy()).collect(),
        }
    }

    /// The moments of a parameter like `like`, from the result of [`Moments::to_tensors`].
    pub fn from_tensors(like: &Tensor, moments: &[Tensor]) -> Result<Self> {
        if let Some(m) = moments.iter().find(|m| m.elem_count() != like.elem_count() || m.dtype() != like.dtype()) {
            bail!("moments {:?} {:?} for a parameter {:?} {:?}", m.dtype(), m.dims(), like.dtype(), like.dims());
        }
        fn read<T: Real>(moments: &[Tensor]) -> Result<Vec<Buffer<T>>> {
            moments.iter().map(|m| with_slice(m, |values| Ok(Buffer::copy_of(values)))).collect()
        }
        Ok(match (like.device().is_cpu(), like.dtype()) {
            (true, DType::F32) => Self::F32(read(moments)?),
            (true, DType::F64) => Self::F64(read(moments)?),
            _ => {
                let tensor = |m: &Tensor| m.copy()?.to_device(like.device())?.reshape(like.shape());
                Self::Device(moments.iter().map(tensor).collect::<Result<_>>()?)
            }
        })
    }

    /// How many moments there are.
    pub fn count(&self) -> usize {
        match self {
            Self::F32(m) => m.len(),
            Self::F64(m) => m.len(),
            Self::Device(m) => m.len(),
        }
    }
}

/// Applies one step of `rule` with the gradient times `scale`.
pub(crate) fn update(var: &Var, gradient: &Gradient, moments: &mut Moments, rule: Rule, scale: f64) -> Result<()> {
    before_change(var)?;
    match moments {
        Moments::F32(m) => on_cpu(var, gradient, m, rule, scale),
        Moments::F64(m) => on_cpu(var, gradient, m, rule, scale),
        Moments::Device(m) => on_device(var, gradient, m, rule, scale),
    }
}

/// Replaces the elements of a variable.
pub(crate) fn overwrite(var: &Var, with: &Tensor) -> Result<()> {
    before_change(var)?;
    var.set(with)
}

fn on_cpu<T: Differentiable>(
    var: &Var,
    gradient: &Gradient,
    m: &mut [Buffer<T>],
    rule: Rule,
    scale: f64,
) -> Result<()> {
    let mut apply = |g: GradientSource<T>| var.inplace_op1(&InPlace { g, m: Mutex::new(&mut *m), rule, scale });
    match (T::of_gradient(gradient), gradient) {
        (Some(g), _) => apply(GradientSource::Elements(g)),
        (None, Gradient::Tensor(t)) => with_slice(t, |g| apply(GradientSource::Slice(g))),
        _ => bail!("the gradient of a parameter of {:?} has another type", var.dtype()),
    }
}

/// The source of a gradient's elements.
enum GradientSource<'a, T: Differentiable> {
    Slice(&'a [T]),
    Elements(&'a Elements<T>),
}

impl<T: Differentiable> GradientSource<'_, T> {
    fn len(&self) -> usize {
        match self {
            Self::Slice(g) => g.len(),
            Self::Elements(g) => g.len(),
        }
    }

    /// Lets `f` read piece `i` of a parameter, which has `len` elements.
    fn piece(&self, i: usize, len: usize, f: impl FnOnce(&[T])) {
        match self {
            Self::Slice(g) => f(&g[i * PIECE..][..len]),
            Self::Elements(g) => g.piece(i * PIECE, len, f),
        }
    }
}

/// One step on a tensor's own elements.
struct InPlace<'a, T: Differentiable> {
    g: GradientSource<'a, T>,
    m: Mutex<&'a mut [Buffer<T>]>,
    rule: Rule,
    scale: f64,
}

impl<T: Differentiable> InplaceOp1 for InPlace<'_, T> {
    fn name(&self) -> &'static str {
        "update"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let mut m = self.m.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(w), Some((from, to))) = (T::of_storage(storage), layout.contiguous_offsets()) else {
            bail!("a parameter is a contiguous tensor of {:?}", T::DTYPE)
        };
        let w = &mut w[from..to];
        if w.len() != self.g.len() || m.iter().any(|m| m.len() != w.len()) {
            bail!("a gradient of {} elements for a parameter of {}", self.g.len(), w.len());
        }
        let scale = T::from_f64(self.scale);
        match (&mut m[..], self.rule) {
            ([], Rule::Sgd { lr, decay, .. }) => {
                let (lr, decay) = (T::from_f64(lr), T::from_f64(decay));
                w.par_chunks_mut(PIECE).enumerate().for_each(|(i, w)| {
                    self.g.piece(i, w.len(), |g| {
                        w.iter_mut().zip(g).for_each(|(w, &g)| *w -= lr * (g * scale + decay * *w));
                    });
                });
            }
            ([m], Rule::Sgd { lr, momentum, nesterov, decay, first }) => {
                let (lr, decay, momentum) = (T::from_f64(lr), T::from_f64(decay), T::from_f64(momentum));
                w.par_chunks_mut(PIECE).zip(m.par_chunks_mut(PIECE)).enumerate().for_each(|(i, (w, m))| {
                    self.g.piece(i, w.len(), |g| {
                        for ((w, &g), m) in w.iter_mut().zip(g).zip(m) {
                            let g = g * scale + decay * *w;
                            *m = if first { g } else { momentum * *m + g };
                            *w -= lr * if nesterov { g + momentum * *m } else { *m };
                        }
                    });
                });
            }
            ([m, v], Rule::AdamW { lr, betas: (b1, b2), eps, decay, step }) => {
                let keep = T::from_f64(1.0 - lr * decay);
                let rate = T::from_f64(lr / (1.0 - b1.powf(step as f64)));
                let correct = T::from_f64(1.0 / (1.0 - b2.powf(step as f64)).sqrt());
                let (b1, c1) = (T::from_f64(b1), T::from_f64(1.0 - b1));
                let (b2, c2) = (T::from_f64(b2), T::from_f64(1.0 - b2));
                let eps = T::from_f64(eps);
                let moments = m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE));
                w.par_chunks_mut(PIECE).zip(moments).enumerate().for_each(|(i, (w, (m, v)))| {
                    self.g.piece(i, w.len(), |g| {
                        for (((w, &g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                            let g = g * scale;
                            *m = b1 * *m + c1 * g;
                            *v = b2 * *v + c2 * g * g;
                            *w = *w * keep - rate * *m / (v.root() * correct + eps);
                        }
                    });
                });
            }
            _ => bail!("this optimizer keeps another number of moments"),
        }
        Ok(())
    }
}

fn on_device(var: &Var, gradient: &Gradient, m: &mut [Tensor], rule: Rule, scale: f64) -> Result<()> {
    let Gradient::Tensor(g) = gradient else { bail!("a gradient on the CPU for a parameter elsewhere") };
    let (g, w) = ((g * scale)?, var.as_detached_tensor());
    let new = match (m, rule) {
        ([], Rule::Sgd { lr, decay, .. }) => {
            let g = (g + (&w * decay)?)?;
            (w - (g * lr)?)?
        }
        ([m], Rule::Sgd { lr, momentum, nesterov, decay, first }) => {
            let g = (g + (&w * decay)?)?;
            *m = if first { g.clone() } else { ((&*m * momentum)? + &g)? };
            let g = if nesterov { (g + (&*m * momentum)?)? } else { m.clone() };
            (w - (g * lr)?)?
        }
        ([m, v], Rule::AdamW { lr, betas: (b1, b2), eps, decay, step }) => {
            *m = ((&*m * b1)? + (&g * (1.0 - b1))?)?;
            *v = ((&*v * b2)? + (g.sqr()? * (1.0 - b2))?)?;
            let rate = lr / (1.0 - b1.powf(step as f64));
            let correct = 1.0 / (1.0 - b2.powf(step as f64)).sqrt();
            let below = ((v.sqrt()? * correct)? + eps)?;
            ((w * (1.0 - lr * decay))? - ((&*m / below)? * rate)?)?
        }
        _ => bail!("this optimizer keeps another number of moments"),
    };
    var.set(&new)
}
