//! Sums of some neighbouring pixels, held in registers.

// Loops over registers: the compiler unrolls a plain counter.
#![allow(clippy::needless_range_loop)]

use super::block::BLOCK;
use crate::ops::activation::Activation;
use crate::ops::simd::{Job, Lanes, Simd};

/// The taps of a kernel, in the order in which the packed input has their pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taps {
    pub rows: usize,
    pub columns: usize,
    /// From tap to tap in the packed input.
    pub row_step: usize,
    pub column_step: usize,
    /// The first tap's position in the kernel, and from tap to tap there.
    pub start: usize,
    pub kernel_row: isize,
    pub kernel_column: isize,
}

impl Taps {
    /// Whether all taps lie inside a kernel of `len` elements.
    #[inline(always)]
    fn inside(&self, len: usize) -> bool {
        let rows = (self.rows as isize - 1) * self.kernel_row;
        let columns = (self.columns as isize - 1) * self.kernel_column;
        let (low, high) = (rows.min(0) + columns.min(0), rows.max(0) + columns.max(0));
        self.rows > 0
            && self.columns > 0
            && self.start as isize + low >= 0
            && self.start as isize + high + BLOCK as isize <= len as isize
    }
    /// One past the last element that a pixel reads.
    #[inline(always)]
    fn reach(&self) -> usize {
        (self.rows - 1) * self.row_step + (self.columns - 1) * self.column_step + BLOCK
    }
}

/// A plane of output pixels of one block of channels, all of whose input is packed.
pub(super) struct Plane<'a, T> {
    pub taps: Taps,
    pub input: &'a [T],
    pub input_row: usize,
    pub input_pixel: usize,
    pub kernel: &'a [T],
    pub rows: usize,
    pub columns: usize,
    pub out: &'a mut [T],
    pub out_row: usize,
    pub out_pixel: usize,
    pub channels: usize,
    pub bias: Option<&'a [T]>,
    pub residual: Option<&'a [T]>,
    pub add: bool,
    pub act: Activation,
}

impl<T: Lanes> Job<T> for Plane<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(mut self, s: S) {
        let p = &mut self;
        if p.rows == 0 || p.columns == 0 {
            return;
        }
        // These make all loads and stores of the tiles safe.
        let last = (p.rows - 1) * p.out_row + (p.columns - 1) * p.out_pixel + p.channels;
        let reach = (p.rows - 1) * p.input_row + (p.columns - 1) * p.input_pixel + p.taps.reach();
        assert!(p.channels <= BLOCK && BLOCK.is_multiple_of(S::LANES) && p.taps.inside(p.kernel.len()));
        assert!(reach <= p.input.len() && last <= p.out.len() && p.residual.is_none_or(|r| last <= r.len()));
        assert!(p.bias.is_none_or(|b| p.channels <= b.len()));
        for row in 0..p.rows {
            let mut x = 0;
            while x < p.columns {
                // SAFETY: the tile's pixels lie inside the plane that was checked above.
                x += unsafe {
                    match (p.columns - x, S::TILE[0]) {
                        (14.., 14..) => tile::<S, 14>(s, p, row, x),
                        (12.., 12..) => tile::<S, 12>(s, p, row, x),
                        (8.., 8..) => tile::<S, 8>(s, p, row, x),
                        (6.., 6..) => tile::<S, 6>(s, p, row, x),
                        (4.., _) => tile::<S, 4>(s, p, row, x),
                        (2.., _) => tile::<S, 2>(s, p, row, x),
                        _ => tile::<S, 1>(s, p, row, x),
                    }
                };
            }
        }
    }
}

/// Computes `M` pixels from `x` on, and returns M.
/// # Safety
/// Row and pixels lie inside the plane, and the plane inside its slices.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize>(s: S, p: &mut Plane<S::T>, row: usize, x: usize) -> usize {
    let input = p.input.as_ptr().wrapping_add(row * p.input_row + x * p.input_pixel);
    let kernel = p.kernel.as_ptr().wrapping_add(p.taps.start);
    let at = row * p.out_row + x * p.out_pixel;
    let (floor, six) = (s.zero(), s.splat(S::T::from_f32(6.0)));
    let mut first = 0;
    while first < p.channels {
        let mut held = [s.zero(); M];
        for i in 0..p.taps.rows {
            let mut a = input.wrapping_add(first + i * p.taps.row_step);
            let mut w = kernel.wrapping_offset(first as isize + i as isize * p.taps.kernel_row);
            for _ in 0..p.taps.columns {
                // SAFETY: the caller's promise: tap and pixels lie inside.
                unsafe {
                    let tap = s.load(w);
                    for m in 0..M {
                        held[m] = s.mul_add(tap, s.load(a.wrapping_add(m * p.input_pixel)), held[m]);
                    }
                }
                a = a.wrapping_add(p.taps.column_step);
                w = w.wrapping_offset(p.taps.kernel_column);
            }
        }
        // A copy, in memory: the loop below may index it by a variable, and `held` must lie in registers.
        let mut sums = [s.zero(); M];
        for m in 0..M {
            sums[m] = held[m];
        }
        let n = (p.channels - first).min(S::LANES);
        // SAFETY: n channels from `first` on lie inside the block, the pixels inside the plane.
        unsafe {
            let get = |p: *const S::T| s.load_first(p, n);
            let bias = if let Some(bias) = p.bias { get(bias.as_ptr().wrapping_add(first)) } else { s.zero() };
            for m in 0..M {
                let at = at + m * p.out_pixel + first;
                let out = p.out.as_mut_ptr().wrapping_add(at);
                let mut sum = s.add(sums[m], bias);
                if let Some(residual) = p.residual {
                    sum = s.add(sum, get(residual.as_ptr().wrapping_add(at)));
                }
                if p.add {
                    sum = s.add(sum, get(out));
                }
                match p.act {
                    Activation::Relu => sum = s.max(floor, sum),
                    Activation::Relu6 => sum = s.min(six, s.max(floor, sum)),
                    _ => {}
                }
                s.store_first(out, sum, n);
            }
        }
        first += S::LANES;
    }
    M
}
