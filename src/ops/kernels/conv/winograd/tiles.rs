//! How a map is divided into tiles, and where the values of each are stored.

use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::{Blocks, Panels};

/// The tiles of outputs of all images, row by row.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub h: usize,
    pub w: usize,
    /// Outputs per side of a tile.
    pub side: usize,
    /// Tiles per image.
    pub rows: usize,
    pub columns: usize,
}

impl Tiles {
    pub fn new<const P: usize>(g: &Geometry) -> Self {
        let side = P - 2;
        Self { h: g.h, w: g.w, side, rows: g.h.div_ceil(side), columns: g.w.div_ceil(side) }
    }

    /// Image and first row and column of tile `i`.
    pub fn at(&self, i: usize) -> (usize, usize, usize) {
        let (row, column) = (i / self.columns, i % self.columns);
        (row / self.rows, row % self.rows * self.side, column * self.side)
    }

    /// Rows of pixels, of all images, above the row `row` of tiles.
    pub fn pixel_row(&self, row: usize) -> usize {
        row / self.rows * self.h + (row % self.rows * self.side).min(self.h)
    }
}

/// One vector of channels and its destination: at `to + tile * step` of a point's elements.
#[derive(Clone, Copy)]
pub(super) struct Destination {
    pub channel: usize,
    /// Channels that are not padding.
    pub valid: usize,
    pub to: usize,
    pub step: usize,
}

/// The vectors of `blocks`: a point's elements of `tiles` tiles lie as [block][tile][pitch].
pub(super) fn block_destinations(blocks: &Blocks, tiles: usize, lanes: usize) -> Vec<Destination> {
    let vectors = |b: usize| {
        (0..blocks.pitch).step_by(lanes).map(move |v| Destination {
            channel: b * blocks.size + v,
            valid: blocks.valid(b).saturating_sub(v).min(lanes),
            to: b * tiles * blocks.pitch + v,
            step: blocks.pitch,
        })
    };
    (0..blocks.count).flat_map(vectors).collect()
}

/// The vectors of `panels`: a point's elements of `tiles` tiles lie as [panel][tile][width].
pub(super) fn panel_destinations(panels: &Panels, tiles: usize) -> Vec<Destination> {
    let vectors = |p: usize| {
        (0..panels.vectors(p)).map(move |v| Destination {
            channel: panels.first(p) + v * panels.lanes,
            valid: (panels.valid(p) - v * panels.lanes).min(panels.lanes),
            to: panels.first(p) * tiles + v * panels.lanes,
            step: panels.width(p),
        })
    };
    (0..panels.count()).flat_map(vectors).collect()
}
