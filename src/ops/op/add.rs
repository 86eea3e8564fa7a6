//! The sum of two maps.

use crate::ops::buffer::Buffer;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::kernels::norm;
use crate::ops::memory_model::{Symbolic, give};
use crate::ops::value::Value;
use candle_core::{Result, Tensor, bail};

/// y = a + b
struct Add;

impl FeatureMap {
    /// The sum of two maps of one shape.
    pub fn add(&self, other: &Self) -> Result<Self> {
        Self::apply(&Add, [self, other])
    }
}

fn check(a: [usize; 4], b: [usize; 4]) -> Result<()> {
    if a != b {
        bail!("maps of shapes {a:?} and {b:?} (NHWC) cannot be added");
    }
    Ok(())
}

impl Operation<2> for Add {
    fn cpu<T: Differentiable>(&self, [a, b]: [&Value<T>; 2]) -> Result<Value<T>> {
        check(a.dims, b.dims)?;
        let mut y = Buffer::copy_of(&a.data);
        norm::choose().add_into(&mut y, &b.data);
        let (first, second) = (a.edge.clone(), b.edge.clone());
        let edge = record(&[a.edge.as_ref(), b.edge.as_ref()], move |d| {
            match (first, second) {
                (Some(a), Some(b)) => {
                    a.give(Buffer::copy_of(&d));
                    b.give(d);
                }
                (Some(one), None) | (None, Some(one)) => one.give(d),
                (None, None) => {}
            }
            Ok(())
        })?;
        Ok(Value::new(y, a.dims, edge))
    }

    fn device(&self, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
        a + b
    }

    fn symbolic(&self, [a, b]: [&Symbolic; 2]) -> Result<Symbolic> {
        check(a.dims, b.dims)?;
        let (first, second, len) = (a.accumulator.clone(), b.accumulator.clone(), a.len());
        let learns = first.is_some() || second.is_some();
        Ok(a.record(a.dims, a.tape.allocate(len), learns, move |tape, d| match (&first, &second) {
            (Some(a), Some(b)) => {
                give(a, tape.allocate(len));
                give(b, d);
            }
            (Some(one), None) | (None, Some(one)) => give(one, d),
            (None, None) => {}
        }))
    }
}
