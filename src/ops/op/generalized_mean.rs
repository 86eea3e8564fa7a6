//! The generalised mean over all pixels.

use crate::ops::buffer::Buffer;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::memory_model::Symbolic;
use crate::ops::value::Value;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// y = (mean over pixels of max(x, e)^p)^(1/p), e = 1e-6 (Radenovic et al. 2017, arXiv 1711.02512): the mean for p = 1,
/// close to the maximum for large p.
struct GeneralizedMean {
    p: f64,
}

/// Smaller values count as this one, since powers of negative values are not real.
const LEAST: f64 = 1e-6;

impl FeatureMap {
    /// The generalised mean over all pixels with exponent `p` > 0, as an image of one pixel.
    pub fn generalized_mean(&self, p: f64) -> Result<Self> {
        Self::apply(&GeneralizedMean { p }, [self])
    }
}

impl Operation<1> for GeneralizedMean {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let [n, _, _, c] = x.dims;
        let (p, pixels) = (self.p, x.pixels());
        let row = (pixels * c).max(1);
        let mut y = Buffer::<T>::arbitrary(n * c);
        // An image at a time, its pixels in order: the sums do not depend on the number of threads.
        y.par_chunks_mut(c.max(1)).zip(x.data.par_chunks(row)).for_each(|(y, x)| {
            for (j, y) in y.iter_mut().enumerate() {
                let values = || x.iter().skip(j).step_by(c).map(|v| v.to_f64().max(LEAST));
                // Relative to the largest value: large powers of the values themselves are infinite, or 0.
                let most = values().fold(LEAST, f64::max);
                let sum: f64 = values().map(|v| (v / most).powf(p)).sum();
                // A NaN passes through `max` as the other argument, and must not vanish.
                let nan = x.iter().skip(j).step_by(c).any(|v| v.to_f64().is_nan());
                *y = T::from_f64(if nan { f64::NAN } else { most * (sum / pixels as f64).powf(1.0 / p) });
            }
        });
        let (saved, means, input) = (x.saved(), y.iter().map(|y| y.to_f64()).collect::<Vec<_>>(), x.edge.clone());
        let edge = record(&[x.edge.as_ref()], move |d| {
            let Some(input) = input else { return Ok(()) };
            let x = saved.data()?;
            input.with(n * pixels * c, |dx, add| {
                let images = dx.par_chunks_mut(row).zip(x.par_chunks(row));
                let rows = images.zip(means.par_chunks(c.max(1)).zip(d.par_chunks(c.max(1))));
                rows.for_each(|((dx, x), (means, d))| {
                    for (i, (dx, x)) in dx.iter_mut().zip(x).enumerate() {
                        let (x, mean, d) = (x.to_f64(), means[i % c], d[i % c].to_f64());
                        // dy/dx = (x / y)^(p-1) / pixels, and 0 where x counts as the least value.
                        let slope = if x > LEAST { (x / mean).powf(p - 1.0) / pixels as f64 } else { 0.0 };
                        let slope = if x.is_nan() { f64::NAN } else { slope };
                        let gradient = T::from_f64(d * slope);
                        *dx = if add { *dx + gradient } else { gradient };
                    }
                });
                Ok(())
            })
        })?;
        Ok(Value::new(y, [n, 1, 1, c], edge))
    }

    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        // Relative to the largest value, whose power then is 1: in f32 those of small values alone would be 0.
        let x = x.maximum(LEAST)?;
        let most = x.max_keepdim(2)?.max_keepdim(3)?.detach();
        x.broadcast_div(&most)?.powf(self.p)?.mean_keepdim((2, 3))?.powf(1.0 / self.p)?.broadcast_mul(&most)
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        let dims = [x.dims[0], 1, 1, x.dims[3]];
        let (saved, input, len) = (x.accumulator.is_some().then(|| x.saved()), x.accumulator.clone(), x.len());
        let y = x.tape.allocate(dims.iter().product());
        Ok(x.record(dims, y, input.is_some(), move |tape, _d| {
            if let (Some(input), Some(saved)) = (&input, saved) {
                let recomputed = saved.data(tape);
                tape.write(input, len);
                drop(recomputed);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// Against the closed form for two pixels, whose powers alone are infinite or 0.
    #[test]
    fn large_exponents_come_close_to_the_maximum() {
        for (values, p) in [([1e4f32, 9e3], 100.0), ([1e-5, 9e-6], 70.0), ([3e-6, 2e-6], 500.0), ([2.0, -1.0], 60.0)] {
            let x = Var::from_vec(values.to_vec(), (1, 1, 1, 2), &Device::Cpu).unwrap();
            let y = FeatureMap::new(x.as_tensor()).unwrap().generalized_mean(p).unwrap().into_rows().unwrap();
            let most = f64::from(values[0]);
            let ratio = (f64::from(values[1]).max(LEAST) / most).powf(p);
            let expected = most * f64::midpoint(1.0, ratio).powf(1.0 / p);
            let got = f64::from(y.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]);
            assert!((got / expected - 1.0).abs() < 1e-5, "{values:?} {p}: {got} {expected}");
            let gradients = y.sum_all().unwrap().backward().unwrap();
            let gradient = gradients.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let slope = (most / expected).powf(p - 1.0) / 2.0;
            assert!((f64::from(gradient[0]) / slope - 1.0).abs() < 1e-3, "{values:?} {p}: {gradient:?} {slope}");
        }
    }
}
