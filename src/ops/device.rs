//! The same operations composed of Candle's own, for CUDA and Metal.
//!
//! Only operations whose gradients are right are used: Candle's max-pool, average pool and layer norm are not
//! among them. The composition runs on the CPU as well, where the tests differentiate it numerically.

use super::activation::Activation;
use super::geometry::{Geometry, Padding};
use super::map::{BatchMoments, ConvStep, Norm};
use super::portable::pool::adaptive_windows;
use candle_core::{Device, Result, Tensor, bail};

fn geometry(
    x: &Tensor,
    kernel: (usize, usize, usize, usize),
    step: (usize, usize, usize),
    p: Padding,
) -> Result<Geometry> {
    let (n, c, h, w) = x.dims4()?;
    Geometry::new([n, h, w, c], kernel, step.0, step.1, step.2, p)
}

/// Zeros around the pixels, less the rows and columns at the end that no window reaches: with such a rest, the
/// gradient of Candle's convolution fails or is misshapen.
fn padded(x: &Tensor, g: &Geometry) -> Result<Tensor> {
    let [top, left, bottom, right] = g.pad;
    let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
    let reach = |count: usize, kernel: usize| (count - 1) * g.stride + (kernel - 1) * g.dilation + 1;
    x.narrow(2, 0, reach(g.oh, g.kh))?.narrow(3, 0, reach(g.ow, g.kw))
}

/// One number per channel, shaped to meet (N, C, H, W).
fn per_channel(t: &Tensor) -> Result<Tensor> {
    t.reshape((1, t.elem_count(), 1, 1))
}

pub(super) fn conv_step(
    x: &Tensor,
    step: &ConvStep,
    residual: Option<&Tensor>,
) -> Result<(Tensor, Option<BatchMoments>)> {
    let w = step.filter.product()?;
    let g = geometry(x, w.dims4()?, (step.stride, step.dilation, step.groups), step.padding)?;
    let z = padded(x, &g)?.conv2d(w, 0, step.stride, step.dilation, step.groups)?;
    let (y, moments) = match &step.norm {
        Norm::None { bias: None } => (z, None),
        Norm::None { bias: Some(bias) } => (z.broadcast_add(&per_channel(bias)?)?, None),
        Norm::Fixed { gamma, beta, mean, var, eps } => {
            let centred = z.broadcast_sub(&per_channel(mean)?)?;
            (affine(&centred, &per_channel(var)?, gamma, beta, *eps)?, None)
        }
        Norm::Batch { gamma, beta, eps } => {
            let count = g.n * g.oh * g.ow;
            if count < 2 {
                bail!(
                    "a batch norm over {count} value per channel has no variance: \
                     use a larger batch or larger images, or freeze the statistics (BatchNormMode::FrozenStats)"
                );
            }
            let mean = z.mean_keepdim((0, 2, 3))?;
            let centred = z.broadcast_sub(&mean)?;
            let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
            let y = affine(&centred, &var, gamma, beta, *eps)?;
            let unbiased = count as f64 / (count as f64 - 1.0);
            let moments =
                BatchMoments { mean: mean.flatten_all()?.detach(), var: (var.flatten_all()?.detach() * unbiased)? };
            (y, Some(moments))
        }
    };
    let y = match residual {
        Some(residual) => (y + residual)?,
        None => y,
    };
    Ok((activate(&y, step.act)?, moments))
}

pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, act: Activation) -> Result<Tensor> {
    // A copy where it learns: a step between this forward and its backward must not reach what that reads.
    let weight = if weight.track_op() { weight.copy()? } else { weight.clone() };
    activate(&x.matmul(&weight.t()?)?.broadcast_add(bias)?, act)
}

fn affine(centred: &Tensor, var: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    centred
        .broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(&per_channel(gamma)?)?
        .broadcast_add(&per_channel(beta)?)
}

