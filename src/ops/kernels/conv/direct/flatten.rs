//! The layouts of a direct convolution, and the shapes that 1x1 convolutions are computed in.

use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::{Blocks, Panels};

/// Blocks of the input and panels of the output of one group.
pub(crate) fn forward_layout(g: &Geometry, lanes: usize) -> (Blocks, Panels) {
    (Blocks::new(g.c / g.groups), Panels { channels: g.k / g.groups, lanes })
}

/// Blocks of the output and panels of the input of one group: the layout of the input's gradient.
pub(crate) fn backward_layout(g: &Geometry, lanes: usize) -> (Blocks, Panels) {
    (Blocks::new(g.k / g.groups), Panels { channels: g.c / g.groups, lanes })
}

/// How many elements of the input lie from an image, a row or a pixel to the next one that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    pub image: usize,
    pub row: usize,
    pub pixel: usize,
}

impl Steps {
    pub fn of(g: &Geometry) -> Self {
        Self { image: g.h * g.w * g.c, row: g.w * g.c, pixel: g.c }
    }
}

/// Whether each result is a product with the channels of one pixel.
fn one_pixel(g: &Geometry) -> bool {
    (g.kh, g.kw, g.pad) == (1, 1, [0; 4])
}

/// Leaves out the pixels that a 1x1 convolution with a stride steps over.
pub(super) fn compact(g: &Geometry) -> (Geometry, Steps) {
    let steps = Steps::of(g);
    if !one_pixel(g) {
        return (*g, steps);
    }
    let steps = Steps { row: g.stride * steps.row, pixel: g.stride * steps.pixel, ..steps };
    (Geometry { h: g.oh, w: g.ow, stride: 1, ..*g }, steps)
}

/// A 1x1 convolution that reads all pixels is a product over them, for any rows and images. How long its rows are
/// decides which whole rows a task can take, and how well those fill tiles of `tile` pixels.
pub(super) fn flatten((g, steps): (Geometry, Steps), tile: usize) -> (Geometry, Steps) {
    if !one_pixel(&g) || g.stride != 1 || steps != Steps::of(&g) {
        return (g, steps);
    }
    /// Elements of a row, more than a task of several rows takes (`PACKED`): with 2048 channels at 7x7, 28 pixels lie
    /// side by side, and fill tiles of six to 93 %, where 14 would fill them to 78.
    const ROW: usize = 64 * 1024;
    let rows = g.n * g.h;
    let fits = |&f: &usize| rows.is_multiple_of(f) && (f == 1 || g.w * f <= 256 && g.w * f * g.c.max(g.k) <= ROW);
    // The share of a tile that is used on average, in 1/1000; among equals and good ones the shorter row, for more
    // tasks.
    let fill = |f: &usize| ((g.w * f * 1000 / ((g.w * f).div_ceil(tile) * tile)).min(920), usize::MAX - f);
    let f = (1..=rows.min(256)).filter(fits).max_by_key(fill).unwrap_or(1);
    let (h, w) = (rows / f, g.w * f);
    let g = Geometry { n: 1, h, w, oh: h, ow: w, ..g };
    (g, Steps::of(&g))
}
