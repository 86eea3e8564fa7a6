//! The group lasso on a least squares loss, to rank columns.

use crate::error::Result;
use candle_core::{DType, Device, Tensor};

/// The penalty divided by the smallest one that keeps no column.
pub(super) const STRENGTH: f64 = 0.1;

/// Steps of the proximal gradient method.
pub(super) const STEPS: usize = 80;

/// The solution: weights (columns, classes), and the gradient of the least squares part there.
pub(super) struct Lasso {
    pub weight: Vec<f32>,
    pub gradient: Vec<f32>,
    pub classes: usize,
}

/// Minimises |Y - X W - b|² / (2 n) + lambda Σ |w_i| over the rows w_i of W and an intercept b, for X (n, d) and Y
/// (n, classes), in f32 (Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables").
/// `strength`: lambda over the smallest value for which W is 0.
///
/// By the accelerated proximal gradient method (FISTA, Beck and Teboulle 2009), a fixed number of steps.
pub(super) fn group_lasso(x: &Tensor, y: &Tensor, strength: f64, steps: usize) -> Result<Lasso> {
    let ((n, d), (_, classes)) = (x.dims2()?, y.dims2()?);
    let gradient = |w: &[f32]| -> Result<Vec<f32>> {
        let w = Tensor::from_slice(w, (d, classes), &Device::Cpu)?;
        let residual = centred(&(x.matmul(&w)? - y)?)?;
        Ok((x.t()?.matmul(&residual)? / n as f64)?.flatten_all()?.to_vec1()?)
    };
    let zero = vec![0f32; d * classes];
    let at_zero = gradient(&zero)?;
    let most = at_zero.chunks_exact(classes).map(length).fold(0.0, f64::max);
    let lambda = strength * most;
    // The step is one over a bound on the curvature; the power iteration approaches it from below.
    let step = 1.0 / (1.1 * curvature(x)?).max(f64::MIN_POSITIVE);
    let (mut w, mut v, mut momentum) = (zero.clone(), zero, 1f64);
    for _ in 0..steps {
        let slope = gradient(&v)?;
        let mut next: Vec<f32> = v.iter().zip(&slope).map(|(v, g)| v - step as f32 * g).collect();
        for row in next.chunks_exact_mut(classes) {
            let length = length(row);
            let kept = if length > step * lambda { 1.0 - step * lambda / length } else { 0.0 };
            row.iter_mut().for_each(|w| *w *= kept as f32);
        }
        let after = f64::midpoint(1.0, (1.0 + 4.0 * momentum * momentum).sqrt());
        let overshoot = ((momentum - 1.0) / after) as f32;
        v = next.iter().zip(&w).map(|(next, w)| next + overshoot * (next - w)).collect();
        (w, momentum) = (next, after);
    }
    let gradient = gradient(&w)?;
    Ok(Lasso { weight: w, gradient, classes })
}

impl Lasso {
    /// The columns, the most useful first: by the length of their weights over the classes (the score of Evci et al.
    /// 2022, arXiv 2201.03529); those without weights by the length of their gradient, which says how near they are to
    /// having some.
    pub fn order(&self) -> Vec<usize> {
        let lengths = |values: &[f32]| values.chunks_exact(self.classes).map(length).collect::<Vec<f64>>();
        let (scores, slopes) = (lengths(&self.weight), lengths(&self.gradient));
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(slopes[b].total_cmp(&slopes[a])).then(a.cmp(&b)));
        order
    }
}

