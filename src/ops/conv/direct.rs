//! Direct convolution: a product of small matrices whose sums stay in registers.
//!
//! A task copies the input rows that it needs into blocks of up to 16 channels, with the padding made explicit; the
//! kernel lies packed in panels of one or two vectors of output channels. A tile then holds some pixels times one
//! panel in registers, and runs over channels and taps: per step one or two loads of the panel and one broadcast per
//! pixel. No matrix of patches is ever made.

mod forward;
mod input;
mod pack;
mod rows;
mod tile;
mod weight;

pub(crate) use forward::forward;
pub(crate) use input::input_gradient;
pub(crate) use pack::{pack, pack_backward};
pub(crate) use weight::weight_gradient;

use crate::ops::geometry::Geometry;

/// How the channels that are summed over are cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    channels: usize,
    count: usize,
    /// Channels per block; the last one may have fewer, and zeros in their place.
    size: usize,
    /// Numbers that a packed pixel of a block takes: a constant 16 but for very few channels.
    pitch: usize,
}

impl Blocks {
    fn new(channels: usize) -> Self {
        if channels <= 8 {
            return Self { channels, count: 1, size: channels, pitch: channels };
        }
        let count = channels.div_ceil(16);
        Self { channels, count, size: channels.div_ceil(count), pitch: 16 }
    }

    /// Channels of block `b` that are not padding.
    fn valid(&self, b: usize) -> usize {
        self.size.min(self.channels.saturating_sub(b * self.size))
    }
}

/// How the channels of the result are cut into panels: two vectors each, the last one perhaps one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Panels {
    channels: usize,
    lanes: usize,
}

impl Panels {
    fn count(&self) -> usize {
        self.channels.div_ceil(2 * self.lanes)
    }

    /// First channel of panel `p`; also the width of all panels before it.
    fn first(&self, p: usize) -> usize {
        p * 2 * self.lanes
    }

    /// Vectors in panel `p`.
    fn vectors(&self, p: usize) -> usize {
        if self.channels - self.first(p) > self.lanes { 2 } else { 1 }
    }

    /// Width of panel `p`, padding included.
    fn width(&self, p: usize) -> usize {
        self.vectors(p) * self.lanes
    }

    /// Channels of panel `p` that are not padding.
    fn valid(&self, p: usize) -> usize {
        (self.channels - self.first(p)).min(2 * self.lanes)
    }

    /// Width of all panels.
    fn total(&self) -> usize {
        self.channels.next_multiple_of(self.lanes)
    }
}

/// Blocks of the input and panels of the output of one group.
fn forward_layout(g: &Geometry, lanes: usize) -> (Blocks, Panels) {
    (Blocks::new(g.c / g.groups), Panels { channels: g.k / g.groups, lanes })
}

/// Blocks of the output and panels of the input of one group: the layout of the input's gradient.
fn backward_layout(g: &Geometry, lanes: usize) -> (Blocks, Panels) {
    (Blocks::new(g.k / g.groups), Panels { channels: g.c / g.groups, lanes })
}

/// A 1x1 convolution that reads each pixel once is a product over all pixels, whatever the rows: long rows of them fill
/// the tiles best.
fn flatten(g: &Geometry) -> Geometry {
    if g.kh != 1 || g.kw != 1 || g.stride != 1 || g.pad != [0; 4] {
        return *g;
    }
    let rows = g.n * g.h;
    let fits = |&f: &usize| rows.is_multiple_of(f) && (f == 1 || g.w * f <= 256);
    // The share of a tile of 14 pixels that is used on average, in 1/1000, and among equals the shorter row.
    let fill = |f: &usize| (g.w * f * 1000 / ((g.w * f).div_ceil(14) * 14), usize::MAX - f);
    let f = (1..=rows.min(256)).filter(fits).max_by_key(fill).unwrap_or(1);
    let (h, w) = (rows / f, g.w * f);
    Geometry { n: 1, h, w, oh: h, ow: w, ..*g }
}

/// Rows per task: as many as keep the packed rows within `budget` numbers, but enough tasks for many threads where a
/// task still has some work. `work` is the number of products per row.
fn rows_per_task(images: usize, rows: usize, most: usize, work: usize) -> usize {
    const TASKS: usize = 32;
    const LEAST_WORK: usize = 1 << 20;
    let parallel = (images * rows).div_ceil(TASKS).max(LEAST_WORK.div_ceil(work.max(1)));
    let size = most.min(parallel).clamp(1, rows.max(1));
    rows.div_ceil(rows.div_ceil(size).max(1)).max(1)
}

/// One piece of work on an output: some rows of one image.
struct Piece<'a, T> {
    image: usize,
    /// The first row, in units of `rows`.
    from: usize,
    data: &'a mut [T],
}

/// Cuts images of `row` numbers per row into pieces of `rows` rows.
fn pieces<T>(data: &mut [T], image: usize, row: usize, rows: usize) -> Vec<Piece<'_, T>> {
    let cut = |(n, image): (usize, _)| {
        <[T]>::chunks_mut(image, rows * row).enumerate().map(move |(i, data)| Piece { image: n, from: i * rows, data })
    };
    data.chunks_mut(image.max(1)).enumerate().flat_map(cut).collect()
}
