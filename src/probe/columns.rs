//! Features column by column, centred and scaled where they are used.

use crate::error::{Error, Result};
use crate::ops::with_slice;
use candle_core::{DType, Device, Tensor, WithDType};

/// Features (n, d) with the mean and the scale of each column.
///
/// Centring and scaling use all rows, also those that are judged by the others: they know no classes.
pub(crate) struct Columns {
    /// (n, d), f32, on the CPU, as they are.
    x: Tensor,
    mean: Vec<f64>,
    /// 1 / the standard deviation. Columns that hardly vary carry no information, and would be all noise after scaling.
    scale: Vec<f64>,
    /// The mean over the rows of their squared lengths, after centring and scaling: about d.
    diagonal: f64,
}

/// Elements that are converted to f64 at a time, at most: 64 MB.
const BLOCK: usize = 8 << 20;

impl Columns {
    /// Of features (n, d) or maps (n, c, h, w).
    pub fn new(features: &Tensor) -> Result<Self> {
        let x = features.flatten_from(1)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let (n, d) = x.dims2()?;
        if n == 0 || d == 0 {
            return Err(Error::invalid("probe", format!("features of {n} samples and {d} columns")));
        }
        let (mut mean, mut variance) = (vec![0f64; d], vec![0f64; d]);
        with_slice::<f32, _>(&x, |all| {
            for row in all.chunks_exact(d) {
                mean.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
            }
            mean.iter_mut().for_each(|sum| *sum /= n as f64);
            for row in all.chunks_exact(d) {
                let columns = variance.iter_mut().zip(&mean).zip(row);
                columns.for_each(|((sum, mean), &v)| *sum += (f64::from(v) - mean).powi(2));
            }
            Ok(())
        })?;
        variance.iter_mut().for_each(|sum| *sum /= n as f64);
        let least = variance.iter().sum::<f64>() / d as f64 * 1e-6 + f64::from(f32::MIN_POSITIVE);
        let scale: Vec<f64> = variance.iter().map(|v| 1.0 / (v + least).sqrt()).collect();
        let diagonal: f64 = variance.iter().zip(&scale).map(|(v, s)| v * s * s).sum();
        // Without any variance every product is 0, whatever it is divided by.
        Ok(Self { x, mean, scale, diagonal: if diagonal > 0.0 { diagonal } else { 1.0 } })
    }

    /// (n, d)
    pub fn dims(&self) -> (usize, usize) {
        (self.x.dims()[0], self.mean.len())
    }

    pub fn diagonal(&self) -> f64 {
        self.diagonal
    }

    /// The features as they are, (n, d).
    pub fn raw(&self) -> &Tensor {
        &self.x
    }

    /// Weights (classes, d) and biases for the columns as they are, from weights and biases for the scaled ones.
    pub fn unscaled(&self, weight: &[f64], bias: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.mean.len();
        let weight: Vec<f64> = weight.iter().enumerate().map(|(i, w)| w * self.scale[i % d]).collect();
        let shift = |row: &[f64]| row.iter().zip(&self.mean).map(|(w, mean)| w * mean).sum::<f64>();
        let bias = weight.chunks_exact(d).zip(bias).map(|(row, b)| b - shift(row)).collect();
        (weight, bias)
    }

    fn row_of(values: &[f64], from: usize, len: usize) -> Result<Tensor> {
        Ok(Tensor::from_slice(&values[from..from + len], (1, len), &Device::Cpu)?)
    }

    /// Centred and scaled in f64: some columns of all rows.
    fn columns(&self, from: usize, len: usize) -> Result<Tensor> {
        let part = self.x.narrow(1, from, len)?.to_dtype(DType::F64)?;
        let part = part.broadcast_sub(&Self::row_of(&self.mean, from, len)?)?;
        Ok(part.broadcast_mul(&Self::row_of(&self.scale, from, len)?)?.contiguous()?)
    }

    /// Centred and scaled, of the rows `rows`, in f64: (rows, d).
    pub fn rows(&self, rows: &[usize]) -> Result<Tensor> {
        self.scaled(rows, |v| v)
    }

    /// The same in f32, for work that tolerates rounding.
    pub fn rows_f32(&self, rows: &[usize]) -> Result<Tensor> {
        self.scaled(rows, |v| v as f32)
    }

    /// In one pass, since a copy may take hundreds of megabytes.
    fn scaled<T: WithDType>(&self, rows: &[usize], of: impl Fn(f64) -> T) -> Result<Tensor> {
        let d = self.mean.len();
        let mut values = Vec::with_capacity(rows.len() * d);
        with_slice::<f32, _>(&self.x, |all| {
            for row in rows {
                let columns = all[row * d..][..d].iter().zip(&self.mean).zip(&self.scale);
                values.extend(columns.map(|((&v, mean), scale)| of((f64::from(v) - mean) * scale)));
            }
            Ok(())
        })?;
        Ok(Tensor::from_vec(values, (rows.len(), d), &Device::Cpu)?)
    }

    /// The inner products of all pairs of rows, centred and scaled, (n, n), f64.
    pub fn products(&self) -> Result<Tensor> {
        let (n, d) = self.dims();
        let mut products = Tensor::zeros((n, n), DType::F64, &Device::Cpu)?;
        let step = (BLOCK / n).max(1);
        for from in (0..d).step_by(step) {
            let block = self.columns(from, step.min(d - from))?;
            products = (products + block.matmul(&block.t()?)?)?;
        }
        Ok(products)
    }

    /// Rows that are converted to f64 at a time.
    pub fn rows_at_a_time(&self) -> usize {
        (BLOCK / self.mean.len()).max(1)
    }
}