fn length(row: &[f32]) -> f64 {
    row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// Every column less its mean: what an intercept leaves of it.
fn centred(t: &Tensor) -> Result<Tensor> {
    Ok(t.broadcast_sub(&t.mean_keepdim(0)?)?)
}

/// The largest eigenvalue of XᵀX / n for centred X, by the power iteration.
fn curvature(x: &Tensor) -> Result<f64> {
    let n = x.dim(0)?;
    // Any start that is not orthogonal to the first eigenvector.
    let start: Vec<f32> = (0..n).map(|i| (i as u64 * 7919 % 1013) as f32 / 1013.0 - 0.4).collect();
    let mut v = centred(&Tensor::from_vec(start, (n, 1), &Device::Cpu)?)?;
    let mut largest = 0.0;
    for _ in 0..20 {
        let size = v.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?.sqrt();
        if size == 0.0 {
            return Ok(largest);
        }
        v = (v / size)?;
        v = centred(&(x.matmul(&x.t()?.matmul(&v)?)? / n as f64)?)?;
        largest = v.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?.sqrt();
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 30;
    const D: usize = 6;
    const CLASSES: usize = 2;

    /// Columns of waves, of which the targets follow the second and, less, the fifth.
    fn case() -> (Vec<f32>, Vec<f32>) {
        let x: Vec<f32> = (0..N * D).map(|i| ((i * i % 127) as f32 * 0.71).sin()).collect();
        let y = |i: usize, k: usize| if k == 0 { x[i * D + 1] + 0.4 * x[i * D + 4] } else { 0.3 - x[i * D + 1] };
        let y = (0..N * CLASSES).map(|i| y(i / CLASSES, i % CLASSES) + (i as f32 * 1.3).cos() * 0.05).collect();
        (x, y)
    }

    fn solved(strength: f64, steps: usize) -> Lasso {
        let (x, y) = case();
        let x = Tensor::from_vec(x, (N, D), &Device::Cpu).unwrap();
        let y = Tensor::from_vec(y, (N, CLASSES), &Device::Cpu).unwrap();
        group_lasso(&x, &y, strength, steps).unwrap()
    }

    /// The gradient of the least squares part with the best intercept, by plain sums in f64.
    fn slope(w: &[f32]) -> Vec<f64> {
        let (x, y) = case();
        let mut gradient = vec![0f64; D * CLASSES];
        for k in 0..CLASSES {
            let answer =
                |i: usize| (0..D).map(|j| f64::from(x[i * D + j]) * f64::from(w[j * CLASSES + k])).sum::<f64>();
            let residuals: Vec<f64> = (0..N).map(|i| answer(i) - f64::from(y[i * CLASSES + k])).collect();
            let mean = residuals.iter().sum::<f64>() / N as f64;
            for j in 0..D {
                let products = (0..N).map(|i| f64::from(x[i * D + j]) * (residuals[i] - mean));
                gradient[j * CLASSES + k] = products.sum::<f64>() / N as f64;
            }
        }
        gradient
    }

    /// The conditions of Karush, Kuhn and Tucker, which hold at the one solution alone: where a column has weights w,
    /// the gradient is -lambda w / |w|, and elsewhere it is no longer than lambda.
    #[test]
    fn the_conditions_of_the_solution_hold() {
        for strength in [0.02, 0.1, 0.5, 0.9] {
            let lasso = solved(strength, 1500);
            let gradient = slope(&lasso.weight);
            let longest = |g: &[f64]| g.iter().map(|g| g * g).sum::<f64>().sqrt();
            let lambda = strength * slope(&[0.0; D * CLASSES]).chunks(CLASSES).map(longest).fold(0.0, f64::max);
            let mut kept = 0;
            for j in 0..D {
                let (w, g) = (&lasso.weight[j * CLASSES..][..CLASSES], &gradient[j * CLASSES..][..CLASSES]);
                let size = length(w);
                if size > 0.0 {
                    kept += 1;
                    for (w, g) in w.iter().zip(g) {
                        assert!((g + lambda * f64::from(*w) / size).abs() < 2e-5, "{strength} {j}: {g} {w}");
                    }
                } else {
                    assert!(longest(g) <= lambda + 2e-5, "{strength} {j}: {g:?} {lambda}");
                }
            }
            assert!(kept > 0 && (strength < 0.4 || kept < D), "{strength}: {kept}");
        }
    }

    #[test]
    fn the_columns_that_the_targets_follow_come_first() {
        for steps in [STEPS, 1500] {
            assert_eq!(solved(STRENGTH, steps).order()[..2], [1, 4]);
        }
        // From this penalty on no column has weights, and the gradient alone ranks them.
        let none = solved(1.0001, STEPS);
        assert!(none.weight.iter().all(|w| *w == 0.0));
        assert_eq!(none.order()[0], 1);
    }
}
