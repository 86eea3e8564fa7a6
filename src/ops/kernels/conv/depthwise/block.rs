//! Blocks of channels of one image.

use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::Blocks;
use crate::ops::kernels::conv::window::Image;

/// Channels per block.
pub(super) const BLOCK: usize = 16;
/// Elements of packed input that a task handles at once.
pub(super) const PACKED: usize = 32 * 1024;

/// The block of channels from `first` on.
pub(super) fn block(g: &Geometry, first: usize) -> Blocks {
    Blocks { channels: (g.c - first).min(BLOCK), count: 1, size: BLOCK, pitch: BLOCK }
}

/// Image `n` of `data`, from channel `first` on.
pub(super) fn image<T>(data: &[T], h: usize, w: usize, c: usize, n: usize, first: usize) -> Image<'_, T> {
    Image { data: &data[n * h * w * c..][..h * w * c], h, w, row: w * c, pitch: c, first }
}
