//! Takes the first pixel, a transformer's class token.

use crate::ops::buffer::Buffer;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::memory_model::Symbolic;
use crate::ops::value::Value;
use candle_core::{Result, Tensor, bail};

/// The first pixel of an image: where a transformer keeps its class token.
struct ClassToken;

impl FeatureMap {
    /// The first pixel, as an image of one pixel.
    pub fn class_token(&self) -> Result<Self> {
        Self::apply(&ClassToken, [self])
    }
}

impl Operation<1> for ClassToken {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let [n, _, _, c] = x.dims;
        let row = x.pixels() * c;
        if row == 0 {
            bail!("a map without pixels has no class token");
        }
        let mut y = Buffer::arbitrary(n * c);
        for (y, x) in y.chunks_exact_mut(c).zip(x.data.chunks_exact(row)) {
            y.copy_from_slice(&x[..c]);
        }
        let input = x.edge.clone();
        let edge = record(&[x.edge.as_ref()], move |d| {
            if let Some(input) = input {
                input.with(n * row, |dx, add| {
                    if !add {
                        dx.fill(T::zero());
                    }
                    for (dx, d) in dx.chunks_exact_mut(row).zip(d.chunks_exact(c)) {
                        dx.iter_mut().zip(d).for_each(|(dx, &d)| *dx += d);
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Value::new(y, [n, 1, 1, c], edge))
    }

    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        x.narrow(2, 0, 1)?.narrow(3, 0, 1)
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        Ok(x.record_simple([x.dims[0], 1, 1, x.dims[3]], None))
    }
}
