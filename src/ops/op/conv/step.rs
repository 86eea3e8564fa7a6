//! A convolution step as a value, and the decisions that its forms share.

use crate::ops::activation::Activation;
use crate::ops::filter::Filter;
use crate::ops::geometry::{Geometry, Padding};
use crate::ops::kernels::conv::{Algorithm, Choice};
use candle_core::{Result, Tensor, bail};

/// The norm after the convolution's sum.
#[derive(Clone, Copy)]
pub(crate) enum Norm<'a> {
    /// A bias or nothing; also a frozen batch norm, folded into kernel and bias.
    None { bias: Option<&'a Tensor> },
    /// Batch norm with the batch's own statistics.
    Batch { gamma: &'a Tensor, beta: &'a Tensor, eps: f64 },
    /// Batch norm with the running statistics.
    Fixed { gamma: &'a Tensor, beta: &'a Tensor, mean: &'a Tensor, var: &'a Tensor, eps: f64 },
}

/// Convolution, norm, residual and activation as one step: y = act(norm(conv(x)) + residual).
#[derive(Clone, Copy)]
pub(crate) struct ConvStep<'a> {
    pub filter: &'a Filter,
    pub stride: usize,
    pub dilation: usize,
    pub groups: usize,
    pub padding: Padding,
    pub norm: Norm<'a>,
    pub act: Activation,
}

/// The statistics of one batch, as the running ones take them in: mean and unbiased variance per channel.
pub(crate) struct BatchStatistics {
    pub mean: Tensor,
    pub var: Tensor,
}

impl ConvStep<'_> {
    /// The geometry over an input of shape (N, H, W, C).
    pub fn geometry(&self, dims: [usize; 4]) -> Result<Geometry> {
        Geometry::new(dims, self.filter.dims()?, self.stride, self.dilation, self.groups, self.padding)
    }

    /// Whether a norm follows the sum, trainable or not.
    pub fn is_normed(&self) -> bool {
        !matches!(self.norm, Norm::None { .. })
    }

    /// Whether the activation is a separate pass: its gradient needs its input, which nothing else saves.
    pub fn separates_activation(&self, residual: bool) -> bool {
        !self.act.gates_by_result() && (!self.is_normed() || residual)
    }

    /// The same step without its activation.
    pub fn without_activation(&self) -> Self {
        Self { act: Activation::Identity, ..*self }
    }

    /// Whether backward reads the result: for the slope of the activation, unless that is recomputed from the norm's
    /// input.
    pub fn saves_result(&self, residual: bool) -> bool {
        self.act != Activation::Identity && (!self.is_normed() || residual)
    }

    /// Whether the result can be recomputed from the norm's input, which backward keeps anyway. With a residual, that
    /// would have to be kept instead.
    pub fn is_recomputable(&self, residual: bool) -> bool {
        self.is_normed() && !residual
    }
}

/// Whether backward recomputes the sums that a norm reads, instead of saving them. Sums of few terms cost no more than
/// a few passes over memory. It is a first convolution, over the colours alone, or the expansion of a few channels: the
/// largest maps of all. `depth` is the number of convolutions by which the input itself is recomputed, one from the
/// other's result; a long chain of them would take time that grows with the square of its length.
pub(super) fn recomputes_sums(g: &Geometry, depth: usize) -> bool {
    g.groups == 1 && g.c * g.kh * g.kw <= 32 && depth < 2
}

/// Whether the kernel's gradient is a sum of outer products, one per image.
pub(super) fn is_sum_of_outer_products(choice: Choice, g: &Geometry) -> bool {
    choice.algorithm == Algorithm::Dense && g.n > 0
}

/// Refuses a residual of another shape than the result's.
pub(super) fn check_residual(residual: Option<[usize; 4]>, dims: [usize; 4]) -> Result<()> {
    match residual {
        Some(shape) if shape != dims => {
            bail!("a residual of shape {shape:?} (NHWC) cannot be added to a result of shape {dims:?}")
        }
        _ => Ok(()),
    }
}

/// Refuses batch statistics over fewer than two values per channel.
pub(super) fn check_count(count: usize) -> Result<()> {
    if count < 2 {
        bail!(
            "a batch norm over {count} value per channel has no variance: \
             use a larger batch or larger images, or freeze the statistics (BatchNormMode::FrozenStats)"
        );
    }
    Ok(())
}
