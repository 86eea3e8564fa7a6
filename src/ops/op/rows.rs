//! Softmax, layer norm and cross entropy over the rows of ordinary tensors, with gradients.
//!
//! Candle's own fused softmax and layer norm cut the graph; its cross entropy takes hard targets only.

use crate::ops::buffer::Buffer;
use crate::ops::number::{Real, with_slice};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor, WithDType, bail,
};
use rayon::prelude::*;

/// Elements that one task of a layer norm's backward handles, about.
const PIECE: usize = 1 << 14;

/// Runs `$body` with `$t` as the tensor's element type.
macro_rules! by_type {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $t = f32;
                $body
            }
            DType::F64 => {
                type $t = f64;
                $body
            }
            other => bail!("this operation takes f32 or f64, but got {other:?}"),
        }
    };
}

/// The elements of a contiguous argument.
fn elements<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<T>()?[from..to]),
        None => bail!("a contiguous tensor is expected"),
    }
}

fn tensor<T: Real>(values: &[T], like: &Tensor) -> Result<Tensor> {
    Tensor::from_slice(values, like.shape(), like.device())
}

fn last(shape: &Shape) -> Result<usize> {
    match shape.dims().last() {
        Some(&width) if width > 0 => Ok(width),
        _ => bail!("a tensor with rows is expected, not one of shape {shape:?}"),
    }
}

/// Softmax over the last dimension, any rank.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return candle_nn::ops::softmax(x, D::Minus1);
    }
    x.contiguous()?.apply_op1(Softmax)
}

struct Softmax;

fn softmax_row<T: Real>(x: &[T], y: &mut [T]) {
    let most = x.iter().fold(x[0], |m, &v| m.larger(v));
    let mut sum = 0.0;
    for (y, &x) in y.iter_mut().zip(x) {
        *y = (x - most).exponential();
        sum += y.to_f64();
    }
    let scale = T::from_f64(1.0 / sum);
    for y in y {
        *y *= scale;
    }
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = last(layout.shape())?;
        by_type!(x.dtype(), T => {
            let x = elements::<T>(x, layout)?;
            let mut y = vec![0 as T; x.len()];
            y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| softmax_row(x, y));
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }
    /// dx = y (g - sum(g y))
    fn bwd(&self, _: &Tensor, y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let width = last(y.shape())?;
        by_type!(y.dtype(), T => with_slice::<T, _>(y, |values| with_slice::<T, _>(g, |g| {
            let mut dx = Buffer::<T>::arbitrary(g.len());
            dx.par_chunks_mut(width).zip(values.par_chunks(width)).zip(g.par_chunks(width)).for_each(|((dx, y), g)| {
                let dot = T::from_f64(y.iter().zip(g).map(|(&y, &g)| (y * g).to_f64()).sum());
                for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                    *dx = y * (g - dot);
                }
            });
            tensor(&dx, y).map(Some)
        })))
    }
}

/// Layer norm over the last dimension (Ba et al. 2016, arXiv 1607.06450): gamma (x - mean) / sqrt(var + eps) + beta.
#[cfg_attr(not(test), expect(dead_code, reason = "no architecture here has one"))]
pub(crate) fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    let width = last(x.shape())?;
    if gamma.dims() != [width] || beta.dims() != [width] {
        bail!("a layer norm over rows of {width} has a weight and a bias of {width} elements");
    }
    if !x.device().is_cpu() {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
        return centred.broadcast_div(&(var + eps)?.sqrt()?)?.broadcast_mul(gamma)?.broadcast_add(beta);
    }
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, LayerNorm { eps })
}

struct LayerNorm {
    eps: f64,
}

impl LayerNorm {
    /// Mean and 1 / sqrt(var + eps) of a row.
    fn moments<T: Real>(&self, x: &[T]) -> (f64, f64) {
        let count = x.len() as f64;
        let mean = x.iter().map(|v| v.to_f64()).sum::<f64>() / count;
        let var = x.iter().map(|v| (v.to_f64() - mean).powi(2)).sum::<f64>() / count;
        (mean, 1.0 / (var + self.eps).sqrt())
    }

