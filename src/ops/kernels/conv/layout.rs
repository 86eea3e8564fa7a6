//! How channels are divided into blocks and panels, and outputs into tasks.

/// How the channels that are summed over are divided into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub channels: usize,
    pub count: usize,
    /// Channels per block; the last one may have fewer, and zeros in their place.
    pub size: usize,
    /// Elements that a packed pixel of a block takes: a constant 16 except for very few channels.
    pub pitch: usize,
}

impl Blocks {
    pub fn new(channels: usize) -> Self {
        if channels <= 8 {
            return Self { channels, count: 1, size: channels, pitch: channels };
        }
        let count = channels.div_ceil(16);
        Self { channels, count, size: channels.div_ceil(count), pitch: 16 }
    }

    /// Channels of block `b` that are not padding.
    pub fn valid(&self, b: usize) -> usize {
        self.size.min(self.channels.saturating_sub(b * self.size))
    }
}

/// How the channels of the result are divided into panels of two vectors each, the last one perhaps of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panels {
    pub channels: usize,
    pub lanes: usize,
}

impl Panels {
    pub fn count(&self) -> usize {
        self.channels.div_ceil(2 * self.lanes)
    }

    /// First channel of panel `p`; also the width of all panels before it.
    pub fn first(&self, p: usize) -> usize {
        p * 2 * self.lanes
    }

    /// Vectors in panel `p`.
    pub fn vectors(&self, p: usize) -> usize {
        if self.channels - self.first(p) > self.lanes { 2 } else { 1 }
    }

    /// Width of panel `p`, padding included.
    pub fn width(&self, p: usize) -> usize {
        self.vectors(p) * self.lanes
    }

    /// Channels of panel `p` that are not padding.
    pub fn valid(&self, p: usize) -> usize {
        (self.channels - self.first(p)).min(2 * self.lanes)
    }

    /// Width of all panels.
    pub fn total(&self) -> usize {
        self.channels.next_multiple_of(self.lanes)
    }
}

/// Rows per task: the most whose packed rows fit in `budget` elements, but enough tasks for many threads where a
/// task still has some work. `work` is the number of products per row.
pub(super) fn rows_per_task(images: usize, rows: usize, most: usize, work: usize) -> usize {
    const TASKS: usize = 32;
    const LEAST_WORK: usize = 1 << 20;
    let parallel = (images * rows).div_ceil(TASKS).max(LEAST_WORK.div_ceil(work.max(1)));
    let size = most.min(parallel).clamp(1, rows.max(1));
    rows.div_ceil(rows.div_ceil(size).max(1)).max(1)
}

/// One piece of work on an output: some rows of one image.
pub(super) struct Piece<'a, T> {
    pub image: usize,
    /// The first row, in units of `rows`.
    pub from: usize,
    pub data: &'a mut [T],
}

/// Divides images of `row` elements per row into parts of `rows` rows.
pub(super) fn pieces<T>(data: &mut [T], image: usize, row: usize, rows: usize) -> Vec<Piece<'_, T>> {
    let cut = |(n, image): (usize, _)| {
        <[T]>::chunks_mut(image, rows * row).enumerate().map(move |(i, data)| Piece { image: n, from: i * rows, data })
    };
    data.chunks_mut(image.max(1)).enumerate().flat_map(cut).collect()
}

/// Divides `data` into parts of these lengths.
pub(super) fn cut<T>(mut data: &mut [T], lens: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    let mut out = Vec::new();
    for len in lens {
        let (piece, rest) = data.split_at_mut(len);
        out.push(piece);
        data = rest;
    }
    out
}
