//! Winograd's convolution of 3x3 kernels (Lavin and Gray 2015, arXiv 1509.09308).
//!
//! A square of m x m outputs reads P x P inputs, P = m + 2. Read the inputs and the kernel as polynomials: their
//! product is known from its values at P points, and at a point it is one multiplication. So an output square costs
//! P x P multiplications per pair of channels instead of 9 m m: 36 for 144 with m = 4, 16 for 36 with m = 2. What
//! remains is a matrix product over the channels for each of the P x P points, by the tiles of `direct`.
//!
//! Larger squares save more and lose digits.

mod pack;
mod product;
mod transform;
mod weight;

pub(crate) use pack::pack;
pub(crate) use product::{product, scratch};
pub(crate) use weight::weight_gradient;

use super::layout::{Blocks, Panels};
use crate::ops::geometry::Geometry;

/// Whether the algorithm can do this geometry. So few channels that a block has no room for whole vectors are left to
/// others.
pub(crate) fn fits(g: &Geometry) -> bool {
    let roomy = |channels| Blocks::new(channels).pitch == 16;
    roomy(g.c) && roomy(g.k) && (g.kh, g.kw, g.stride, g.dilation, g.groups, g.pad) == (3, 3, 1, 1, 1, [1; 4])
}

/// Points per axis, P, where the algorithm pays. It must not depend on the number of images: an image's result would
/// depend on its company.
pub(crate) fn points(g: &Geometry) -> Option<usize> {
    if !fits(g) || g.c < 16 || g.k < 16 {
        return None;
    }
    match g.h.min(g.w) {
        12.. => Some(6),
        4.. => Some(4),
        _ => None,
    }
}

/// The squares of outputs of all images, row by row.
#[derive(Clone, Copy)]
struct Squares {
    h: usize,
    w: usize,
    /// Outputs per side of a square.
    side: usize,
    /// Squares per image.
    rows: usize,
    columns: usize,
}

impl Squares {
    fn new<const P: usize>(g: &Geometry) -> Self {
        let side = P - 2;
        Self { h: g.h, w: g.w, side, rows: g.h.div_ceil(side), columns: g.w.div_ceil(side) }
    }

    /// Image and first row and column of square `i`.
    fn at(&self, i: usize) -> (usize, usize, usize) {
        let (row, column) = (i / self.columns, i % self.columns);
        (row / self.rows, row % self.rows * self.side, column * self.side)
    }

    /// Rows of pixels, of all images, above the row `row` of squares.
    fn pixel_row(&self, row: usize) -> usize {
        row / self.rows * self.h + (row % self.rows * self.side).min(self.h)
    }
}

/// One vector of channels and where it goes: at `to + square * step` of a point's numbers.
#[derive(Clone, Copy)]
struct Slot {
    channel: usize,
    /// Channels that are not padding.
    valid: usize,
    to: usize,
    step: usize,
}

/// The vectors of `blocks`: a point's numbers of `squares` squares lie as [block][square][pitch].
fn block_slots(blocks: &Blocks, squares: usize, lanes: usize) -> Vec<Slot> {
    let vectors = |b: usize| {
        (0..blocks.pitch).step_by(lanes).map(move |v| Slot {
            channel: b * blocks.size + v,
            valid: blocks.valid(b).saturating_sub(v).min(lanes),
            to: b * squares * blocks.pitch + v,
            step: blocks.pitch,
        })
    };
    (0..blocks.count).flat_map(vectors).collect()
}

/// The vectors of `panels`: a point's numbers of `squares` squares lie as [panel][square][width].
fn panel_slots(panels: &Panels, squares: usize) -> Vec<Slot> {
    let vectors = |p: usize| {
        (0..panels.vectors(p)).map(move |v| Slot {
            channel: panels.first(p) + v * panels.lanes,
            valid: (panels.valid(p) - v * panels.lanes).min(panels.lanes),
            to: panels.first(p) * squares + v * panels.lanes,
            step: panels.width(p),
        })
    };
    (0..panels.count()).flat_map(vectors).collect()
}
