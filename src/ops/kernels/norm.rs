//! Passes over NHWC data whose coefficients belong to channels: statistics, affine maps, gates and their gradients.

mod act;
mod pass;
mod period;
mod sums;
#[cfg(test)]
mod tests;

use crate::ops::activation::Activation;
use crate::ops::epilogue::{Gate, Statistics};
use crate::ops::simd::{Lanes, Level};
use act::with_act;
use pass::{Affine, AffineInPlace, GateApply, GateByResult, stream};
use period::{PIECE, period, piece, repeat};
use rayon::prelude::*;
use sums::{ChannelTerms, GateTerms, MomentTerms, sums};

/// The chooser: the best level of this processor.
pub(crate) fn choose() -> Passes {
    Passes { level: Level::chosen() }
}

/// The passes, at one level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passes {
    level: Level,
}

impl Passes {
    /// Mean and biased variance of each of `c` channels, by sums of differences to the first pixel.
    pub fn moments<T: Lanes>(self, x: &[T], c: usize) -> Statistics {
        let level = self.level;
        if x.is_empty() || c == 0 {
            return Statistics { mean: vec![0.0; c], var: vec![0.0; c] };
        }
        let count = (x.len() / c) as f64;
        let period = period::<T>(level, c);
        let shift = repeat(&x[..c], period);
        let [s, q] = sums(level, x.len(), c, period, &MomentTerms { x, shift: &shift });
        let mean = (0..c).map(|j| x[j].to_f64() + s[j] / count).collect();
        let var = (0..c).map(|j| ((q[j] - s[j] * s[j] / count) / count).max(0.0)).collect();
        Statistics { mean, var }
    }

    /// y = act(a x + b + residual), a and b per channel.
    pub fn affine<T: Lanes>(self, x: &[T], a: &[T], b: &[T], residual: Option<&[T]>, act: Activation, y: &mut [T]) {
        let level = self.level;
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

    /// x becomes act(a x + b), a and b per channel: the same elements as `affine`.
    pub fn affine_in_place<T: Lanes>(self, x: &mut [T], a: &[T], b: &[T], act: Activation) {
        let level = self.level;
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
    pub fn gate_sums<T: Lanes>(self, z: &[T], gate: &Gate<T>, dy: &[T], mean: &[T]) -> (Vec<f64>, Vec<f64>) {
        let level = self.level;
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
    pub fn gate_apply<T: Lanes>(self, z: &[T], gate: &Gate<T>, k: [&[T]; 3], d: &mut [T], residual: Option<&mut [T]>) {
        let level = self.level;
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

    /// d becomes d times the activation's slope, computed from its result.
    pub fn gate_by_result<T: Lanes>(self, y: &[T], act: Activation, d: &mut [T]) {
        let level = self.level;
        d.par_chunks_mut(PIECE).zip(y.par_chunks(PIECE)).for_each(|(d, y)| {
            with_act!(act, act => stream(level, d.len(), PIECE, GateByResult { y, d, act }));
        });
    }

    /// The sum of each of `c` channels.
    pub fn channel_sums<T: Lanes>(self, x: &[T], c: usize) -> Vec<f64> {
        let level = self.level;
        if x.is_empty() || c == 0 {
            return vec![0.0; c];
        }
        let [s, _] = sums(level, x.len(), c, period::<T>(level, c), &ChannelTerms { x });
        s
    }

    /// sum += g
    pub fn add_into<T: Lanes>(self, sum: &mut [T], g: &[T]) {
        let level = self.level;
        sum.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).for_each(|(sum, g)| {
            stream(level, sum.len(), PIECE, pass::Add { sum, g });
        });
    }
}
