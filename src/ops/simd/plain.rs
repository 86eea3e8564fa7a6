//! Short arrays as vectors: the compiler turns them into the instructions that the target always has.
// Loops over registers: the compiler unrolls a plain counter.
#![allow(clippy::needless_range_loop)]

use super::lanes::{Job, Lanes, Simd};
use std::marker::PhantomData;

/// Arrays of `L` elements.
#[derive(Clone, Copy)]
pub(crate) struct Plain<T, const L: usize>(PhantomData<T>);

impl<T, const L: usize> Plain<T, L> {
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

#[inline(always)]
fn zip<T: Copy, const L: usize>(a: [T; L], b: [T; L], f: impl Fn(T, T) -> T) -> [T; L] {
    let mut out = a;
    for i in 0..L {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// The differences between the element types: integers in the bits of an element, and fused products.
pub(crate) trait Bits: Lanes {
    fn scale(self, t: Self) -> Self;
    fn fused(a: Self, b: Self, c: Self) -> Self;
}

macro_rules! bits {
    ($t:ty, $shift:literal) => {
        impl Bits for $t {
            #[inline(always)]
            fn scale(self, t: Self) -> Self {
                Self::from_bits(self.to_bits().wrapping_add(t.to_bits() << $shift))
            }
            #[inline(always)]
            fn fused(a: Self, b: Self, c: Self) -> Self {
                // Without the instruction a fused product would be a call into the C library.
                if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
            }
        }
    };
}
bits!(f32, 23);
bits!(f64, 52);

impl<T: Bits, const L: usize> Simd for Plain<T, L> {
    type T = T;
    type V = [T; L];
    type Mask = [bool; L];
    const LANES: usize = L;
    const TILE: [usize; 2] = if cfg!(target_arch = "aarch64") { [12, 6] } else { [6, 3] };

    const FIXED_PITCH: bool = false;

    #[inline(always)]
    fn call<J: Job<T>>(self, job: J) -> J::Output {
        job.run(self)
    }
    #[inline(always)]
    fn splat(self, v: T) -> [T; L] {
        [v; L]
    }
    #[inline(always)]
    unsafe fn broadcast(self, p: *const T) -> [T; L] {
        // SAFETY: the caller's promise.
        [unsafe { p.read() }; L]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const T) -> [T; L] {
        // SAFETY: the caller's promise; an array has the alignment that `read_unaligned` does without.
        unsafe { p.cast::<[T; L]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut T, v: [T; L]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[T; L]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const T, n: usize) -> [T; L] {
        let mut v = [T::zero(); L];
        for (i, v) in v.iter_mut().enumerate().take(n) {
            // SAFETY: i < n, the caller's promise.
            *v = unsafe { p.add(i).read() };
        }
        v
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut T, v: [T; L], n: usize) {
        for (i, &v) in v.iter().enumerate().take(n) {
            // SAFETY: i < n, the caller's promise.
            unsafe { p.add(i).write(v) };
        }
    }
    #[inline(always)]
    fn add(self, a: [T; L], b: [T; L]) -> [T; L] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [T; L], b: [T; L]) -> [T; L] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [T; L], b: [T; L]) -> [T; L] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [T; L], b: [T; L]) -> [T; L] {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: [T; L], b: [T; L], c: [T; L]) -> [T; L] {
        let mut out = c;
        for i in 0..L {
            out[i] = T::fused(a[i], b[i], c[i]);
        }
        out
    }
    #[inline(always)]
    fn max(self, a: [T; L], b: [T; L]) -> [T; L] {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [T; L], b: [T; L]) -> [T; L] {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn less(self, a: [T; L], b: [T; L]) -> [bool; L] {
        let mut out = [false; L];
        for i in 0..L {
            out[i] = a[i] < b[i];
        }
        out
    }
    #[inline(always)]
    fn keep(self, mask: [bool; L], a: [T; L]) -> [T; L] {
        let mut out = a;
        for i in 0..L {
            out[i] = if mask[i] { a[i] } else { T::zero() };
        }
        out
    }
    #[inline(always)]
    fn scale(self, v: [T; L], t: [T; L]) -> [T; L] {
        zip(v, t, T::scale)
    }
}
