//! A batch norm as an affine map, and elements of small tensors in f64.

use super::step::BatchStatistics;
use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Statistics;
use crate::ops::number::{Real, with_slice};
use candle_core::{Device, Result, Tensor, bail};

/// A batch norm as the affine map y = a z + b.
pub(super) struct Affine<T> {
    pub mean: Vec<T>,
    /// 1 / sqrt(var + eps)
    pub inv: Vec<f64>,
    pub a: Vec<T>,
    pub b: Vec<T>,
    exact_a: Vec<f64>,
    exact_mean: Vec<f64>,
}

impl<T: Real> Affine<T> {
    pub fn new(m: &Statistics, gamma: &[f64], beta: &[f64], eps: f64) -> Result<Self> {
        let c = m.mean.len();
        if [m.var.len(), gamma.len(), beta.len()] != [c; 3] {
            bail!("a batch norm's weight, bias, mean and variance have one element per channel, here {c}");
        }
        let inv: Vec<f64> = m.var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        let exact_a: Vec<f64> = gamma.iter().zip(&inv).map(|(g, i)| g * i).collect();
        let b = (0..c).map(|j| T::from_f64(beta[j] - m.mean[j] * exact_a[j])).collect();
        let round = |v: &[f64]| v.iter().map(|&v| T::from_f64(v)).collect();
        Ok(Self { mean: round(&m.mean), inv, a: round(&exact_a), b, exact_a, exact_mean: m.mean.clone() })
    }

    /// dz = k0 g + k1 z + k2. With batch statistics these carry the gradient through mean and variance
    /// (Ioffe and Szegedy 2015, arXiv 1502.03167); with fixed ones dz = a g.
    pub fn backward(&self, sums: Option<(&Vec<f64>, &Vec<f64>)>, count: usize) -> [Vec<T>; 3] {
        let c = self.a.len();
        let Some((sum, sum_z)) = sums else { return [self.a.clone(), vec![T::zero(); c], vec![T::zero(); c]] };
        let m = count as f64;
        let k1: Vec<f64> = (0..c).map(|j| -self.exact_a[j] * self.inv[j] * self.inv[j] * sum_z[j] / m).collect();
        let k2 = (0..c).map(|j| T::from_f64(-self.exact_a[j] * sum[j] / m - k1[j] * self.exact_mean[j])).collect();
        [self.a.clone(), k1.into_iter().map(T::from_f64).collect(), k2]
    }
}

impl BatchStatistics {
    pub(super) fn new<T: Real>(m: &Statistics, count: usize) -> Result<Self> {
        let unbiased = count as f64 / (count as f64 - 1.0);
        let tensor = |v: Vec<f64>| Tensor::from_vec(v, m.mean.len(), &Device::Cpu)?.to_dtype(T::DTYPE);
        let var = m.var.iter().map(|v| v * unbiased).collect();
        Ok(Self { mean: tensor(m.mean.clone())?, var: tensor(var)? })
    }
}

pub(super) fn to_f64<T: Real>(t: &Tensor) -> Result<Vec<f64>> {
    with_slice::<T, _>(t, |v| Ok(v.iter().map(|v| v.to_f64()).collect()))
}

pub(super) fn from_f64<T: Real>(values: Vec<f64>) -> Buffer<T> {
    let mut buffer = Buffer::arbitrary(values.len());
    buffer.iter_mut().zip(values).for_each(|(b, v)| *b = T::from_f64(v));
    buffer
}
