//! The gradient of a depthwise kernel: a sum over all output pixels, in an order that depends on the shape alone.

// Loops over registers: the compiler unrolls a plain counter.
#![allow(clippy::needless_range_loop)]

use super::block::{BLOCK, PACKED, block, image};
use crate::ops::buffer::Buffer;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::window::{PackRows, Window};
use crate::ops::simd::{Job, Lanes, Level, Simd, with_scratch};
use rayon::prelude::*;

/// dw = the gradient, (C, 1, KH, KW).
pub(crate) fn weight_gradient<T: Lanes>(level: Level, x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
    /// Pieces of work, each with separate sums.
    const SLICES: usize = 32;
    let (taps, blocks) = (g.kh * g.kw, g.c.div_ceil(BLOCK));
    let len = blocks * taps * BLOCK;
    let columns = (g.ow - 1) * g.stride + (g.kw - 1) * g.dilation + 1;
    let rows = (PACKED / ((columns * g.stride + g.ow) * BLOCK)).clamp(1, g.oh);
    let per_image = g.oh.div_ceil(rows);
    let units = g.n * per_image;
    let slices = SLICES.min(units);
    let mut sums = Buffer::<T>::zeros(slices * len);
    sums.par_chunks_mut(len).with_max_len(1).enumerate().for_each(|(slice, sums)| {
        for unit in units * slice / slices..units * (slice + 1) / slices {
            let (image, from) = (unit / per_image, unit % per_image * rows);
            // All blocks of some rows, one after the other: the rows are then still in the cache.
            for (b, sums) in sums.chunks_exact_mut(taps * BLOCK).enumerate() {
                let piece = Rows { x, dy, g, image, from, rows: rows.min(g.oh - from), columns, first: b * BLOCK };
                piece.add(level, sums);
            }
        }
    });
    for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
        for (t, dw) in dw.iter_mut().enumerate() {
            *dw = T::ZERO;
            for sums in sums.chunks_exact(len) {
                *dw += sums[(c / BLOCK * taps + t) * BLOCK + c % BLOCK];
            }
        }
    }
}

/// Output rows of one image, for the channels of one block.
struct Rows<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    g: &'a Geometry,
    image: usize,
    from: usize,
    rows: usize,
    /// Input columns that the rows read, padding included.
    columns: usize,
    first: usize,
}

impl<T: Lanes> Rows<'_, T> {
    fn add(&self, level: Level, sums: &mut [T]) {
        let &Self { x, dy, g, image: n, from, rows, columns, first } = self;
        let blocks = block(g, first);
        let window = Window {
            top: (from * g.stride) as isize - g.pad[0] as isize,
            left: -(g.pad[1] as isize),
            rows: (rows - 1) * g.stride + (g.kh - 1) * g.dilation + 1,
            columns,
        };
        let result = Window { top: from as isize, left: 0, rows, columns: g.ow };
        with_scratch(window.len(&blocks) + result.len(&blocks), |scratch| {
            let (input, gradient) = scratch.split_at_mut(window.len(&blocks));
            T::run(level, PackRows { image: image(x, g.h, g.w, g.c, n, first), window, blocks, out: input });
            let source = image(dy, g.oh, g.ow, g.k, n, first);
            T::run(level, PackRows { image: source, window: result, blocks, out: gradient });
            T::run(level, Products { g, rows, input, row_len: columns * BLOCK, gradient, sums });
        });
    }
}

/// Adds the products of some packed rows.
struct Products<'a, T> {
    g: &'a Geometry,
    rows: usize,
    input: &'a [T],
    row_len: usize,
    gradient: &'a [T],
    sums: &'a mut [T],
}

impl<T: Lanes> Job<T> for Products<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(mut self, s: S) {
        let g = self.g;
        let last = ((self.rows - 1) * g.stride + (g.kh - 1) * g.dilation) * self.row_len
            + ((g.ow - 1) * g.stride + (g.kw - 1) * g.dilation) * BLOCK
            + BLOCK;
        // These make the loads and stores of `row` safe.
        assert!(last <= self.input.len() && self.rows * g.ow * BLOCK <= self.gradient.len());
        assert!(g.kh * g.kw * BLOCK <= self.sums.len() && BLOCK.is_multiple_of(S::LANES));
        for a in 0..g.kh {
            let mut b = 0;
            while b < g.kw {
                // SAFETY: checked above; the taps a, b.. lie inside the kernel.
                b += unsafe {
                    match g.kw - b {
                        7.. => taps::<S, 7>(s, &mut self, a, b),
                        5.. => taps::<S, 5>(s, &mut self, a, b),
                        3.. => taps::<S, 3>(s, &mut self, a, b),
                        2 => taps::<S, 2>(s, &mut self, a, b),
                        _ => taps::<S, 1>(s, &mut self, a, b),
                    }
                };
            }
        }
    }
}

/// The sums of `K` neighbouring taps from (a, b) on, over all pixels; returns K.
/// # Safety
/// All slices have the geometry's sizes, and the taps lie inside the kernel.
#[inline(always)]
unsafe fn taps<S: Simd, const K: usize>(s: S, p: &mut Products<S::T>, a: usize, b: usize) -> usize {
    let g = p.g;
    let (pixel, tap) = (g.stride * BLOCK, g.dilation * BLOCK);
    let mut first = 0;
    while first < BLOCK {
        // Two sets of sums, so that no addition waits for the one before it.
        let mut held = [[s.zero(); K]; 2];
        for row in 0..p.rows {
            let start = (row * g.stride + a * g.dilation) * p.row_len + b * tap + first;
            let mut x = p.input.as_ptr().wrapping_add(start);
            let mut d = p.gradient.as_ptr().wrapping_add(row * g.ow * BLOCK + first);
            for _ in 0..g.ow / 2 {
                // SAFETY: two pixels and their taps, inside by the caller's promise.
                unsafe {
                    let (d0, d1) = (s.load(d), s.load(d.wrapping_add(BLOCK)));
                    for k in 0..K {
                        held[0][k] = s.mul_add(d0, s.load(x.wrapping_add(k * tap)), held[0][k]);
                        held[1][k] = s.mul_add(d1, s.load(x.wrapping_add(pixel + k * tap)), held[1][k]);
                    }
                }
                x = x.wrapping_add(2 * pixel);
                d = d.wrapping_add(2 * BLOCK);
            }
            if g.ow % 2 == 1 {
                // SAFETY: the last pixel and its taps.
                unsafe {
                    let d0 = s.load(d);
                    for k in 0..K {
                        held[0][k] = s.mul_add(d0, s.load(x.wrapping_add(k * tap)), held[0][k]);
                    }
                }
            }
        }
        for k in 0..K {
            let at = (a * g.kw + b + k) * BLOCK + first;
            let out = p.sums.as_mut_ptr().wrapping_add(at);
            // SAFETY: a vector of tap (a, b + k), inside by the caller's promise.
            unsafe { s.store(out, s.add(s.load(out), s.add(held[0][k], held[1][k]))) };
        }
        first += S::LANES;
    }
    K
}
