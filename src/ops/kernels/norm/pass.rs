//! Passes that write one element for each they read.

use super::act::Act;
use crate::ops::simd::{Job, Lanes, Level, Simd};

/// Reads `n` elements from position `at` on, then zeros.
/// # Safety
/// `at + n` is at most the length, and n at most `LANES`.
#[inline(always)]
pub(super) unsafe fn get<S: Simd>(s: S, from: &[S::T], at: usize, n: usize) -> S::V {
    let p = from.as_ptr().wrapping_add(at);
    // SAFETY: the caller's promise.
    unsafe { s.load_first(p, n) }
}

/// Writes `n` elements from position `at` on.
/// # Safety
/// As for `get`.
#[inline(always)]
unsafe fn put<S: Simd>(s: S, to: &mut [S::T], at: usize, v: S::V, n: usize) {
    let p = to.as_mut_ptr().wrapping_add(at);
    // SAFETY: the caller's promise.
    unsafe { s.store_first(p, v, n) }
}

/// The operation of a pass on one vector.
pub(super) trait Pass<T: Lanes> {
    /// Whether all streams have `len` elements, all coefficients `period`.
    fn fits(&self, len: usize, period: usize) -> bool;
    /// Handles `n` elements from position `at` on, whose coefficients start at `column`.
    /// # Safety
    /// `fits` holds for a `len` of at least `at + n` and a `period` of at least `column + n`; n is at most `LANES`.
    unsafe fn vector<S: Simd<T = T>>(&mut self, s: S, at: usize, column: usize, n: usize);
}

/// Runs a pass over `len` elements.
pub(super) fn stream<T: Lanes, P: Pass<T>>(level: Level, len: usize, period: usize, pass: P) {
    T::run(level, Stream { len, period, pass });
}

struct Stream<P> {
    len: usize,
    period: usize,
    pass: P,
}

impl<T: Lanes, P: Pass<T>> Job<T> for Stream<P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { len, period, mut pass } = self;
        assert!(pass.fits(len, period) && period.is_multiple_of(S::LANES));
        let mut at = 0;
        while at < len {
            let end = period.min(len - at);
            let mut column = 0;
            while column + S::LANES <= end {
                // SAFETY: `fits`, and a whole vector lies before the end of the period and of the data.
                unsafe { pass.vector(s, at + column, column, S::LANES) };
                column += S::LANES;
            }
            if column < end {
                // SAFETY: as above, for the elements that are left.
                unsafe { pass.vector(s, at + column, column, end - column) };
            }
            at += period;
        }
    }
}

/// y = act(a x + b + residual)
pub(super) struct Affine<'a, T, A> {
    pub x: &'a [T],
    pub a: &'a [T],
    pub b: &'a [T],
    pub residual: Option<&'a [T]>,
    pub act: A,
    pub y: &'a mut [T],
}

impl<T: Lanes, A: Act> Pass<T> for Affine<'_, T, A> {
    #[inline(always)]
    fn fits(&self, len: usize, period: usize) -> bool {
        self.x.len() == len
            && self.y.len() == len
            && self.residual.is_none_or(|r| r.len() == len)
            && self.a.len() == period
            && self.b.len() == period
    }
    #[inline(always)]
    unsafe fn vector<S: Simd<T = T>>(&mut self, s: S, at: usize, column: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (get(s, self.a, column, n), get(s, self.b, column, n));
            let mut u = s.mul_add(get(s, self.x, at, n), a, b);
            if let Some(residual) = self.residual {
                u = s.add(u, get(s, residual, at, n));
            }
            put(s, self.y, at, self.act.value(s, u), n);
        }
    }
}

/// x becomes act(a x + b)
pub(super) struct AffineInPlace<'a, T, A> {
    pub x: &'a mut [T],
    pub a: &'a [T],
    pub b: &'a [T],
    pub act: A,
}

impl<T: Lanes, A: Act> Pass<T> for AffineInPlace<'_, T, A> {
    #[inline(always)]
    fn fits(&self, len: usize, period: usize) -> bool {
        self.x.len() == len && self.a.len() == period && self.b.len() == period
    }
    #[inline(always)]
    unsafe fn vector<S: Simd<T = T>>(&mut self, s: S, at: usize, column: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (get(s, self.a, column, n), get(s, self.b, column, n));
            let u = s.mul_add(get(s, self.x, at, n), a, b);
            put(s, self.x, at, self.act.value(s, u), n);
        }
    }
}

/// d becomes k0 g + k1 z + k2 and `residual` g, with g the gated d.
pub(super) struct GateApply<'a, T, A> {
    pub z: &'a [T],
    pub y: Option<&'a [T]>,
    pub a: &'a [T],
    pub b: &'a [T],
    pub k: [&'a [T]; 3],
    pub d: &'a mut [T],
    pub residual: Option<&'a mut [T]>,
    pub act: A,
}

impl<T: Lanes, A: Act> Pass<T> for GateApply<'_, T, A> {
    #[inline(always)]
    fn fits(&self, len: usize, period: usize) -> bool {
        self.z.len() == len
            && self.d.len() == len
            && self.y.is_none_or(|y| y.len() == len)
            && self.residual.as_ref().is_none_or(|r| r.len() == len)
            && self.a.len() == period
            && self.b.len() == period
            && self.k.iter().all(|k| k.len() == period)
    }
    #[inline(always)]
    unsafe fn vector<S: Simd<T = T>>(&mut self, s: S, at: usize, column: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let z = get(s, self.z, at, n);
            let u = match self.y {
                Some(y) => get(s, y, at, n),
                None => s.mul_add(z, get(s, self.a, column, n), get(s, self.b, column, n)),
            };
            let g = self.act.gated(s, u, get(s, self.d, at, n));
            let [k0, k1, k2] =
                [get(s, self.k[0], column, n), get(s, self.k[1], column, n), get(s, self.k[2], column, n)];
            put(s, self.d, at, s.mul_add(k0, g, s.mul_add(k1, z, k2)), n);
            if let Some(residual) = &mut self.residual {
                put(s, residual, at, g, n);
            }
        }
    }
}

/// d becomes d times the slope, computed from the result y.
pub(super) struct GateByResult<'a, T, A> {
    pub y: &'a [T],
    pub d: &'a mut [T],
    pub act: A,
}

impl<T: Lanes, A: Act> Pass<T> for GateByResult<'_, T, A> {
    #[inline(always)]
    fn fits(&self, len: usize, _: usize) -> bool {
        self.y.len() == len && self.d.len() == len
    }
    #[inline(always)]
    unsafe fn vector<S: Simd<T = T>>(&mut self, s: S, at: usize, _: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { put(s, self.d, at, self.act.gated(s, get(s, self.y, at, n), get(s, self.d, at, n)), n) }
    }
}

/// sum += g
pub(super) struct Add<'a, T> {
    pub sum: &'a mut [T],
    pub g: &'a [T],
}

impl<T: Lanes> Pass<T> for Add<'_, T> {
    #[inline(always)]
    fn fits(&self, len: usize, _: usize) -> bool {
        self.sum.len() == len && self.g.len() == len
    }
    #[inline(always)]
    unsafe fn vector<S: Simd<T = T>>(&mut self, s: S, at: usize, _: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { put(s, self.sum, at, s.add(get(s, self.sum, at, n), get(s, self.g, at, n)), n) }
    }
}
