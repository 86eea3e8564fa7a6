//! Parts that the composed forms of several operations share.
//!
//! A composed form consists of Candle's own operations, for CUDA and Metal. Only operations whose gradients are right
//! are used: Candle's max-pool, average pool and layer norm are not among them. The composition runs on the CPU as
//! well, where the tests differentiate it numerically.

use super::geometry::{Geometry, Padding};
use candle_core::{Result, Tensor};

/// The geometry over an NCHW tensor; `step` is stride, dilation and groups.
pub(super) fn geometry(
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
pub(super) fn padded(x: &Tensor, g: &Geometry) -> Result<Tensor> {
    let [top, left, bottom, right] = g.pad;
    let x = x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?;
    let reach = |count: usize, kernel: usize| (count - 1) * g.stride + (kernel - 1) * g.dilation + 1;
    x.narrow(2, 0, reach(g.oh, g.kh))?.narrow(3, 0, reach(g.ow, g.kw))
}

/// One element per channel, shaped to broadcast over (N, C, H, W).
pub(super) fn per_channel(t: &Tensor) -> Result<Tensor> {
    t.reshape((1, t.elem_count(), 1, 1))
}

/// `count` elements of a dimension, from `start` on, every `stride`-th.
pub(super) fn strided(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return x.narrow(dim, start, count);
    }
    let index: Vec<u32> = (0..count).map(|i| (start + i * stride) as u32).collect();
    x.index_select(&Tensor::from_vec(index, count, x.device())?, dim)
}
