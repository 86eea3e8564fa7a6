//! The gradient of a convolution's input.
//!
//! With stride s the input pixels fall into s x s residue classes. The pixels of one class are read by the same taps,
//! at output pixels that follow each other: a small correlation per class, without inserted zeros, whose results
//! interleave.

use super::flatten::{Steps, backward_layout, flatten};
use super::forward::{Grid, PACKED, walk};
use super::pack::class_offset;
use crate::ops::activation::Activation;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::{pieces, rows_per_task};
use crate::ops::kernels::conv::residues::{Classes, residues};
use crate::ops::kernels::conv::window::{Image, PackRows, Window};
use crate::ops::simd::{Lanes, Level, with_scratch};
use rayon::prelude::*;

/// dx (+)= the gradient; `w` as `pack_backward` made it.
pub(crate) fn input_gradient<T: Lanes>(level: Level, dy: &[T], w: &[T], g: &Geometry, dx: &mut [T], add: bool) {
    let (g, _) = &flatten((*g, Steps::of(g)), T::tile(level));
    let (blocks, panels) = backward_layout(g, T::lanes(level));
    let axes = [Classes::new(g.kh, g.stride, g.dilation), Classes::new(g.kw, g.stride, g.dilation)];
    let (row_residues, top, bottom) = residues(g.kh, g, g.pad[0]);
    let (column_residues, left, right) = residues(g.kw, g, g.pad[1]);
    // In units of `stride` input rows and columns.
    let (steps_h, steps_w) = (g.h.div_ceil(g.stride), g.w.div_ceil(g.stride));
    let columns = steps_w.max(1) - 1 + (right - left) as usize;
    let extra = (bottom - top) as usize - 1;
    let most = (PACKED / (columns * blocks.count * blocks.pitch).max(1)).saturating_sub(extra).max(1);
    let work = g.ow * g.k * g.kh * g.kw * (g.c / g.groups);
    let rows = rows_per_task(g.n, steps_h, most, work);
    let (row_len, pixel) = (g.w * g.c, g.c);
    let kernel_len = blocks.count * blocks.size * g.kh * g.kw * panels.total();
    pieces(dx, g.h * row_len, row_len, rows * g.stride).into_par_iter().with_max_len(1).for_each(|piece| {
        let from = piece.from / g.stride;
        let height = piece.data.len() / row_len;
        let window = Window { top: from as isize + top, left, rows: height.div_ceil(g.stride) + extra, columns };
        let image = Image {
            data: &dy[piece.image * g.oh * g.ow * g.k..][..g.oh * g.ow * g.k],
            h: g.oh,
            w: g.ow,
            row: g.ow * g.k,
            pitch: g.k,
            first: 0,
        };
        let untouched = row_residues.iter().chain(&column_residues).any(|p| p.class.is_none());
        if untouched && !add {
            piece.data.fill(T::ZERO);
        }
        with_scratch(window.len(&blocks), |packed| {
            for group in 0..g.groups {
                let image = Image { first: group * blocks.channels, ..image };
                T::run(level, PackRows { image, window, blocks, out: packed });
                for (py, rows) in row_residues.iter().enumerate().take(height) {
                    for (px, columns) in column_residues.iter().enumerate().take(g.w) {
                        let (Some(row_class), Some(column_class)) = (rows.class, columns.class) else { continue };
                        let at = class_offset(&blocks, &panels, axes, row_class, column_class);
                        let start = (rows.first - top) as usize * window.row_len(&blocks)
                            + (columns.first - left) as usize * blocks.pitch;
                        let taps = [rows.taps, columns.taps];
                        T::run(
                            level,
                            Grid {
                                walk: walk(&blocks, &window, taps, [rows.step, columns.step], 1),
                                row_step: window.row_len(&blocks),
                                rows: (height - py).div_ceil(g.stride),
                                columns: (g.w - px).div_ceil(g.stride),
                                panels,
                                input: &packed[start..],
                                kernel: &w[group * kernel_len + at..],
                                out: &mut piece.data[py * row_len + px * pixel + group * panels.channels..],
                                out_row: g.stride * row_len,
                                out_pitch: g.stride * pixel,
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
