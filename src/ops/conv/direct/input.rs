//! The gradient of a convolution's input.
//!
//! With stride s the input pixels fall into s x s phases. The pixels of one phase meet the same taps, at output pixels
//! that follow each other: a small correlation per phase, without inserted zeros, whose results interleave.

use super::forward::{Grid, PACKED, walk};
use super::pack::{Classes, class_offset, gcd};
use super::rows::{Image, PackRows, Window};
use super::{backward_layout, flatten, pieces, rows_per_task};
use crate::ops::activation::Activation;
use crate::ops::geometry::Geometry;
use crate::ops::simd::{Lanes, Level, with_scratch};
use rayon::prelude::*;

/// The positions `phase`, `phase + stride`, ... of one input axis and the output positions they meet.
#[derive(Debug, Clone, Copy)]
struct Phase {
    /// Which class of taps, if any.
    class: Option<usize>,
    taps: usize,
    /// The output position that the first position meets at the first tap.
    first: isize,
    /// From tap to tap, in output positions.
    step: usize,
}

impl Phase {
    fn new(phase: usize, classes: Classes, stride: usize, dilation: usize, pad: usize) -> Self {
        let hits = |class: usize, tap: usize| {
            let v = phase as isize + pad as isize - (tap * dilation) as isize;
            (v.rem_euclid(stride as isize) == 0).then(|| (class, v.div_euclid(stride as isize)))
        };
        let found = (0..classes.count()).find_map(|class| hits(class, classes.tap(class, 0)));
        let step = dilation / gcd(stride, dilation);
        match found {
            Some((class, first)) => Self { class: Some(class), taps: classes.len(class), first, step },
            None => Self { class: None, taps: 0, first: 0, step },
        }
    }
    /// One past the last output position that the first position meets.
    fn end(&self) -> isize {
        self.first + ((self.taps.max(1) - 1) * self.step) as isize + 1
    }
}

/// The phases of one axis, and the output positions that position 0 of any of them meets.
fn phases(taps: usize, g: &Geometry, pad: usize) -> (Vec<Phase>, isize, isize) {
    let classes = Classes::new(taps, g.stride, g.dilation);
    let list: Vec<Phase> = (0..g.stride).map(|p| Phase::new(p, classes, g.stride, g.dilation, pad)).collect();
    let met = || list.iter().filter(|p| p.class.is_some());
    let from = met().map(|p| p.first).min().unwrap_or(0);
    let to = met().map(Phase::end).max().unwrap_or(1);
    (list, from, to)
}

/// dx (+)= the gradient; `w` as `pack_backward` made it.
pub(crate) fn input_gradient<T: Lanes>(level: Level, dy: &[T], w: &[T], g: &Geometry, dx: &mut [T], add: bool) {
    let g = &flatten(g);
    let (blocks, panels) = backward_layout(g, T::lanes(level));
    let axes = [Classes::new(g.kh, g.stride, g.dilation), Classes::new(g.kw, g.stride, g.dilation)];
    let (row_phases, top, bottom) = phases(g.kh, g, g.pad[0]);
    let (column_phases, left, right) = phases(g.kw, g, g.pad[1]);
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
            pitch: g.k,
            first: 0,
        };
        let untouched = row_phases.iter().chain(&column_phases).any(|p| p.class.is_none());
        if untouched && !add {
            piece.data.fill(T::ZERO);
        }
        with_scratch(window.len(&blocks), |packed| {
            for group in 0..g.groups {
                let image = Image { first: group * blocks.channels, ..image };
                T::run(level, PackRows { image, window, blocks, out: packed });
                for (py, rows) in row_phases.iter().enumerate().take(height) {
                    for (px, columns) in column_phases.iter().enumerate().take(g.w) {
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
