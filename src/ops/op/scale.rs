//! Channels scaled per image, as squeeze and excitation does.

use crate::ops::buffer::Buffer;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::memory_model::Symbolic;
use crate::ops::portable::pixels;
use crate::ops::value::Value;
use candle_core::{Result, Tensor, bail};

/// y = x s, with a factor per image and channel.
struct Scale;

impl FeatureMap {
    /// Every channel times a factor per image; `factors` has one pixel.
    pub fn scale(&self, factors: &Self) -> Result<Self> {
        Self::apply(&Scale, [self, factors])
    }
}

fn check(x: [usize; 4], factors: [usize; 4]) -> Result<()> {
    if factors != [x[0], 1, 1, x[3]] {
        bail!("factors of shape {factors:?} (NHWC) cannot scale a map of shape {x:?}");
    }
    Ok(())
}

impl Operation<2> for Scale {
    fn cpu<T: Differentiable>(&self, [x, factors]: [&Value<T>; 2]) -> Result<Value<T>> {
        check(x.dims, factors.dims)?;
        let [n, _, _, c] = x.dims;
        let pixels = x.pixels();
        let mut y = Buffer::arbitrary(x.data.len());
        pixels::scale(&x.data, &factors.data, pixels, c, &mut y, false);
        let (saved, s) = (factors.edge.is_some().then(|| x.saved()), factors.data.clone());
        let (input, by) = (x.edge.clone(), factors.edge.clone());
        let edge = record(&[x.edge.as_ref(), factors.edge.as_ref()], move |d| {
            if let (Some(by), Some(x)) = (by, saved) {
                let x = x.data()?;
                by.with(n * c, |ds, add| {
                    pixels::scale_gradient(&x, &d, pixels, c, ds, add);
                    Ok(())
                })?;
            }
            if let Some(input) = input {
                input.with(n * pixels * c, |dx, add| {
                    pixels::scale(&d, &s, pixels, c, dx, add);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Value::new(y, x.dims, edge))
    }

    fn device(&self, [x, factors]: [&Tensor; 2]) -> Result<Tensor> {
        x.broadcast_mul(factors)
    }

    fn symbolic(&self, [x, factors]: [&Symbolic; 2]) -> Result<Symbolic> {
        check(x.dims, factors.dims)?;
        let saved = factors.accumulator.is_some().then(|| x.saved());
        let (input, by) = (x.accumulator.clone(), factors.accumulator.clone());
        let (len, few) = (x.len(), factors.len());
        let learns = input.is_some() || by.is_some();
        Ok(x.record(x.dims, x.tape.allocate(len), learns, move |tape, _d| {
            if let (Some(by), Some(x)) = (&by, saved) {
                let recomputed = x.data(tape);
                tape.write(by, few);
                drop(recomputed);
            }
            if let Some(input) = &input {
                tape.write(input, len);
            }
        }))
    }
}
