//! Passes over NHWC data whose coefficients belong to channels: statistics, affine maps, gates and their gradients.
//!
//! Channels rarely fill vectors evenly, so several pixels are taken as one: a *period* is the smallest run of whole
//! pixels that is also a whole number of groups of four vectors. Coefficients are repeated to that length, and then
//! the data is a plain stream, whatever the number of channels.

mod act;
mod pass;
mod sums;
#[cfg(test)]
mod tests;

use super::activation::Activation;
use super::buffer::Buffer;
use super::real::{Gate, Moments};
use super::simd::{Lanes, Level};
use act::with_act;
use pass::{Affine, AffineInPlace, GateApply, GateByResult, stream};
use rayon::prelude::*;
use sums::{ChannelTerms, GateTerms, MomentTerms, sums};

/// Numbers that one task handles, at least.
const PIECE: usize = 1 << 14;
/// Vectors that are summed side by side.
const GROUP: usize = 4;

/// Numbers in a period of `c` channels.
fn period<T: Lanes>(level: Level, c: usize) -> usize {
    let group = GROUP * T::lanes(level);
    group / gcd(c, group) * c
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whole periods that make about one piece.
fn piece(period: usize) -> usize {
    PIECE.div_ceil(period).max(1) * period
}

/// The coefficients of the channels, repeated to a period.
fn repeat<T: Lanes>(a: &[T], period: usize) -> Buffer<T> {
    let mut out = Buffer::arbitrary(period);
    for out in out.chunks_exact_mut(a.len().max(1)) {
        out.copy_from_slice(a);
    }
    out
}

/// Mean and biased variance of each of `c` channels, by sums of differences to the first pixel.
pub(crate) fn moments<T: Lanes>(level: Level, x: &[T], c: usize) -> Moments {
    if x.is_empty() || c == 0 {
        return super::portable::norm::moments(x, c);
    }
    let count = (x.len() / c) as f64;
    let period = period::<T>(level, c);
    let shift = repeat(&x[..c], period);
    let [s, q] = sums(level, x.len(), c, period, &MomentTerms { x, shift: &shift });
    let mean = (0..c).map(|j| x[j].to_f64() + s[j] / count).collect();
    let var = (0..c).map(|j| ((q[j] - s[j] * s[j] / count) / count).max(0.0)).collect();
    Moments { mean, var }
}

/// y = act(a x + b + residual), a and b per channel.
pub(crate) fn affine<T: Lanes>(
    level: Level,
    x: &[T],
    a: &[T],
    b: &[T],
    residual: Option<&[T]>,
    act: Activation,
    y: &mut [T],
) {
    if a.is_empty() {
        return;
    }
    let period = period::<T>(level, a.len());
    let (a, b) = (repeat(a, period), repeat(b, period));
    let size = piece(period);
    y.par_chunks_mut(size).enumerate().for_each(|(i, y)| {
        let (from, len) = (i * size, y.len());
        let (x, residual) = (&x[from..from + len], residual.map(|r| &r[from..from + len]));
        with_act!(act, act => stream(level, len, period, Affine { x, a: &a, b: &b, residual, act, y }));
    });
}

/// x becomes act(a x + b), a and b per channel: the same numbers as `affine` gives.
pub(crate) fn affine_in_place<T: Lanes>(level: Level, x: &mut [T], a: &[T], b: &[T], act: Activation) {
    if a.is_empty() {
        return;
    }
    let period = period::<T>(level, a.len());
    let (a, b) = (repeat(a, period), repeat(b, period));
    x.par_chunks_mut(piece(period)).for_each(|x| {
        with_act!(act, act => stream(level, x.len(), period, AffineInPlace { x, a: &a, b: &b, act }));
    });
}

/// Per channel, with g = gated dy: the sum of g, and of g (z - mean).
pub(crate) fn gate_sums<T: Lanes>(level: Level, z: &[T], gate: &Gate<T>, dy: &[T], mean: &[T]) -> (Vec<f64>, Vec<f64>) {
    let c = mean.len();
    if z.is_empty() || c == 0 {
        return (vec![0.0; c], vec![0.0; c]);
    }
    let period = period::<T>(level, c);
    let (a, b, mean) = (repeat(gate.a, period), repeat(gate.b, period), repeat(mean, period));
    let [s, q] = with_act!(gate.act, act => {
        let terms = GateTerms { z, dy, y: gate.y, a: &a, b: &b, mean: &mean, act };
        sums(level, z.len(), c, period, &terms)
    });
    (s, q)
}

/// With g = gated d: d becomes k0 g + k1 z + k2 (per channel), and `residual` g.
pub(crate) fn gate_apply<T: Lanes>(
    level: Level,
    z: &[T],
    gate: &Gate<T>,
    k: [&[T]; 3],
    d: &mut [T],
    residual: Option<&mut [T]>,
) {
    if k[0].is_empty() {
        return;
    }
    let period = period::<T>(level, k[0].len());
    let (a, b) = (repeat(gate.a, period), repeat(gate.b, period));
    let k = k.map(|k| repeat(k, period));
    let size = piece(period);
    let each = |i: usize, d: &mut [T], residual: Option<&mut [T]>| {
        let (from, len) = (i * size, d.len());
        let (z, y) = (&z[from..from + len], gate.y.map(|y| &y[from..from + len]));
        let k = [&k[0][..], &k[1], &k[2]];
        with_act!(gate.act, act => {
            stream(level, len, period, GateApply { z, y, a: &a, b: &b, k, d, residual, act });
        });
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

/// d becomes d times the activation's slope, told by its result.
pub(crate) fn gate_by_result<T: Lanes>(level: Level, y: &[T], act: Activation, d: &mut [T]) {
    d.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(d, y)| {
        with_act!(act, act => stream(level, d.len(), PIECE, GateByResult { y, d, act }));
    });
}

/// The sum of each of `c` channels.
pub(crate) fn channel_sums<T: Lanes>(level: Level, x: &[T], c: usize) -> Vec<f64> {
    if x.is_empty() || c == 0 {
        return vec![0.0; c];
    }
    let [s, _] = sums(level, x.len(), c, period::<T>(level, c), &ChannelTerms { x });
    s
}

/// sum += g
pub(crate) fn add_into<T: Lanes>(level: Level, sum: &mut [T], g: &[T]) {
    sum.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).for_each(|(sum, g)| {
        stream(level, sum.len(), PIECE, pass::Add { sum, g });
    });
}
