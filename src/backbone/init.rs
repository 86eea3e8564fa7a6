//! Random starts.

use crate::arch::Arch;
use crate::error::Result;
use crate::params::{Declared, Kind};
use crate::rng::Seed;
use candle_core::{DType, Device, Tensor};
use rand::RngExt;
use std::collections::BTreeMap;

/// Fresh weights for every tensor: convolutions from He's normal distribution over the fan-out (He et al. 2015,
/// arXiv 1502.01852), norms as the identity, biases zero.
pub(crate) fn random_tensors(
    arch: Arch,
    channels: usize,
    seed: u64,
    dtype: DType,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>> {
    let declared = arch.declared(channels)?;
    let values = |(i, d)| Ok((i, fresh(d, i == 0, seed)?.to_dtype(dtype)?.to_device(device)?));
    let named = |(i, tensor): (usize, Tensor)| (declared[i].name.clone(), tensor);
    declared.iter().enumerate().map(|at| values(at).map(named)).collect()
}

/// `stem`: whether this is the first kernel, over the images' own channels.
fn fresh(d: &Declared, stem: bool, seed: u64) -> Result<Tensor> {
    let count: usize = d.shape.iter().product();
    let values = match d.kind {
        Kind::Kernel => {
            // Every kernel of a depthwise convolution sees one channel only; so does a stem's over gray images, but
            // all of those see the same one.
            let groups = if d.shape[1] <= 1 && !stem { d.shape[0] } else { 1 };
            let fan_out = (d.shape[0] * d.shape[2] * d.shape[3] / groups).max(1);
            normal(count, (2.0 / fan_out as f64).sqrt(), &d.name, seed)
        }
        Kind::NormWeight | Kind::RunningVar => vec![1.0; count],
        Kind::Bias | Kind::NormBias | Kind::RunningMean => vec![0.0; count],
    };
    Ok(Tensor::from_vec(values, d.shape.as_slice(), &Device::Cpu)?)
}

/// Normal numbers from the stream of a tensor's name (Box and Muller 1958).
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

/// Uniform numbers in (-bound, bound) from the stream of a tensor's name.
pub(crate) fn uniform(count: usize, bound: f64, name: &str, seed: u64) -> Vec<f32> {
    let mut rng = Seed(seed).stream(&format!("init {name}"), &[]);
    (0..count).map(|_| rng.random_range(-bound..bound) as f32).collect()
}
