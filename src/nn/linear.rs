//! Fully connected layers inside a network.

use super::builder::{Builder, Module};
use crate::error::Result;
use crate::ops::{Activation, FeatureMap, Filter, linear_step};
use crate::params::{Facts, TensorInit};
use candle_core::Tensor;

/// y = act(x w^T + bias) over maps of one pixel.
pub(crate) struct LinearLayer {
    filter: Filter,
    bias: Tensor,
    act: Activation,
}

impl LinearLayer {
    /// From the tensors `{path}.weight` (outputs, inputs) and `{path}.bias`, which start as PyTorch's do: uniform within
    /// 1 / sqrt(inputs).
    pub fn new(b: &mut Builder<'_>, path: &str, inputs: usize, outputs: usize, act: Activation) -> Result<Self> {
        let init = TensorInit::Uniform(1.0 / (inputs.max(1) as f64).sqrt());
        let weight = b.slot(format!("{path}.weight"), vec![outputs, inputs], Facts::parameter(init, 2))?;
        let bias = b.slot(format!("{path}.bias"), vec![outputs], Facts::parameter(init, 1))?;
        Ok(Self { filter: b.filter(weight.tensor().clone()), bias: bias.tensor().clone(), act })
    }
}

impl Module for LinearLayer {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        Ok(linear_step(x, &self.filter, &self.bias, self.act)?)
    }
}
