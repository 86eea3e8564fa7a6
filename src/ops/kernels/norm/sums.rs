//! Per-channel sums: short runs in SIMD, accumulated in f64, in a fixed order.

use super::act::Act;
use super::pass::get;
use super::period::{GROUP, piece};
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// Periods that are summed in vectors before they are added in f64: short sums hardly lose precision.
const RUN: usize = 64;
/// Lanes of a group of vectors, at most.
const MOST: usize = GROUP * 16;

/// The summands: two terms for each element.
pub(super) trait Terms<T: Lanes>: Sync {
    /// Whether all streams have `len` elements, all coefficients `period`.
    fn fits(&self, len: usize, period: usize) -> bool;
    /// The terms of `n` elements from position `at` on, whose coefficients start at `column`; then zeros.
    /// # Safety
    /// `fits` holds for a `len` of at least `at + n` and a `period` of at least `column + n`; n is at most `LANES`.
    unsafe fn terms<S: Simd<T = T>>(&self, s: S, at: usize, column: usize, n: usize) -> [S::V; 2];
}

/// The two sums of each channel over `len` elements.
pub(super) fn sums<T: Lanes, F: Terms<T>>(
    level: Level,
    len: usize,
    c: usize,
    period: usize,
    terms: &F,
) -> [Vec<f64>; 2] {
    let size = piece(period);
    let parts: Vec<Vec<f64>> = (0..len.div_ceil(size))
        .into_par_iter()
        .map(|i| {
            let mut part = vec![0.0; 2 * c];
            let (from, to) = (i * size, len.min((i + 1) * size));
            T::run(level, Sum { terms, len, from, to, c, period, part: &mut part });
            part
        })
        .collect();
    let mut total = vec![0.0; 2 * c];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
    }
    let second = total.split_off(c);
    [total, second]
}

struct Sum<'a, F> {
    terms: &'a F,
    len: usize,
    from: usize,
    to: usize,
    c: usize,
    period: usize,
    /// The first sums of all channels, then the second.
    part: &'a mut [f64],
}

impl<T: Lanes, F: Terms<T>> Job<T> for Sum<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { terms, len, from, to, c, period, part } = self;
        assert!(terms.fits(len, period) && from <= to && to <= len && part.len() == 2 * c);
        assert!(period.is_multiple_of(GROUP * S::LANES) && GROUP * S::LANES <= MOST);
        let (first, second) = part.split_at_mut(c);
        let whole = (to - from) / period;
        let mut lanes = [[T::ZERO; MOST]; 2];
        for run in (0..whole).step_by(RUN) {
            let run_end = whole.min(run + RUN);
            for column in (0..period).step_by(GROUP * S::LANES) {
                let mut held = [[s.zero(); 2]; GROUP];
                for i in run..run_end {
                    for v in 0..GROUP {
                        let j = column + v * S::LANES;
                        // SAFETY: period i ends at or before `to`, and the group lies inside a period.
                        let [a, b] = unsafe { terms.terms(s, from + i * period + j, j, S::LANES) };
                        held[v] = [s.add(held[v][0], a), s.add(held[v][1], b)];
                    }
                }
                for v in 0..GROUP {
                    // SAFETY: GROUP vectors fit into MOST lanes.
                    unsafe {
                        s.store(lanes[0].as_mut_ptr().add(v * S::LANES), held[v][0]);
                        s.store(lanes[1].as_mut_ptr().add(v * S::LANES), held[v][1]);
                    }
                }
                let mut channel = column % c;
                for i in 0..GROUP * S::LANES {
                    first[channel] += lanes[0][i].to_f64();
                    second[channel] += lanes[1][i].to_f64();
                    channel = if channel + 1 == c { 0 } else { channel + 1 };
                }
            }
        }
        // What is left is less than a period.
        let start = from + whole * period;
        for column in (0..to - start).step_by(S::LANES) {
            let n = S::LANES.min(to - start - column);
            // SAFETY: n elements from here on lie before `to` and inside a period.
            unsafe {
                let [a, b] = terms.terms(s, start + column, column, n);
                s.store(lanes[0].as_mut_ptr(), a);
                s.store(lanes[1].as_mut_ptr(), b);
            }
            for i in 0..n {
                first[(column + i) % c] += lanes[0][i].to_f64();
                second[(column + i) % c] += lanes[1][i].to_f64();
            }
        }
    }
}

/// x - shift, and its square.
pub(super) struct MomentTerms<'a, T> {
    pub x: &'a [T],
    pub shift: &'a [T],
}

impl<T: Lanes> Terms<T> for MomentTerms<'_, T> {
    #[inline(always)]
    fn fits(&self, len: usize, period: usize) -> bool {
        self.x.len() == len && self.shift.len() == period
    }
    #[inline(always)]
    unsafe fn terms<S: Simd<T = T>>(&self, s: S, at: usize, column: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise.
        let v = unsafe { s.sub(get(s, self.x, at, n), get(s, self.shift, column, n)) };
        [v, s.mul(v, v)]
    }
}

/// g = gated dy, and g (z - mean).
pub(super) struct GateTerms<'a, T, A> {
    pub z: &'a [T],
    pub dy: &'a [T],
    pub y: Option<&'a [T]>,
    pub a: &'a [T],
    pub b: &'a [T],
    pub mean: &'a [T],
    pub act: A,
}

impl<T: Lanes, A: Act> Terms<T> for GateTerms<'_, T, A> {
    #[inline(always)]
    fn fits(&self, len: usize, period: usize) -> bool {
        self.z.len() == len
            && self.dy.len() == len
            && self.y.is_none_or(|y| y.len() == len)
            && self.a.len() == period
            && self.b.len() == period
            && self.mean.len() == period
    }
    #[inline(always)]
    unsafe fn terms<S: Simd<T = T>>(&self, s: S, at: usize, column: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let z = get(s, self.z, at, n);
            let u = match self.y {
                Some(y) => get(s, y, at, n),
                None => s.mul_add(z, get(s, self.a, column, n), get(s, self.b, column, n)),
            };
            let g = self.act.gated(s, u, get(s, self.dy, at, n));
            [g, s.mul(g, s.sub(z, get(s, self.mean, column, n)))]
        }
    }
}

/// x, and nothing.
pub(super) struct ChannelTerms<'a, T> {
    pub x: &'a [T],
}

impl<T: Lanes> Terms<T> for ChannelTerms<'_, T> {
    #[inline(always)]
    fn fits(&self, len: usize, _: usize) -> bool {
        self.x.len() == len
    }
    #[inline(always)]
    unsafe fn terms<S: Simd<T = T>>(&self, s: S, at: usize, _: usize, n: usize) -> [S::V; 2] {
        // SAFETY: the caller's promise.
        [unsafe { get(s, self.x, at, n) }, s.zero()]
    }
}
