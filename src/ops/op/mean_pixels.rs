//! The mean over all pixels.

use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::memory_model::Symbolic;
use crate::ops::portable::pixels;
use crate::ops::value::Value;
use candle_core::{Result, Tensor};

/// The mean over all pixels of an image.
struct MeanPixels;

impl FeatureMap {
    /// The mean over all pixels, as an image of one pixel.
    pub fn mean_pixels(&self) -> Result<Self> {
        Self::apply(&MeanPixels, [self])
    }
}

impl Operation<1> for MeanPixels {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let [n, _, _, c] = x.dims;
        let pixels = x.pixels();
        let y = pixels::mean_pixels(&x.data, n, pixels, c);
        let input = x.edge.clone();
        let edge = record(&[x.edge.as_ref()], move |d| {
            if let Some(input) = input {
                input.with(n * pixels * c, |dx, add| {
                    pixels::mean_pixels_gradient(&d, pixels, c, dx, add);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Value::new(y, [n, 1, 1, c], edge))
    }

    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        x.mean_keepdim((2, 3))
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        Ok(x.record_simple([x.dims[0], 1, 1, x.dims[3]], None))
    }
}
