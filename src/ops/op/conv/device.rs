//! The composed form: Candle's operations, for other devices.

use super::step::{BatchStatistics, ConvStep, Norm, check_count};
use crate::ops::device::{geometry, padded, per_channel};
use crate::ops::feature_map::Operation;
use crate::ops::op::activate::Activate;
use candle_core::{Result, Tensor};

pub(super) fn conv_step(
    x: &Tensor,
    step: &ConvStep,
    residual: Option<&Tensor>,
) -> Result<(Tensor, Option<BatchStatistics>)> {
    let w = step.filter.product()?;
    let g = geometry(x, w.dims4()?, (step.stride, step.dilation, step.groups), step.padding)?;
    let z = padded(x, &g)?.conv2d(w, 0, step.stride, step.dilation, step.groups)?;
    let (y, statistics) = match &step.norm {
        Norm::None { bias: None } => (z, None),
        Norm::None { bias: Some(bias) } => (z.broadcast_add(&per_channel(bias)?)?, None),
        Norm::Fixed { gamma, beta, mean, var, eps } => {
            let centred = z.broadcast_sub(&per_channel(mean)?)?;
            (affine(&centred, &per_channel(var)?, gamma, beta, *eps)?, None)
        }
        Norm::Batch { gamma, beta, eps } => {
            let count = g.n * g.oh * g.ow;
            check_count(count)?;
            let mean = z.mean_keepdim((0, 2, 3))?;
            let centred = z.broadcast_sub(&mean)?;
            let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
            let y = affine(&centred, &var, gamma, beta, *eps)?;
            let unbiased = count as f64 / (count as f64 - 1.0);
            let (mean, var) = (mean.flatten_all()?.detach(), (var.flatten_all()?.detach() * unbiased)?);
            (y, Some(BatchStatistics { mean, var }))
        }
    };
    let y = match residual {
        Some(residual) => (y + residual)?,
        None => y,
    };
    Ok((Activate(step.act).device([&y])?, statistics))
}

fn affine(centred: &Tensor, var: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Tensor> {
    centred
        .broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(&per_channel(gamma)?)?
        .broadcast_add(&per_channel(beta)?)
}