    /// Over some whole rows: the gradients of gamma and of beta and, if wanted, that of the rows themselves.
    fn piece_gradients<T: Real>(&self, x: &[T], g: &[T], w: &[T], mut dx: Option<&mut [T]>) -> [Vec<f64>; 2] {
        let width = w.len();
        let (mut dgamma, mut dbeta) = (vec![0f64; width], vec![0f64; width]);
        for (row, (x, g)) in x.chunks_exact(width).zip(g.chunks_exact(width)).enumerate() {
            let (mean, inv) = self.moments(x);
            let hat = |j: usize| (x[j].to_f64() - mean) * inv;
            let (mut sum, mut dot) = (0.0, 0.0);
            for j in 0..width {
                let (g, h) = (g[j].to_f64(), hat(j));
                dgamma[j] += g * h;
                dbeta[j] += g;
                sum += g * w[j].to_f64();
                dot += g * w[j].to_f64() * h;
            }
            if let Some(dx) = &mut dx {
                let n = width as f64;
                for j in 0..width {
                    let v = inv * (g[j].to_f64() * w[j].to_f64() - (sum + hat(j) * dot) / n);
                    dx[row * width + j] = T::from_f64(v);
                }
            }
        }
        [dgamma, dbeta]
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = last(layout.shape())?;
        by_type!(x.dtype(), T => {
            let x = elements::<T>(x, layout)?;
            let (gamma, beta) = (elements::<T>(gamma, gamma_layout)?, elements::<T>(beta, beta_layout)?);
            let mut y = vec![0 as T; x.len()];
            y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| {
                let (mean, inv) = self.moments(x);
                let (mean, inv) = (<T as WithDType>::from_f64(mean), <T as WithDType>::from_f64(inv));
                for j in 0..width {
                    y[j] = (x[j] - mean) * inv * gamma[j] + beta[j];
                }
            });
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }
    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        by_type!(x.dtype(), T => with_slice::<T, _>(x, |xs| with_slice::<T, _>(g, |g| with_slice::<T, _>(gamma, |w| {
            let width = w.len();
            let mut dx = x.track_op().then(|| Buffer::<T>::arbitrary(xs.len()));
            // Pieces of fixed size, so that the sums have one order for any number of threads.
            let piece = (PIECE / width).max(1) * width;
            let sums: Vec<[Vec<f64>; 2]> = match &mut dx {
                Some(dx) => dx
                    .par_chunks_mut(piece)
                    .zip(xs.par_chunks(piece).zip(g.par_chunks(piece)))
                    .map(|(dx, (x, g))| self.piece_gradients(x, g, w, Some(dx)))
                    .collect(),
                None => {
                    let pieces = xs.par_chunks(piece).zip(g.par_chunks(piece));
                    pieces.map(|(x, g)| self.piece_gradients(x, g, w, None)).collect()
                }
            };
            let total = |which: usize, like: &Tensor| -> Result<Option<Tensor>> {
                if !like.track_op() {
                    return Ok(None);
                }
                let mut total = vec![0f64; width];
                for sums in &sums {
                    total.iter_mut().zip(&sums[which]).for_each(|(t, s)| *t += s);
                }
                tensor(&total.into_iter().map(<T as WithDType>::from_f64).collect::<Vec<T>>(), like).map(Some)
            };
            let dx = dx.map(|dx| tensor(&dx, x)).transpose()?;
            Ok((dx, total(0, gamma)?, total(1, beta)?))
        }))))
    }
}

/// The mean over the rows of -sum(target log softmax(logits)): hard targets are rows of one 1.
///
/// `logits` and `targets` are (N, classes); the result is a scalar. No gradient reaches the targets.
pub(crate) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = targets.to_dtype(logits.dtype())?.detach();
    if logits.dims() != targets.dims() || logits.rank() != 2 || logits.elem_count() == 0 {
        bail!(
            "cross entropy takes logits and targets (N, classes), but got {:?} and {:?}",
            logits.dims(),
            targets.dims()
        );
    }
    if !logits.device().is_cpu() {
        let log = candle_nn::ops::log_softmax(logits, D::Minus1)?;
        // A class of no weight adds nothing, however unlikely: zero times infinity would be NaN.
        let log = targets.ne(0f64)?.where_cond(&log, &log.zeros_like()?)?;
        return (log * targets)?.sum(D::Minus1)?.mean_all()?.neg();
    }
    logits.contiguous()?.apply_op2(&targets.contiguous()?, CrossEntropy)
}

struct CrossEntropy;

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        t: &CpuStorage,
        t_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = last(layout.shape())?;
        by_type!(x.dtype(), T => {
            let (x, t) = (elements::<T>(x, layout)?, elements::<T>(t, t_layout)?);
            let mut loss = 0.0;
            for (x, t) in x.chunks_exact(width).zip(t.chunks_exact(width)) {
                let most = x.iter().fold(f64::NEG_INFINITY, |m, v| m.max(v.to_f64()));
                let log_sum = x.iter().map(|v| (v.to_f64() - most).exp()).sum::<f64>().ln() + most;
                // A class of no weight adds nothing, however unlikely: zero times infinity would be NaN.
                let weighted = x.iter().zip(t).filter(|(_, t)| t.to_f64() != 0.0);
                loss += weighted.map(|(v, t)| t.to_f64() * (log_sum - v.to_f64())).sum::<f64>();
            }
            let mean = <T as WithDType>::from_f64(loss / (x.len() / width) as f64);
            Ok((T::to_cpu_storage_owned(vec![mean]), Shape::from(())))
        })
    }
    /// d logits = g (softmax sum(t) - t) / N
    fn bwd(&self, x: &Tensor, t: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = last(x.shape())?;
        let scale = g.to_dtype(DType::F64)?.to_scalar::<f64>()? / (x.elem_count() / width) as f64;
        by_type!(x.dtype(), T => with_slice::<T, _>(x, |values| with_slice::<T, _>(t, |t| {
            let mut dx = Buffer::<T>::arbitrary(values.len());
            for ((dx, x), t) in dx.chunks_exact_mut(width).zip(values.chunks_exact(width)).zip(t.chunks_exact(width)) {
                softmax_row(x, dx);
                let mass = t.iter().map(|t| t.to_f64()).sum::<f64>();
                for (dx, t) in dx.iter_mut().zip(t) {
                    *dx = <T as WithDType>::from_f64(scale * (dx.to_f64() * mass - t.to_f64()));
                }
            }
            Ok((Some(tensor(&dx, x)?), None))
        })))
    }
}
