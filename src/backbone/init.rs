//! Random initialisation.

use crate::blueprint::Blueprint;
use crate::error::Result;
use crate::params::{Declared, TensorInit};
use crate::rng::Seed;
use candle_core::{DType, Device, Tensor};
use rand::RngExt;
use std::collections::BTreeMap;

/// Fresh values for every tensor, each from the random stream of its own name.
pub(crate) fn random_tensors(
    blueprint: &Blueprint,
    seed: u64,
    dtype: DType,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    let fresh = |d: &Declared| Ok((d.name.clone(), fresh(d, seed)?.to_dtype(dtype)?.to_device(device)?));
    blueprint.declared().iter().map(fresh).collect()
}

fn fresh(d: &Declared, seed: u64) -> Result<Tensor> {
    let count = d.elements();
    let values = match d.facts.init {
        TensorInit::Normal(std) => normal(count, std, &d.name, seed),
        TensorInit::Uniform(bound) => uniform(count, bound, &d.name, seed),
        TensorInit::Ones => vec![1.0; count],
        TensorInit::Constant(value) => vec![value as f32; count],
        TensorInit::Zeros => vec![0.0; count],
    };
    Ok(Tensor::from_vec(values, d.shape.as_slice(), &Device::Cpu)?)
}

/// Normal values from the stream of a tensor's name (Box and Muller 1958).
pub(crate) fn normal(count: usize, std: f64, name: &str, seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).stream(&format!("init {name}"), &[]);
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let r = std * (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (2.0 * std::f64::consts::PI * v).sin_cos();
        values.extend([(r * cos) as f32, (r * sin) as f32]);
    }
    values.truncate(count);
    values
}

/// Uniform values in (-bound, bound) from the stream of a tensor's name.
pub(crate) fn uniform(count: usize, bound: f64, name: &str, seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).stream(&format!("init {name}"), &[]);
    // A range without a width holds no value.
    let value = |_| if bound > 0.0 { rng.random_range(-bound..bound) as f32 } else { 0.0 };
    (0..count).map(value).collect()
}
