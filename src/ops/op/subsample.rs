//! The parameter-free shortcut of the CIFAR ResNets (He et al. 2015, option A).

use crate::ops::buffer::Buffer;
use crate::ops::device::strided;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::memory_model::Symbolic;
use crate::ops::value::Value;
use candle_core::{Result, Tensor};

/// Every `stride`-th pixel, with `before` and `after` channels of zeros around.
struct Subsample {
    stride: usize,
    before: usize,
    after: usize,
}

impl FeatureMap {
    /// Every `stride`-th pixel, with `before` and `after` channels of zeros around.
    pub fn subsample(&self, stride: usize, before: usize, after: usize) -> Result<Self> {
        Self::apply(&Subsample { stride, before, after }, [self])
    }
}

impl Subsample {
    fn dims(&self, [n, h, w, c]: [usize; 4]) -> [usize; 4] {
        [n, h.div_ceil(self.stride), w.div_ceil(self.stride), self.before + c + self.after]
    }
}

impl Operation<1> for Subsample {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let [n, h, w, c] = x.dims;
        let Self { stride, before, .. } = *self;
        let dims = self.dims(x.dims);
        let [_, oh, ow, k] = dims;
        let mut y = Buffer::zeros(n * oh * ow * k);
        let from = move |pixel: usize| {
            let (ox, rest) = (pixel % ow, pixel / ow);
            (((rest / oh) * h + (rest % oh) * stride) * w + ox * stride) * c
        };
        for (pixel, y) in y.chunks_exact_mut(k).enumerate() {
            y[before..before + c].copy_from_slice(&x.data[from(pixel)..][..c]);
        }
        let input = x.edge.clone();
        let edge = record(&[x.edge.as_ref()], move |d| {
            let mut dx = Buffer::zeros(n * h * w * c);
            for (pixel, d) in d.chunks_exact(k).enumerate() {
                dx[from(pixel)..][..c].copy_from_slice(&d[before..before + c]);
            }
            if let Some(input) = input {
                input.give(dx);
            }
            Ok(())
        })?;
        Ok(Value::new(y, dims, edge))
    }

    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let stride = self.stride;
        let x = strided(&strided(x, 2, 0, h.div_ceil(stride), stride)?, 3, 0, w.div_ceil(stride), stride)?;
        x.pad_with_zeros(1, self.before, self.after)
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        Ok(x.record_simple(self.dims(x.dims), None))
    }
}
