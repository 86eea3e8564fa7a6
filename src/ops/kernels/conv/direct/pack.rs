//! Packs a kernel, for the forward pass and for the gradient of the input.

use super::flatten::{backward_layout, forward_layout};
use crate::ops::buffer::Buffer;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::{Blocks, Panels, cut};
use crate::ops::kernels::conv::residues::Classes;
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// From OIHW to [group][panel][block][kh][kw][input channel of the block][output channel of the panel].
pub(crate) fn pack<T: Lanes>(level: Level, w: &[T], g: &Geometry) -> Buffer<T> {
    let (blocks, panels) = forward_layout(g, T::lanes(level));
    let (cg, taps) = (g.c / g.groups, g.kh * g.kw);
    let depth = blocks.count * taps * blocks.size;
    let mut out = Buffer::arbitrary(g.groups * panels.total() * depth);
    let lens = (0..g.groups).flat_map(|_| (0..panels.count()).map(|p| panels.width(p) * depth));
    let list = cut(&mut out, lens);
    list.into_par_iter().enumerate().for_each(|(i, out)| {
        let (group, p) = (i / panels.count(), i % panels.count());
        let (width, valid, first) = (panels.width(p), panels.valid(p), group * panels.channels + panels.first(p));
        if valid < width || blocks.count * blocks.size > cg {
            out.fill(T::ZERO);
        }
        for (b, out) in out.chunks_exact_mut(taps * blocks.size * width).enumerate() {
            let w = &w[(first * cg + b * blocks.size) * taps..];
            let order = PackedOrder { taps, size: blocks.size, width };
            T::run(level, PackBlock { w, pitch: cg * taps, run: blocks.valid(b) * taps, outputs: valid, order, out });
        }
    });
    out
}

/// The position of element (input channel, tap) of one output channel of OIHW in [tap][input channel][width].
#[derive(Clone, Copy)]
pub(super) struct PackedOrder {
    pub taps: usize,
    pub size: usize,
    pub width: usize,
}

impl PackedOrder {
    #[inline(always)]
    pub fn of(&self, i: usize) -> usize {
        (i % self.taps * self.size + i / self.taps) * self.width
    }
}

/// From OIHW to the order of one panel and block.
struct PackBlock<'a, T> {
    /// `run` elements per output channel, one of which begins every `pitch`.
    w: &'a [T],
    pitch: usize,
    run: usize,
    outputs: usize,
    order: PackedOrder,
    out: &'a mut [T],
}

impl<T: Lanes> Job<T> for PackBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { w, pitch, run, outputs, order, out } = self;
        // Blocks of LANES output channels and LANES elements of each; the last ones may overlap those before.
        let in_squares = if run < S::LANES { 0 } else { outputs / S::LANES * S::LANES };
        assert!(in_squares == 0 || (in_squares - 1) * pitch + run <= w.len() && in_squares <= order.width);
        assert!(run <= order.size * order.taps && order.taps * order.size * order.width <= out.len());
        for j in (0..in_squares).step_by(S::LANES) {
            for i in (0..run).step_by(S::LANES) {
                let i = i.min(run - S::LANES);
                let mut rows = [s.zero(); 16];
                for (k, row) in rows.iter_mut().enumerate().take(S::LANES) {
                    // SAFETY: output channel j + k is below `in_squares`, and LANES elements from i on lie within its
                    // run.
                    *row = unsafe { s.load(w.as_ptr().add((j + k) * pitch + i)) };
                }
                s.transpose(&mut rows);
                for (k, row) in rows.iter().enumerate().take(S::LANES) {
                    // SAFETY: element i + k lies within the run, whose place has room for `width` elements.
                    unsafe { s.store(out.as_mut_ptr().add(order.of(i + k) + j), *row) };
                }
            }
        }
        for j in in_squares..outputs {
            for (i, &v) in w[j * pitch..][..run].iter().enumerate() {
                out[order.of(i) + j] = v;
            }
        }
    }
}

/// Elements of one group's kernel in backward order, up to the class `(row, column)` of all.
pub(super) fn class_offset(blocks: &Blocks, panels: &Panels, axes: [Classes; 2], row: usize, column: usize) -> usize {
    let before = (0..row).map(|r| axes[0].len(r) * axes[1].taps).sum::<usize>()
        + axes[0].len(row) * (0..column).map(|c| axes[1].len(c)).sum::<usize>();
    before * blocks.count * blocks.size * panels.total()
}

