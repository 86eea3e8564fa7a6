//! The SIMD trait, and dispatch of a kernel to an instruction set.

use super::level::Level;
use super::scratch::Scratch;
use crate::ops::number::Real;

/// Work that can be compiled for any instruction set.
///
/// `run` must be `#[inline(always)]` and call nothing that is not: only then does it become part of the function that
/// may use the instructions.
pub(crate) trait Job<T: Lanes> {
    type Output;
    fn run<S: Simd<T = T>>(self, s: S) -> Self::Output;
}

/// The vectors of one instruction set, for one element type.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type T: Lanes;
    /// A vector of `LANES` elements.
    type V: Copy;
    /// One flag per lane.
    type Mask: Copy;
    const LANES: usize;
    /// How many sums fit in the registers: rows beside one vector, rows beside two.
    const TILE: [usize; 2];
    /// Whether to compile tiles with a constant pitch: a subset, to limit compile time.
    const FIXED_PITCH: bool;

    /// Runs a job in a separate function that may use these instructions.
    fn call<J: Job<Self::T>>(self, job: J) -> J::Output;

    fn splat(self, v: Self::T) -> Self::V;
    /// The element at `p` in every lane.
    /// # Safety
    /// An element can be read at `p`.
    unsafe fn broadcast(self, p: *const Self::T) -> Self::V;
    /// # Safety
    /// `LANES` elements can be read at `p`.
    unsafe fn load(self, p: *const Self::T) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written at `p`.
    unsafe fn store(self, p: *mut Self::T, v: Self::V);
    /// The first `n` (at most `LANES`) elements, then zeros.
    /// # Safety
    /// `n` elements can be read at `p`.
    unsafe fn load_part(self, p: *const Self::T, n: usize) -> Self::V;
    /// Stores the first `n` (at most `LANES`) elements.
    /// # Safety
    /// `n` elements can be written at `p`.
    unsafe fn store_part(self, p: *mut Self::T, v: Self::V, n: usize);

    /// The first `n` (at most `LANES`) elements, then zeros: the whole vector at once where it is whole.
    /// # Safety
    /// `n` elements can be read at `p`.
    #[inline(always)]
    unsafe fn load_first(self, p: *const Self::T, n: usize) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { self.load(p) } else { self.load_part(p, n) } }
    }
    /// Stores the first `n` (at most `LANES`) elements, a whole vector at once.
    /// # Safety
    /// `n` elements can be written at `p`.
    #[inline(always)]
    unsafe fn store_first(self, p: *mut Self::T, v: Self::V, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { self.store(p, v) } else { self.store_part(p, v, n) } }
    }

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// a b + c, rounded once where the processor can do so.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// a < b (false for NaN).
    fn less(self, a: Self::V, b: Self::V) -> Self::Mask;
    /// `a` where the flag is set, zero elsewhere.
    fn keep(self, mask: Self::Mask, a: Self::V) -> Self::V;
    /// `v` times 2 to the power of the integer in the low bits of `t`, where the result is a normal number.
    fn scale(self, v: Self::V, t: Self::V) -> Self::V;

    /// Rows become columns: element j of vector i changes places with element i of vector j, for the first `LANES`
    /// vectors (16 at most).
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::V; 16]) {
        let mut elements = [[Self::T::ZERO; 16]; 16];
        for (elements, row) in elements.iter_mut().zip(rows.iter()).take(Self::LANES) {
            // SAFETY: no vector is longer than 16 elements.
            unsafe { self.store(elements.as_mut_ptr(), *row) };
        }
        for i in 0..Self::LANES {
            for j in 0..i {
                let element = elements[i][j];
                elements[i][j] = elements[j][i];
                elements[j][i] = element;
            }
        }
        for (elements, row) in elements.iter().zip(rows.iter_mut()).take(Self::LANES) {
            // SAFETY: as above.
            *row = unsafe { self.load(elements.as_ptr()) };
        }
    }

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(Self::T::ZERO)
    }

    /// Hints that the line at `p` will be written soon.
    #[inline(always)]
    fn prefetch(self, p: *const Self::T) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint; any address is allowed.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_ET0>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }

    /// e^u to about one unit in the last place; 0 and infinity are approached, not reached.
    #[inline(always)]
    fn exp(self, u: Self::V) -> Self::V {
        let facts = Self::T::EXP;
        let u = self.min(self.splat(facts.highest), self.max(self.splat(facts.lowest), u));
        // t holds round(u / ln 2) in its low bits: adding 1.5 * 2^mantissa bits leaves no room for a fraction.
        let t = self.mul_add(u, self.splat(facts.per_ln2), self.splat(facts.shifter));
        let n = self.sub(t, self.splat(facts.shifter));
        let r = self.mul_add(n, self.splat(facts.minus_ln2_high), u);
        let r = self.mul_add(n, self.splat(facts.minus_ln2_low), r);
        let mut sum = self.splat(facts.series[0]);
        for &term in &facts.series[1..] {
            sum = self.mul_add(sum, r, self.splat(term));
        }
        self.scale(sum, t)
    }
}

/// The constants of e^u = 2^n e^r with |r| <= ln 2 / 2.
pub(crate) struct Exp<T: 'static> {
    pub lowest: T,
    pub highest: T,
    pub per_ln2: T,
    pub shifter: T,
    pub minus_ln2_high: T,
    pub minus_ln2_low: T,
    /// The Taylor series of e^r, the highest power first.
    pub series: &'static [T],
}

/// A element type with vectors.
pub(crate) trait Lanes: Real + Scratch {
    const ZERO: Self;
    /// The nearest value.
    fn from_f32(v: f32) -> Self;
    const EXP: Exp<Self>;
    /// Runs a job with the level's instructions.
    fn run<J: Job<Self>>(level: Level, job: J) -> J::Output;
    /// Vector length at this level.
    fn lanes(level: Level) -> usize {
        Self::shape(level).0
    }
    /// Pixels of a tile of two vectors at this level.
    fn tile(level: Level) -> usize {
        Self::shape(level).1
    }
    /// Vector length, and pixels of a tile of two vectors.
    fn shape(level: Level) -> (usize, usize) {
        struct Shape;
        impl<T: Lanes> Job<T> for Shape {
            type Output = (usize, usize);
            #[inline(always)]
            fn run<S: Simd<T = T>>(self, _: S) -> (usize, usize) {
                (S::LANES, S::TILE[1])
            }
        }
        Self::run(level, Shape)
    }
}