pub(super) fn activate(x: &Tensor, act: Activation) -> Result<Tensor> {
    match act {
        Activation::Identity => Ok(x.clone()),
        Activation::Relu => x.relu(),
        Activation::Relu6 => x.clamp(0f32, 6f32),
        Activation::Silu => x.silu(),
        Activation::Sigmoid => candle_nn::ops::sigmoid(x),
    }
}

/// The maximum over the window's positions, each a strided slice: differentiable, at k * k passes.
pub(super) fn max_pool(x: &Tensor, kernel: usize, stride: usize, padding: Padding) -> Result<Tensor> {
    let c = x.dim(1)?;
    let g = geometry(x, (c, 1, kernel, kernel), (stride, 1, c.max(1)), padding)?;
    let [top, left, bottom, right] = g.pad;
    let x = if g.pad == [0; 4] {
        x.clone()
    } else {
        // Padding must not win: it gets the lowest number of f32, and the image itself is left as it is.
        let (_, _, h, w) = x.dims4()?;
        let (rows, columns) = (top + h + bottom, left + w + right);
        let mut border = vec![f32::MIN; rows * columns];
        for row in border.chunks_exact_mut(columns).skip(top).take(h) {
            row[left..left + w].fill(0.0);
        }
        let border = Tensor::from_vec(border, (1, 1, rows, columns), x.device())?.to_dtype(x.dtype())?;
        x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?.broadcast_add(&border)?
    };
    let mut best: Option<Tensor> = None;
    for a in 0..kernel {
        for b in 0..kernel {
            let tap = strided(&strided(&x, 2, a, g.oh, stride)?, 3, b, g.ow, stride)?;
            best = Some(match best {
                None => tap,
                // The first of equals wins, as in the CPU kernel; `maximum` would share the gradient.
                Some(best) => tap.gt(&best)?.where_cond(&tap, &best)?,
            });
        }
    }
    match best {
        Some(best) => Ok(best),
        None => bail!("a pool over no pixels"),
    }
}

/// `count` elements of a dimension, from `start` on, every `stride`-th.
fn strided(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(dim, start, count);
    }
    let index: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
    x.index_select(&Tensor::from_vec(index, count, x.device())?, dim)
}

pub(super) fn average_pool(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let c = x.dim(1)?;
    let g = geometry(x, (c, 1, kernel, kernel), (stride, 1, c.max(1)), Padding::Even(0))?;
    let windows = |count: usize| (0..count).map(|i| (i * stride, i * stride + kernel)).collect::<Vec<_>>();
    average(x, &windows(g.oh), &windows(g.ow))
}

pub(super) fn adaptive_average(x: &Tensor, rows: usize, columns: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    average(x, &adaptive_windows(h, rows), &adaptive_windows(w, columns))
}

/// An average over windows is a matrix product from either side.
fn average(x: &Tensor, rows: &[(usize, usize)], columns: &[(usize, usize)]) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let weights = |size: usize, windows: &[(usize, usize)]| -> Result<Tensor> {
        let mut m = vec![0f64; size * windows.len()];
        for (j, &(from, to)) in windows.iter().enumerate() {
            for i in from..to {
                m[i * windows.len() + j] = 1.0 / (to - from) as f64;
            }
        }
        // Rounded here, since not every device knows f64.
        Tensor::from_vec(m, (size, windows.len()), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())
    };
    let across = x.reshape((n * c * h, w))?.matmul(&weights(w, columns)?)?;
    let turned = across.reshape((n * c, h, columns.len()))?.transpose(1, 2)?.contiguous()?;
    let down = turned.reshape((n * c * columns.len(), h))?.matmul(&weights(h, rows)?)?;
    down.reshape((n, c, columns.len(), rows.len()))?.transpose(2, 3)?.contiguous()
}

pub(super) fn subsample(x: &Tensor, stride: usize, before: usize, after: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let x = strided(&strided(x, 2, 0, h.div_ceil(stride), stride)?, 3, 0, w.div_ceil(stride), stride)?;
    x.pad_with_zeros(1, before, after)
}
