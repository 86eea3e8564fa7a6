//! An activation as a separate pass.

use crate::ops::activation::Activation;
use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Gate;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::kernels::norm;
use crate::ops::memory_model::{Symbolic, give};
use crate::ops::value::Value;
use candle_core::{Result, Tensor};

/// y = act(x)
pub(super) struct Activate(pub Activation);

impl FeatureMap {
    /// The activation of every element.
    pub fn activate(&self, act: Activation) -> Result<Self> {
        Self::apply(&Activate(act), [self])
    }
}

impl Operation<1> for Activate {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let (act, c) = (self.0, x.dims[3]);
        let (one, zero) = (vec![T::one(); c], vec![T::zero(); c]);
        let mut y = Buffer::arbitrary(x.data.len());
        norm::choose().affine(&x.data, &one, &zero, None, act, &mut y);
        let (saved, input) = (x.data.clone(), x.edge.clone());
        let edge = record(&[x.edge.as_ref()], move |mut d| {
            let gate = Gate { act, a: &one, b: &zero, y: None };
            norm::choose().gate_apply(&saved, &gate, [&one, &zero, &zero], &mut d, None);
            if let Some(input) = input {
                input.give(d);
            }
            Ok(())
        })?;
        Ok(Value::new(y, x.dims, edge))
    }

    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        match self.0 {
            Activation::Identity => Ok(x.clone()),
            Activation::Relu => x.relu(),
            Activation::Relu6 => x.clamp(0f32, 6f32),
            Activation::Silu => x.silu(),
            Activation::Sigmoid => candle_nn::ops::sigmoid(x),
        }
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        let (saved, input) = (x.data.clone(), x.accumulator.clone());
        Ok(x.record(x.dims, x.tape.allocate(x.len()), input.is_some(), move |_, d| {
            drop(saved);
            if let Some(input) = &input {
                give(input, d);
            }
        }))
    }
}
