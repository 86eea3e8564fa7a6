//! A frozen convolution with its batch norm folded into it, and checksums of what must not change.

use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::ops::{Filter, with_slice};
use candle_core::{DType, Device, Tensor};
use std::sync::OnceLock;

/// A frozen convolution whose batch norm is folded into kernel and bias at the first forward.
pub(crate) struct Folded {
    filter: Filter,
    bias: Option<Tensor>,
    /// Weight, bias, running mean, running variance.
    affine: [Tensor; 4],
    eps: f64,
    once: OnceLock<(Filter, Tensor)>,
}

impl Folded {
    /// `affine`: the norm's weight, bias, running mean and running variance; `bias`: the convolution's own.
    pub fn new(filter: Filter, bias: Option<Tensor>, affine: [Tensor; 4], eps: f64) -> Self {
        Self { filter, bias, affine, eps, once: OnceLock::new() }
    }

    /// gamma (w x + bias - mean) / sqrt(var + eps) + beta, as one kernel and bias. Computed in f64, rounded once.
    pub fn get(&self) -> Result<&(Filter, Tensor)> {
        if let Some(folded) = self.once.get() {
            return Ok(folded);
        }
        // On the CPU, since not every device supports f64.
        let wide = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
        let [gamma, beta, mean, var] = &self.affine;
        let a = (wide(gamma)? / (wide(var)? + self.eps)?.sqrt()?)?;
        let shift = match &self.bias {
            Some(bias) => (wide(bias)? - wide(mean)?)?,
            None => wide(mean)?.neg()?,
        };
        let bias = (wide(beta)? + (shift * &a)?)?.to_dtype(beta.dtype())?.to_device(beta.device())?;
        let folded = (self.filter.times(a), bias);
        Ok(self.once.get_or_init(|| folded))
    }

    /// Sums over the bits of the folded bias and of every copy of the folded kernel, with what they are of; none before
    /// the first forward.
    pub fn checksums(&self) -> Result<Vec<(String, u64)>> {
        let Some((filter, bias)) = self.once.get() else { return Ok(vec![]) };
        let mut sums = vec![("folded bias".to_string(), checksum(bias)?)];
        if let Some(product) = filter.kept_product() {
            sums.push(("folded kernel".to_string(), checksum(product)?));
        }
        sums.extend(filter.packed_sums());
        Ok(sums)
    }
}

/// A checksum of the bits of a float tensor, in order.
pub(crate) fn checksum(t: &Tensor) -> Result<u64> {
    let t = t.to_device(&Device::Cpu)?;
    let sum = Fingerprint::new("tensor");
    let sum = match t.dtype() {
        DType::F64 => with_slice::<f64, _>(&t, |v| Ok(sum.floats(v))),
        _ => with_slice::<f32, _>(&t, |v| Ok(sum.floats(v))),
    };
    Ok(sum?.finish())
}