/// From OIHW to [group][class][panel][block][class's kh][class's kw][output channel][input channel].
pub(crate) fn pack_backward<T: Lanes>(level: Level, w: &[T], g: &Geometry) -> Buffer<T> {
    if g.kh * g.kw == 1 {
        return pack_backward_pixels(level, w, g);
    }
    let forward = &pack(level, w, g)[..];
    let lanes = T::lanes(level);
    let (from_blocks, from_panels) = forward_layout(g, lanes);
    let (blocks, panels) = backward_layout(g, lanes);
    let axes = [Classes::new(g.kh, g.stride, g.dilation), Classes::new(g.kw, g.stride, g.dilation)];
    let from_depth = from_blocks.count * g.kh * g.kw * from_blocks.size;
    let classes: Vec<(usize, usize)> =
        (0..axes[0].count()).flat_map(|r| (0..axes[1].count()).map(move |c| (r, c))).collect();
    // Whole vectors of channels on both sides.
    let even = blocks.channels.is_multiple_of(16) && panels.channels.is_multiple_of(16);
    let depth = |(r, c): (usize, usize)| blocks.count * axes[0].len(r) * axes[1].len(c) * blocks.size;
    let jobs: Vec<(usize, (usize, usize), usize)> = (0..g.groups)
        .flat_map(|group| classes.iter().map(move |&class| (group, class)))
        .flat_map(|(group, class)| (0..panels.count()).map(move |p| (group, class, p)))
        .collect();
    let mut out = Buffer::arbitrary(g.groups * blocks.count * blocks.size * g.kh * g.kw * panels.total());
    let list = cut(&mut out, jobs.iter().map(|&(_, class, p)| panels.width(p) * depth(class)));
    list.into_par_iter().zip(jobs).for_each(|(out, (group, (row, column), p))| {
        let (width, valid) = (panels.width(p), panels.valid(p));
        if valid < width || blocks.count * blocks.size > blocks.channels {
            out.fill(T::ZERO);
        }
        let forward = &forward[group * from_panels.total() * from_depth..];
        let mut steps = out.chunks_exact_mut(blocks.size * width);
        for b in 0..blocks.count {
            for (i, j) in (0..axes[0].len(row)).flat_map(|i| (0..axes[1].len(column)).map(move |j| (i, j))) {
                let t = axes[0].tap(row, i) * g.kw + axes[1].tap(column, j);
                let Some(out) = steps.next() else { return };
                // The position of channel c of this panel and output channel k of this block.
                let at = |c: usize, k: usize| {
                    let (c, k) = (panels.first(p) + c, b * blocks.size + k);
                    let q = k / (2 * lanes);
                    let row = (c / from_blocks.size * g.kh * g.kw + t) * from_blocks.size + c % from_blocks.size;
                    from_panels.first(q) * from_depth + row * from_panels.width(q) + k - from_panels.first(q)
                };
                if even {
                    for (c, k) in (0..valid).step_by(lanes).flat_map(|c| (0..16).step_by(lanes).map(move |k| (c, k))) {
                        let pitch = from_panels.width((b * blocks.size + k) / (2 * lanes));
                        let (from, to) = (&forward[at(c, k)..], &mut out[k * width + c..]);
                        T::run(level, TransposeSquare { from, pitch, to, to_pitch: width });
                    }
                    continue;
                }
                for (c, k) in (0..valid).flat_map(|c| (0..blocks.valid(b)).map(move |k| (c, k))) {
                    out[k * width + c] = forward[at(c, k)];
                }
            }
        }
    });
    out
}

/// The same for kernels of one pixel, whose input channels lie side by side already.
fn pack_backward_pixels<T: Lanes>(level: Level, w: &[T], g: &Geometry) -> Buffer<T> {
    let (blocks, panels) = backward_layout(g, T::lanes(level));
    let depth = blocks.count * blocks.size;
    let mut out = Buffer::arbitrary(g.groups * panels.total() * depth);
    let lens = (0..g.groups).flat_map(|_| (0..panels.count()).map(|p| panels.width(p) * depth));
    cut(&mut out, lens).into_par_iter().enumerate().for_each(|(i, out)| {
        let (group, p) = (i / panels.count(), i % panels.count());
        let (width, valid) = (panels.width(p), panels.valid(p));
        for (b, out) in out.chunks_exact_mut(blocks.size * width).enumerate() {
            let rows = blocks.valid(b);
            for (k, out) in out.chunks_exact_mut(width).enumerate() {
                if k >= rows {
                    out.fill(T::ZERO);
                    continue;
                }
                let row = group * blocks.channels + b * blocks.size + k;
                out[..valid].copy_from_slice(&w[row * panels.channels + panels.first(p)..][..valid]);
                out[valid..].fill(T::ZERO);
            }
        }
    });
    out
}

/// Transposes LANES rows of LANES elements.
struct TransposeSquare<'a, T> {
    from: &'a [T],
    pitch: usize,
    to: &'a mut [T],
    to_pitch: usize,
}

impl<T: Lanes> Job<T> for TransposeSquare<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { from, pitch, to, to_pitch } = self;
        assert!((S::LANES - 1) * pitch + S::LANES <= from.len() && (S::LANES - 1) * to_pitch + S::LANES <= to.len());
        let mut rows = [s.zero(); 16];
        for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: the last row's elements lie in `from` (asserted above).
            *row = unsafe { s.load(from.as_ptr().add(i * pitch)) };
        }
        s.transpose(&mut rows);
        for (i, row) in rows.iter().enumerate().take(S::LANES) {
            // SAFETY: the same of `to`.
            unsafe { s.store(to.as_mut_ptr().add(i * to_pitch), *row) };
        }
    }
}
