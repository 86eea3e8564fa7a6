//! Copies input rows into blocks of channels, with explicit zeros for the padding.

use super::layout::{Blocks, Panels};
use crate::ops::simd::{Job, Lanes, Simd};

/// The pixels of one image that are read, their positions in memory, and the channels that are read of them.
#[derive(Clone, Copy)]
pub(super) struct Image<'a, T> {
    /// From the first pixel's first channel on.
    pub data: &'a [T],
    /// Rows and columns that are read; those between them may be stepped over.
    pub h: usize,
    pub w: usize,
    /// From one row that is read to the next in memory.
    pub row: usize,
    /// From one pixel that is read to the next in memory.
    pub pitch: usize,
    /// The first channel read.
    pub first: usize,
}

/// A window of an image: rows from `top` and columns from `left` on, which may lie outside.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub top: isize,
    pub left: isize,
    pub rows: usize,
    pub columns: usize,
}

impl Window {
    /// Elements that the packed window takes.
    pub fn len(&self, blocks: &Blocks) -> usize {
        blocks.count * self.block_len(blocks)
    }
    pub fn block_len(&self, blocks: &Blocks) -> usize {
        self.rows * self.row_len(blocks)
    }
    pub fn row_len(&self, blocks: &Blocks) -> usize {
        self.columns * blocks.pitch
    }
}

/// Packs a window as [block][row][column][pitch].
pub(super) struct PackRows<'a, T> {
    pub image: Image<'a, T>,
    pub window: Window,
    pub blocks: Blocks,
    pub out: &'a mut [T],
}

impl<T: Lanes> Job<T> for PackRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { image, window, blocks, out } = self;
        let (row_len, block_len) = (window.row_len(&blocks), window.block_len(&blocks));
        // Columns of the window that lie inside the image.
        let from = window.left.min(0).unsigned_abs().min(window.columns);
        let to = (image.w as isize - window.left).clamp(from as isize, window.columns as isize) as usize;
        for r in 0..window.rows {
            let y = window.top + r as isize;
            let inside = 0 <= y && y < image.h as isize && to > from;
            for b in 0..blocks.count {
                let row = &mut out[b * block_len + r * row_len..][..row_len];
                if inside {
                    row[..from * blocks.pitch].fill(T::ZERO);
                    row[to * blocks.pitch..].fill(T::ZERO);
                } else {
                    row.fill(T::ZERO);
                }
            }
            if !inside {
                continue;
            }
            let x = (window.left + from as isize) as usize;
            let start = y as usize * image.row + x * image.pitch + image.first;
            let pixels = &image.data[start..][..(to - from - 1) * image.pitch + blocks.channels];
            let at = r * row_len + from * blocks.pitch;
            if blocks.pitch < 16 {
                copy_narrow(pixels, image.pitch, &mut out[at..][..(to - from) * blocks.pitch], blocks.pitch);
                continue;
            }
            for i in 0..to - from {
                for b in 0..blocks.count {
                    let valid = blocks.valid(b);
                    let source = &pixels[i * image.pitch + b * blocks.size..][..valid];
                    let target = &mut out[b * block_len + at + i * 16..][..16];
                    let mut v = 0;
                    while v < 16 {
                        let n = S::LANES.min(valid.saturating_sub(v));
                        // SAFETY: `source` has at least n elements from v (or, if n is 0, none is read), `target` has
                        // 16, which every vector length divides.
                        unsafe {
                            let p = source.as_ptr().add(v.min(valid));
                            let elements = s.load_first(p, n);
                            s.store(target.as_mut_ptr().add(v), elements);
                        }
                        v += S::LANES;
                    }
                }
            }
        }
    }
}

/// Few channels: no gaps between the pixels.
#[inline(always)]
fn copy_narrow<T: Copy>(pixels: &[T], pitch: usize, out: &mut [T], channels: usize) {
    if pitch == channels {
        out.copy_from_slice(pixels);
        return;
    }
    for (source, target) in pixels.chunks(pitch).zip(out.chunks_exact_mut(channels)) {
        target.copy_from_slice(&source[..channels]);
    }
}

/// Packs `pixels` pixels of `pitch` channels as [panel][pixel][width], for the gradient of the weights.
pub(super) struct PackPanels<'a, T> {
    pub data: &'a [T],
    pub pitch: usize,
    pub first: usize,
    pub pixels: usize,
    pub panels: Panels,
    pub out: &'a mut [T],
}

impl<T: Lanes> Job<T> for PackPanels<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { data, pitch, first, pixels, panels, out } = self;
        for i in 0..pixels {
            let pixel = &data[i * pitch + first..][..panels.channels];
            for p in 0..panels.count() {
                let (width, valid) = (panels.width(p), panels.valid(p));
                let source = &pixel[panels.first(p)..][..valid];
                let target = &mut out[panels.first(p) * pixels + i * width..][..width];
                let mut v = 0;
                while v < width {
                    let n = S::LANES.min(valid.saturating_sub(v));
                    // SAFETY: `source` has at least n elements from v, `target` a whole vector.
                    unsafe {
                        let p = source.as_ptr().add(v.min(valid));
                        let elements = s.load_first(p, n);
                        s.store(target.as_mut_ptr().add(v), elements);
                    }
                    v += S::LANES;
                }
            }
        }
    }
}
