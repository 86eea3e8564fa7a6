//! The gradient of a depthwise kernel: a sum over all output pixels, in an order that the shape alone decides.

// Loops over registers: a plain counter unrolls for certain.
#![allow(clippy::needless_range_loop)]

use super::{BLOCK, PACKED, block, image};
use crate::ops::buffer::Buffer;
use crate::ops::conv::rows::{PackRows, Window};
use crate::ops::geometry::Geometry;
use crate::ops::simd::{Job, Lanes, Level, Simd, with_scratch};
use rayon::prelude::*;

/// dw = the gradient, (C, 1, KH, KW).
pub(crate) fn weight_gradient<T: Lanes>(level: Level, x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
    /// Pieces of work, at least, where there are as many images.
    const TASKS: usize = 32;
    let taps = g.kh * g.kw;
    let blocks = g.c.div_ceil(BLOCK);
    let slices = TASKS.div_ceil(blocks).min(g.n);
    let mut sums = Buffer::<T>::zeros(blocks * slices * taps * BLOCK);
    sums.par_chunks_mut(taps * BLOCK).with_max_len(1).enumerate().for_each(|(i, sums)| {
        let (b, slice) = (i / slices, i % slices);
        for n in g.n * slice / slices..g.n * (slice + 1) / slices {
            add_image(level, x, dy, g, n, b * BLOCK, sums);
        }
    });
    for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
        let sums = &sums[c / BLOCK * slices * taps * BLOCK..][..slices * taps * BLOCK];
        for (t, dw) in dw.iter_mut().enumerate() {
            *dw = T::ZERO;
            for sums in sums.chunks_exact(taps * BLOCK) {
                *dw += sums[t * BLOCK + c % BLOCK];
            }
        }
    }
}

/// Adds the products of image `n`, for the channels from `first` on.
fn add_image<T: Lanes>(level: Level, x: &[T], dy: &[T], g: &Geometry, n: usize, first: usize, sums: &mut [T]) {
    let columns = (g.ow - 1) * g.stride + (g.kw - 1) * g.dilation + 1;
    let reach = (g.kh - 1) * g.dilation + 1;
    let per_row = (columns * g.stride + g.ow) * BLOCK;
    let most = (PACKED / per_row).clamp(1, g.oh);
    let blocks = block(g, first);
    for from in (0..g.oh).step_by(most) {
        let rows = most.min(g.oh - from);
        let window = Window {
            top: (from * g.stride) as isize - g.pad[0] as isize,
            left: -(g.pad[1] as isize),
            rows: (rows - 1) * g.stride + reach,
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
/// All slices hold what the geometry says, and the taps lie inside the kernel.
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
