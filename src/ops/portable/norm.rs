//! Per-channel statistics, affine maps and their gradients: the reference of `kernels::norm`.

use crate::ops::activation::Activation;
use crate::ops::epilogue::{Gate, Statistics};
use crate::ops::number::Real;
use rayon::prelude::*;

/// Elements that one task handles.
const PIECE: usize = 1 << 14;

/// Whole pixels of `c` channels that make about one piece.
fn piece(c: usize) -> usize {
    (PIECE / c.max(1)).max(8) * c
}

/// Adds up `rows` of f64 elements that `f` computes per piece, in the order of the pieces.
fn sum_pieces(len: usize, c: usize, rows: usize, f: impl Fn(usize, usize, &mut [f64]) + Sync) -> Vec<f64> {
    let size = piece(c);
    let parts: Vec<Vec<f64>> = (0..len.div_ceil(size))
        .into_par_iter()
        .map(|i| {
            let mut part = vec![0.0; rows * c];
            f(i * size, (i * size + size).min(len), &mut part);
            part
        })
        .collect();
    let mut sum = vec![0.0; rows * c];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    sum
}

/// Mean and biased variance per channel, by sums of differences to the first pixel.
pub(crate) fn moments<T: Real>(x: &[T], c: usize) -> Statistics {
    let count = (x.len() / c.max(1)) as f64;
    let shift: Vec<f64> = x[..c].iter().map(|v| v.to_f64()).collect();
    let sums = sum_pieces(x.len(), c, 2, |from, to, part| {
        let (s, q) = part.split_at_mut(c);
        for pixel in x[from..to].chunks_exact(c) {
            for j in 0..c {
                let v = pixel[j].to_f64() - shift[j];
                s[j] += v;
                q[j] += v * v;
            }
        }
    });
    let (s, q) = sums.split_at(c);
    let mean = (0..c).map(|j| shift[j] + s[j] / count).collect();
    let var = (0..c).map(|j| ((q[j] - s[j] * s[j] / count) / count).max(0.0)).collect();
    Statistics { mean, var }
}

/// y = act(a x + b + residual)
pub(crate) fn affine<T: Real>(x: &[T], a: &[T], b: &[T], residual: Option<&[T]>, act: Activation, y: &mut [T]) {
    let c = a.len();
    let size = piece(c);
    y.par_chunks_mut(size).enumerate().for_each(|(i, y)| {
        let x = &x[i * size..][..y.len()];
        match residual {
            Some(residual) => {
                let residual = &residual[i * size..][..y.len()];
                for ((y, x), r) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(residual.chunks_exact(c)) {
                    for j in 0..c {
                        y[j] = act.value(x[j] * a[j] + b[j] + r[j]);
                    }
                }
            }
            None => {
                for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for j in 0..c {
                        y[j] = act.value(x[j] * a[j] + b[j]);
                    }
                }
            }
        }
    });
}

/// The activation's slope for channel `j` of the pixel that starts at `at`.
#[inline(always)]
fn slope<T: Real>(gate: &Gate<T>, z: T, at: usize, j: usize) -> T {
    match gate.y {
        Some(y) => gate.act.slope(y[at + j]),
        None => gate.act.slope(z * gate.a[j] + gate.b[j]),
    }
}

/// Per channel: the sum of g, and of g (z - mean).
pub(crate) fn gate_sums<T: Real>(z: &[T], gate: &Gate<T>, dy: &[T], mean: &[T]) -> (Vec<f64>, Vec<f64>) {
    let c = mean.len();
    let mut sums = sum_pieces(z.len(), c, 2, |from, to, part| {
        let (s, q) = part.split_at_mut(c);
        for at in (from..to).step_by(c) {
            for j in 0..c {
                let g = (dy[at + j] * slope(gate, z[at + j], at, j)).to_f64();
                s[j] += g;
                q[j] += g * (z[at + j] - mean[j]).to_f64();
            }
        }
    });
    let q = sums.split_off(c);
    (sums, q)
}

/// d becomes k0 g + k1 z + k2, `residual` becomes g.
pub(crate) fn gate_apply<T: Real>(z: &[T], gate: &Gate<T>, k: [&[T]; 3], d: &mut [T], residual: Option<&mut [T]>) {
    let c = k[0].len();
    let size = piece(c);
    let each = |i: usize, d: &mut [T], mut residual: Option<&mut [T]>| {
        for at in (0..d.len()).step_by(c) {
            for j in 0..c {
                let v = z[i * size + at + j];
                let g = d[at + j] * slope(gate, v, i * size + at, j);
                d[at + j] = k[0][j] * g + k[1][j] * v + k[2][j];
                if let Some(residual) = residual.as_deref_mut() {
                    residual[at + j] = g;
                }
            }
        }
    };
    match residual {
        Some(residual) => d
            .par_chunks_mut(size)
            .zip(residual.par_chunks_mut(size))
            .enumerate()
            .for_each(|(i, (d, residual))| each(i, d, Some(residual))),
        None => d.par_chunks_mut(size).enumerate().for_each(|(i, d)| each(i, d, None)),
    }
}

/// d becomes d times the slope of `act`, computed from its result y.
pub(crate) fn gate_by_result<T: Real>(y: &[T], act: Activation, d: &mut [T]) {
    d.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(d, y)| {
        d.iter_mut().zip(y).for_each(|(d, &y)| *d *= act.slope(y));
    });
}

/// The sum of each channel.
pub(crate) fn channel_sums<T: Real>(x: &[T], c: usize) -> Vec<f64> {
    sum_pieces(x.len(), c, 1, |from, to, part| {
        for pixel in x[from..to].chunks_exact(c) {
            part.iter_mut().zip(pixel).for_each(|(s, v)| *s += v.to_f64());
        }
    })
}

/// sum += g
pub(crate) fn add_into<T: Real>(sum: &mut [T], g: &[T]) {
    sum.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).for_each(|(sum, g)| {
        sum.iter_mut().zip(g).for_each(|(s, &g)| *s += g);
    });
}
