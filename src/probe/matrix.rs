//! The inverse of a symmetric positive definite matrix in f64, by blocks, so that Candle's matrix product does the work.

use crate::error::Result;
use candle_core::{DType, Device, Tensor};

/// The side up to which a matrix is inverted by plain loops.
const SMALL: usize = 48;

/// The inverse of a symmetric positive definite matrix (n, n), f64, on the CPU.
///
/// By the inverse of a matrix of 2 x 2 blocks through the Schur complement (Boyd and Vandenberghe 2004, "Convex
/// optimization", A.5.5). The caller adds a ridge to the diagonal, so the blocks are far from singular.
pub(super) fn inverse(a: &Tensor) -> Result<Tensor> {
    let n = a.dim(0)?;
    if n <= SMALL {
        let values: Vec<f64> = a.contiguous()?.flatten_all()?.to_vec1()?;
        return Ok(Tensor::from_vec(small_inverse(values, n), (n, n), &Device::Cpu)?);
    }
    let half = n / 2;
    let block = |rows: usize, columns: usize| {
        let side = |i: usize| if i == 0 { (0, half) } else { (half, n - half) };
        a.narrow(0, side(rows).0, side(rows).1)?.narrow(1, side(columns).0, side(columns).1)?.contiguous()
    };
    let p = inverse(&block(0, 0)?)?;
    let q = block(0, 1)?;
    let pq = p.matmul(&q)?;
    let s = inverse(&(block(1, 1)? - q.t()?.matmul(&pq)?)?)?;
    let pqs = pq.matmul(&s)?;
    let top = Tensor::cat(&[&(p + pqs.matmul(&pq.t()?)?)?, &pqs.neg()?], 1)?;
    let bottom = Tensor::cat(&[&pqs.t()?.neg()?.contiguous()?, &s], 1)?;
    Ok(Tensor::cat(&[&top, &bottom], 0)?)
}

/// The same by Cholesky's factor: A = L Lᵀ, then one column of the inverse at a time.
fn small_inverse(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    factor(&mut a, n);
    let mut inverse = vec![0.0; n * n];
    let mut column = vec![0.0; n];
    for k in 0..n {
        column.fill(0.0);
        column[k] = 1.0;
        solve(&a, &mut column);
        (0..n).for_each(|i| inverse[i * n + k] = column[i]);
    }
    inverse
}

/// Cholesky's factor in the lower triangle. Pivots that rounding has made negative or zero become tiny.
pub(super) fn factor(a: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
            let rest = a[i * n + j] - sum;
            a[i * n + j] = if i == j { rest.max(f64::EPSILON).sqrt() } else { rest / a[j * n + j] };
        }
    }
}

/// Solves L Lᵀ x = b in place, with the factor that [`factor`] left.
pub(super) fn solve(l: &[f64], b: &mut [f64]) {
    let n = b.len();
    for i in 0..n {
        let sum: f64 = (0..i).map(|k| l[i * n + k] * b[k]).sum();
        b[i] = (b[i] - sum) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| l[k * n + i] * b[k]).sum();
        b[i] = (b[i] - sum) / l[i * n + i];
    }
}

/// The identity, f64.
pub(super) fn identity(n: usize) -> Result<Tensor> {
    Ok(Tensor::eye(n, DType::F64, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B Bᵀ + I, for a B of waves.
    fn positive(n: usize) -> Tensor {
        let values: Vec<f64> = (0..n * n).map(|i| ((i * 37 % 101) as f64 * 0.37).sin()).collect();
        let b = Tensor::from_vec(values, (n, n), &Device::Cpu).unwrap();
        (b.matmul(&b.t().unwrap()).unwrap() + identity(n).unwrap()).unwrap()
    }

    #[test]
    fn a_matrix_times_its_inverse_is_the_identity() {
        for n in [1, 2, 47, 48, 49, 97, 200] {
            let a = positive(n);
            let product = a.matmul(&inverse(&a).unwrap()).unwrap();
            let off = (product - identity(n).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            let off = off.to_scalar::<f64>().unwrap();
            assert!(off < 1e-8, "{n}: {off}");
        }
    }
}
