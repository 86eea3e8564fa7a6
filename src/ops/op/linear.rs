//! A fully connected layer over rows of features: a convolution over one pixel.

use super::activate::Activate;
use super::conv::{ConvStep, Norm};
use crate::ops::activation::Activation;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::filter::Filter;
use crate::ops::geometry::Padding;
use crate::ops::value::Value;
use candle_core::{DType, Result, Tensor, bail};

/// A fully connected layer, y = act(x w^T + bias): features (N, C), weights (K, C), bias (K).
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, act: Activation) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return on_device(x, weight, bias, act);
    }
    let x = match x.dtype() {
        DType::F32 => FeatureMap::F32(Value::from_rows(x)?),
        DType::F64 => FeatureMap::F64(Value::from_rows(x)?),
        other => bail!("features must be f32 or f64, but these are {other:?}"),
    };
    x.conv_step(&matrix_step(&Filter::new(weight.clone()), Some(bias), act), None)?.0.into_rows()
}

/// The composed form, on any device.
pub(in crate::ops) fn on_device(x: &Tensor, weight: &Tensor, bias: &Tensor, act: Activation) -> Result<Tensor> {
    // A copy if it is trainable: an optimizer step between forward and backward must not change what backward reads.
    let weight = if weight.track_op() { weight.copy()? } else { weight.clone() };
    Activate(act).device([&x.matmul(&weight.t()?)?.broadcast_add(bias)?])
}

/// The symbolic form, over a map of one pixel. A bias and an activation take no memory worth counting.
pub(crate) fn linear_symbolic(x: &FeatureMap, weight: Tensor) -> Result<FeatureMap> {
    Ok(x.conv_step(&matrix_step(&Filter::new(weight), None, Activation::Identity), None)?.0)
}

fn matrix_step<'a>(filter: &'a Filter, bias: Option<&'a Tensor>, act: Activation) -> ConvStep<'a> {
    let (norm, padding) = (Norm::None { bias }, Padding::Even(0));
    ConvStep { filter, stride: 1, dilation: 1, groups: 1, padding, norm, act }
}

/// A fully connected layer over a map of one pixel: (N, C, 1, 1) to (N, K, 1, 1).
pub(crate) fn linear_step(x: &FeatureMap, filter: &Filter, bias: &Tensor, act: Activation) -> Result<FeatureMap> {
    let (_, _, h, w) = x.dims()?;
    if (h, w) != (1, 1) {
        bail!("a fully connected layer takes maps of one pixel, and this one has {h} x {w}: average them first");
    }
    if let FeatureMap::Device(t) = x {
        let y = on_device(&t.flatten_from(1)?, filter.tensor(), bias, act)?;
        return Ok(FeatureMap::Device(y.unsqueeze(2)?.unsqueeze(3)?));
    }
    Ok(x.conv_step(&matrix_step(filter, Some(bias), act), None)?.0)
}
