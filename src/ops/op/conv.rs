//! Convolution, norm, residual and activation as one operation.

mod cpu;
mod device;
mod norm;
mod recompute;
mod step;
mod symbolic;

pub(crate) use step::{BatchStatistics, ConvStep, Norm};

use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::memory_model::Symbolic;
use crate::ops::value::Value;
use candle_core::{Result, Tensor};
use std::cell::Cell;

/// A step, which also returns the batch's statistics.
struct Run<'a> {
    step: &'a ConvStep<'a>,
    statistics: Cell<Option<BatchStatistics>>,
}

impl FeatureMap {
    /// Convolution, norm, residual and activation; the batch's statistics if the norm used them.
    pub fn conv_step(&self, step: &ConvStep, residual: Option<&Self>) -> Result<(Self, Option<BatchStatistics>)> {
        let run = Run { step, statistics: Cell::new(None) };
        let y = match residual {
            Some(residual) => Self::apply(&run, [self, residual])?,
            None => Self::apply(&run, [self])?,
        };
        Ok((y, run.statistics.take()))
    }
}

impl Run<'_> {
    fn on_cpu<T: Differentiable>(&self, x: &Value<T>, residual: Option<&Value<T>>) -> Result<Value<T>> {
        let (y, statistics) = cpu::conv_step(x, self.step, residual)?;
        self.statistics.set(statistics);
        Ok(y)
    }

    fn on_device(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (y, statistics) = device::conv_step(x, self.step, residual)?;
        self.statistics.set(statistics);
        Ok(y)
    }
}

impl Operation<1> for Run<'_> {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        self.on_cpu(x, None)
    }
    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        self.on_device(x, None)
    }
    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        symbolic::conv_step(x, self.step, None)
    }
}

/// With a residual.
impl Operation<2> for Run<'_> {
    fn cpu<T: Differentiable>(&self, [x, residual]: [&Value<T>; 2]) -> Result<Value<T>> {
        self.on_cpu(x, Some(residual))
    }
    fn device(&self, [x, residual]: [&Tensor; 2]) -> Result<Tensor> {
        self.on_device(x, Some(residual))
    }
    fn symbolic(&self, [x, residual]: [&Symbolic; 2]) -> Result<Symbolic> {
        symbolic::conv_step(x, self.step, Some(residual))
    }
}
