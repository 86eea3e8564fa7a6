//! What a vector can do, and how a job reaches the vectors of an instruction set.

use super::scratch::Scratch;
use super::{Level, Set, plain};
use crate::ops::real::Real;

/// Work that can be compiled for any instruction set.
///
/// `run` must be `#[inline(always)]` and call nothing that is not: only then does it become part of the function that
/// may use the instructions.
pub(crate) trait Job<T: Lanes> {
    type Output;
    fn run<S: Simd<T = T>>(self, s: S) -> Self::Output;
}

/// The vectors of one instruction set, for one number type.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type T: Lanes;
    /// A vector of `LANES` numbers.
    type V: Copy;
    /// One flag per lane.
    type Mask: Copy;
    const LANES: usize;
    /// How many sums fit in the registers: rows beside one vector, rows beside two.
    const TILE: [usize; 2];
    /// Whether tiles with a pitch known beforehand are worth compiling.
    const FIXED_PITCH: bool;

    /// Runs a job in a function of its own that may use these instructions.
    fn call<J: Job<Self::T>>(self, job: J) -> J::Output;

    fn splat(self, v: Self::T) -> Self::V;
    /// The number at `p` in every lane.
    /// # Safety
    /// A number can be read at `p`.
    unsafe fn broadcast(self, p: *const Self::T) -> Self::V;
    /// # Safety
    /// `LANES` numbers can be read at `p`.
    unsafe fn load(self, p: *const Self::T) -> Self::V;
    /// # Safety
    /// `LANES` numbers can be written at `p`.
    unsafe fn store(self, p: *mut Self::T, v: Self::V);
    /// The first `n` (at most `LANES`) numbers, then zeros.
    /// # Safety
    /// `n` numbers can be read at `p`.
    unsafe fn load_part(self, p: *const Self::T, n: usize) -> Self::V;
    /// Stores the first `n` (at most `LANES`) numbers.
    /// # Safety
    /// `n` numbers can be written at `p`.
    unsafe fn store_part(self, p: *mut Self::T, v: Self::V, n: usize);

    /// The first `n` (at most `LANES`) numbers, then zeros: the whole vector at once where it is whole.
    /// # Safety
    /// `n` numbers can be read at `p`.
    #[inline(always)]
    unsafe fn load_first(self, p: *const Self::T, n: usize) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { if n == Self::LANES { self.load(p) } else { self.load_part(p, n) } }
    }
    /// Stores the first `n` (at most `LANES`) numbers, a whole vector at once.
    /// # Safety
    /// `n` numbers can be written at `p`.
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

    /// Rows become columns: number j of vector i changes places with number i of vector j, for the first `LANES`
    /// vectors (16 at most).
    #[inline(always)]
    fn transpose(self, rows: &mut [Self::V; 16]) {
        let mut numbers = [[Self::T::ZERO; 16]; 16];
        for (numbers, row) in numbers.iter_mut().zip(rows.iter()).take(Self::LANES) {
            // SAFETY: no vector is longer than 16 numbers.
            unsafe { self.store(numbers.as_mut_ptr(), *row) };
        }
        for i in 0..Self::LANES {
            for j in 0..i {
                let number = numbers[i][j];
                numbers[i][j] = numbers[j][i];
                numbers[j][i] = number;
            }
        }
        for (numbers, row) in numbers.iter().zip(rows.iter_mut()).take(Self::LANES) {
            // SAFETY: as above.
            *row = unsafe { self.load(numbers.as_ptr()) };
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
    lowest: T,
    highest: T,
    per_ln2: T,
    shifter: T,
    minus_ln2_high: T,
    minus_ln2_low: T,
    /// The Taylor series of e^r, the highest power first.
    series: &'static [T],
}

/// A number type with vectors.
pub(crate) trait Lanes: Real + Scratch {
    const ZERO: Self;
    /// The nearest number.
    fn from_number(v: f32) -> Self;
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

impl Lanes for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    fn from_number(v: f32) -> f32 {
        v
    }
    const EXP: Exp<f32> = Exp {
        lowest: -86.5,
        highest: 88.0,
        per_ln2: std::f32::consts::LOG2_E,
        shifter: 12_582_912.0,
        minus_ln2_high: -355.0 / 512.0,
        minus_ln2_low: 2.121_944_4e-4,
        series: &[1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0],
    };

    #[inline]
    fn run<J: Job<f32>>(level: Level, job: J) -> J::Output {
        match level.0 {
            Set::Portable => job.run(plain::Plain::<f32, 8>::new()),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is made only after its instructions were detected.
            Set::Avx2 => unsafe { super::avx2::F32::detected() }.call(job),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx512 => unsafe { super::avx512::F32::detected() }.call(job),
        }
    }
}

impl Lanes for f64 {
    const ZERO: f64 = 0.0;
    #[inline(always)]
    fn from_number(v: f32) -> f64 {
        f64::from(v)
    }
    const EXP: Exp<f64> = Exp {
        lowest: -707.0,
        highest: 709.0,
        per_ln2: std::f64::consts::LOG2_E,
        shifter: 6_755_399_441_055_744.0,
        minus_ln2_high: -6.931_471_803_691_238e-1,
        minus_ln2_low: -1.908_214_929_270_587_7e-10,
        series: &[
            1.0 / 6_227_020_800.0,
            1.0 / 479_001_600.0,
            1.0 / 39_916_800.0,
            1.0 / 3_628_800.0,
            1.0 / 362_880.0,
            1.0 / 40_320.0,
            1.0 / 5040.0,
            1.0 / 720.0,
            1.0 / 120.0,
            1.0 / 24.0,
            1.0 / 6.0,
            0.5,
            1.0,
            1.0,
        ],
    };

    /// f64 is for tests and references: arrays of four on every level, which spares a fifth of this crate's code.
    #[inline]
    fn run<J: Job<f64>>(_: Level, job: J) -> J::Output {
        job.run(plain::Plain::<f64, 4>::new())
    }
}
