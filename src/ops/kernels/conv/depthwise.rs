//! Depthwise convolution: one kernel per channel, so vectors run over channels and no sum crosses them.
//!
//! Channels go in blocks of 16. A task copies the rows of one block that it needs, with explicit padding, and a tile
//! holds the sums of some neighbouring pixels in registers.

mod block;
mod gradient;
mod tile;

pub(crate) use gradient::weight_gradient;

use super::layout::{pieces, rows_per_task};
use super::residues::{Classes, residues};
use super::window::{PackRows, Window};
use crate::ops::activation::Activation;
use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Epilogue;
use crate::ops::geometry::Geometry;
use crate::ops::simd::{Lanes, Level, with_scratch};
use block::{BLOCK, PACKED, block, image};
use rayon::prelude::*;
use tile::{Plane, Taps};

/// Depthwise case: one kernel per channel.
pub(crate) fn fits(g: &Geometry) -> bool {
    g.groups == g.c && g.k == g.c
}

/// From (C, 1, KH, KW) to [block][kh][kw][channel], zeros after the last channel.
pub(crate) fn pack<T: Lanes>(w: &[T], g: &Geometry) -> Buffer<T> {
    let taps = g.kh * g.kw;
    let mut out = Buffer::zeros(g.c.div_ceil(BLOCK) * taps * BLOCK);
    for (c, w) in w.chunks_exact(taps).enumerate() {
        let block = &mut out[c / BLOCK * taps * BLOCK..][..taps * BLOCK];
        for (t, &v) in w.iter().enumerate() {
            block[t * BLOCK + c % BLOCK] = v;
        }
    }
    out
}

/// y = act(conv(x, w) + bias + residual)
pub(crate) fn forward<T: Lanes>(level: Level, x: &[T], w: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
    let columns = (g.ow - 1) * g.stride + (g.kw - 1) * g.dilation + 1;
    let reach = (g.kh - 1) * g.dilation + 1;
    let most = (PACKED / (columns * BLOCK)).saturating_sub(reach) / g.stride + 1;
    let rows = rows_per_task(g.n, g.oh, most, g.ow * g.c * g.kh * g.kw);
    let out_row = g.ow * g.k;
    pieces(y, g.oh * out_row, out_row, rows).into_par_iter().with_max_len(1).for_each(|piece| {
        let rows = piece.data.len() / out_row;
        let window = Window {
            top: (piece.from * g.stride) as isize - g.pad[0] as isize,
            left: -(g.pad[1] as isize),
            rows: (rows - 1) * g.stride + reach,
            columns,
        };
        let row_len = columns * BLOCK;
        let residual = e.residual.map(|r| &r[(piece.image * g.oh + piece.from) * out_row..][..piece.data.len()]);
        with_scratch(window.rows * row_len, |packed| {
            for first in (0..g.c).step_by(BLOCK) {
                let image = image(x, g.h, g.w, g.c, piece.image, first);
                T::run(level, PackRows { image, window, blocks: block(g, first), out: packed });
                let taps = Taps {
                    rows: g.kh,
                    columns: g.kw,
                    row_step: g.dilation * row_len,
                    column_step: g.dilation * BLOCK,
                    start: 0,
                    kernel_row: (g.kw * BLOCK) as isize,
                    kernel_column: BLOCK as isize,
                };
                T::run(
                    level,
                    Plane {
                        taps,
                        input: packed,
                        input_row: g.stride * row_len,
                        input_pixel: g.stride * BLOCK,
                        kernel: &w[first * g.kh * g.kw..][..g.kh * g.kw * BLOCK],
                        rows,
                        columns: g.ow,
                        out: &mut piece.data[first..],
                        out_row,
                        out_pixel: g.k,
                        channels: block(g, first).channels,
                        bias: e.bias.map(|b| &b[first..]),
                        residual: residual.map(|r| &r[first..]),
                        add: false,
                        act: e.act,
                    },
                );
            }
        });
    });
}

/// dx (+)= the gradient, residue by residue as in `direct::input_gradient`; the forward order of `w` serves as well.
pub(crate) fn input_gradient<T: Lanes>(level: Level, dy: &[T], w: &[T], g: &Geometry, dx: &mut [T], add: bool) {
    let axes = [Classes::new(g.kh, g.stride, g.dilation), Classes::new(g.kw, g.stride, g.dilation)];
    let (row_residues, top, bottom) = residues(g.kh, g, g.pad[0]);
    let (column_residues, left, right) = residues(g.kw, g, g.pad[1]);
    let (steps_h, steps_w) = (g.h.div_ceil(g.stride), g.w.div_ceil(g.stride));
    let columns = steps_w - 1 + (right - left) as usize;
    let extra = (bottom - top) as usize - 1;
    let most = (PACKED / (columns * BLOCK)).saturating_sub(extra).max(1);
    let rows = rows_per_task(g.n, steps_h, most, g.ow * g.c * g.kh * g.kw);
    let dx_row = g.w * g.c;
    pieces(dx, g.h * dx_row, dx_row, rows * g.stride).into_par_iter().with_max_len(1).for_each(|piece| {
        let height = piece.data.len() / dx_row;
        let window = Window {
            top: (piece.from / g.stride) as isize + top,
            left,
            rows: height.div_ceil(g.stride) + extra,
            columns,
        };
        let row_len = columns * BLOCK;
        if !add && row_residues.iter().chain(&column_residues).any(|p| p.class.is_none()) {
            piece.data.fill(T::ZERO);
        }
        with_scratch(window.rows * row_len, |packed| {
            for first in (0..g.c).step_by(BLOCK) {
                let image = image(dy, g.oh, g.ow, g.k, piece.image, first);
                T::run(level, PackRows { image, window, blocks: block(g, first), out: packed });
                for (py, rows) in row_residues.iter().enumerate().take(height) {
                    for (px, columns) in column_residues.iter().enumerate().take(g.w) {
                        let (Some(row_class), Some(column_class)) = (rows.class, columns.class) else { continue };
                        let tap = axes[0].tap(row_class, 0) * g.kw + axes[1].tap(column_class, 0);
                        let taps = Taps {
                            rows: rows.taps,
                            columns: columns.taps,
                            row_step: rows.step * row_len,
                            column_step: columns.step * BLOCK,
                            start: tap * BLOCK,
                            kernel_row: -((axes[0].step * g.kw * BLOCK) as isize),
                            kernel_column: -((axes[1].step * BLOCK) as isize),
                        };
                        let start = (rows.first - top) as usize * row_len + (columns.first - left) as usize * BLOCK;
                        T::run(
                            level,
                            Plane {
                                taps,
                                input: &packed[start..],
                                input_row: row_len,
                                input_pixel: BLOCK,
                                kernel: &w[first * g.kh * g.kw..][..g.kh * g.kw * BLOCK],
                                rows: (height - py).div_ceil(g.stride),
                                columns: (g.w - px).div_ceil(g.stride),
                                out: &mut piece.data[py * dx_row + px * g.c + first..],
                                out_row: g.stride * dx_row,
                                out_pixel: g.stride * g.c,
                                channels: block(g, first).channels,
                                bias: None,
                                residual: None,
                                add,
                                act: Activation::Identity,
                            },
                        );
                    }
                }
            }
        });
    });
}
