//! The forward pass of a direct convolution.

use super::flatten::{compact, flatten, forward_layout};
use super::tile::{Tile, Walk, next_size, product};
use crate::ops::activation::Activation;
use crate::ops::epilogue::Epilogue;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::{Blocks, Panels, pieces, rows_per_task};
use crate::ops::kernels::conv::window::{Image, PackRows, Window};
use crate::ops::simd::{Job, Lanes, Level, Simd, with_scratch};
use rayon::prelude::*;

/// Elements of packed input that a task handles at once: they share the second-level cache with the kernel.
pub(super) const PACKED: usize = 48 * 1024;

/// y = act(conv(x, w) + bias + residual), `w` as `pack` made it.
pub(crate) fn forward<T: Lanes>(level: Level, x: &[T], w: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
    let (g, steps) = &flatten(compact(g), T::tile(level));
    let (blocks, panels) = forward_layout(g, T::lanes(level));
    let columns = (g.ow.max(1) - 1) * g.stride + (g.kw - 1) * g.dilation + 1;
    let row_len = columns * blocks.count * blocks.pitch;
    let reach = (g.kh - 1) * g.dilation + 1;
    let most = (PACKED / row_len.max(1)).saturating_sub(reach) / g.stride + 1;
    let work = g.ow * g.k * g.kh * g.kw * (g.c / g.groups);
    let rows = rows_per_task(g.n, g.oh, most, work);
    let out_row = g.ow * g.k;
    pieces(y, g.oh * out_row, out_row, rows).into_par_iter().with_max_len(1).for_each(|piece| {
        let rows = piece.data.len() / out_row;
        let window = Window {
            top: (piece.from * g.stride) as isize - g.pad[0] as isize,
            left: -(g.pad[1] as isize),
            rows: (rows - 1) * g.stride + reach,
            columns,
        };
        let image = Image {
            data: &x[piece.image * steps.image..],
            h: g.h,
            w: g.w,
            row: steps.row,
            pitch: steps.pixel,
            first: 0,
        };
        let at = (piece.image * g.oh + piece.from) * out_row;
        let residual = e.residual.map(|r| &r[at..][..piece.data.len()]);
        with_scratch(window.len(&blocks), |packed| {
            for group in 0..g.groups {
                let image = Image { first: group * blocks.channels, ..image };
                T::run(level, PackRows { image, window, blocks, out: packed });
                let first = group * panels.channels;
                T::run(
                    level,
                    Grid {
                        walk: walk(&blocks, &window, [g.kh, g.kw], [g.dilation; 2], g.stride),
                        row_step: g.stride * window.row_len(&blocks),
                        rows,
                        columns: g.ow,
                        panels,
                        input: packed,
                        kernel: &w[group * panels.total() * blocks.count * blocks.size * g.kh * g.kw..],
                        out: &mut piece.data[first..],
                        out_row,
                        out_pitch: g.k,
                        bias: e.bias.map(|b| &b[first..][..panels.channels]),
                        residual: residual.map(|r| &r[first..]),
                        add: false,
                        act: e.act,
                    },
                );
            }
        });
    });
}

/// The walk over `taps` (rows, columns), `steps` packed pixels apart, for output pixels `stride` packed pixels apart.
pub(super) fn walk(blocks: &Blocks, window: &Window, taps: [usize; 2], steps: [usize; 2], stride: usize) -> Walk {
    let rows = taps[0];
    let row_step = steps[0] * window.row_len(blocks);
    // Neighbouring taps without a gap between them are one run.
    let (runs, len) =
        if blocks.size == blocks.pitch && steps[1] == 1 { (1, taps[1] * blocks.size) } else { (taps[1], blocks.size) };
    let run_step = steps[1] * blocks.pitch;
    let (block_step, pitch) = (window.block_len(blocks), stride * blocks.pitch);
    Walk { blocks: blocks.count, block_step, rows, row_step, runs, run_step, len, pitch }
}

/// A grid of output pixels, all of whose input is packed.
pub(in crate::ops::kernels::conv) struct Grid<'a, T> {
    pub walk: Walk,
    /// From one output row to the next, in the packed input.
    pub row_step: usize,
    pub rows: usize,
    pub columns: usize,
    pub panels: Panels,
    pub input: &'a [T],
    pub kernel: &'a [T],
    pub out: &'a mut [T],
    pub out_row: usize,
    pub out_pitch: usize,
    pub bias: Option<&'a [T]>,
    pub residual: Option<&'a [T]>,
    pub add: bool,
    pub act: Activation,
}

impl<T: Lanes> Job<T> for Grid<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let depth = self.walk.depth();
        let walk = self.walk.flat();
        // Rows that are contiguous in input and output are merged: 1x1 kernels, mostly.
        let joined = self.row_step == self.columns * walk.pitch && self.out_row == self.columns * self.out_pitch;
        let (rows, columns) = if joined { (1, self.rows * self.columns) } else { (self.rows, self.columns) };
        for p in 0..self.panels.count() {
            let first = self.panels.first(p);
            let (vectors, channels) = (self.panels.vectors(p), self.panels.valid(p));
            let kernel = &self.kernel[first * depth..][..vectors * S::LANES * depth];
            let bias = self.bias.map(|bias| &bias[first..]);
            for row in 0..rows {
                let mut x = 0;
                while x < columns {
                    let pixels = next_size::<S>(columns - x, vectors);
                    let at = row * self.out_row + x * self.out_pitch + first;
                    let t = Tile {
                        walk: &walk,
                        input: &self.input[row * self.row_step + x * walk.pitch..],
                        panel: kernel,
                        out: &mut self.out[at..],
                        out_pitch: self.out_pitch,
                        channels,
                        bias,
                        residual: self.residual.map(|residual| &residual[at..]),
                        add: self.add,
                        act: self.act,
                    };
                    product(s, pixels, vectors, t);
                    x += pixels;
                }
            }
        }
    }
}
