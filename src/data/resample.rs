//! Antialiased resizing of 8-bit images, bit for bit as in Pillow.
//!
//! Pretrained networks were trained and evaluated on images that Pillow resized. Its filters are separable: first all
//! rows, then all columns, each with weights in 22-bit fixed point and a result rounded to 8 bits. The same arithmetic
//! gives the same bytes. Pillow 13 resizes columns first where the height loses more than twice as many pixels as the
//! width; this file always resizes rows first, as all earlier versions do, with which the weights were trained.

use super::Image;
use crate::Interpolation;
use std::f64::consts::PI;

/// Fraction bits of a weight.
const PRECISION: u32 = 22;

/// A box of whole pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

impl Region {
    pub fn whole(image: &Image) -> Self {
        Self { top: 0, left: 0, height: image.height(), width: image.width() }
    }
}

/// Resizes the `from` region of an image, as if it were cropped first, to `height` x `width`, and computes and returns
/// only the `keep` region of the result.
pub(super) fn resize(
    image: &Image,
    from: Region,
    (height, width): (usize, usize),
    filter: Interpolation,
    keep: Region,
) -> Image {
    let channels = image.channels();
    if filter == Interpolation::Nearest {
        return nearest(image, from, (height, width), keep);
    }
    let columns = Weights::new(from.width, width, filter, keep.left, keep.width);
    let rows = Weights::new(from.height, height, filter, keep.top, keep.height);

    // The rows of the source that the vertical pass reads.
    let first_row = rows.spans.iter().map(|span| span.start).min().unwrap_or(0);
    let end_row = rows.spans.iter().map(|span| span.start + span.len).max().unwrap_or(0);
    let row_bytes = keep.width * channels;
    let mut narrowed = vec![0u8; (end_row - first_row) * row_bytes];
    for (y, out) in (first_row..end_row).zip(narrowed.chunks_exact_mut(row_bytes)) {
        let start = ((from.top + y) * image.width() + from.left) * channels;
        let row = &image.bytes()[start..start + from.width * channels];
        if from.width == width {
            out.copy_from_slice(&row[keep.left * channels..(keep.left + keep.width) * channels]);
            continue;
        }
        match channels {
            1 => horizontal::<1>(row, out, &columns),
            3 => horizontal::<3>(row, out, &columns),
            4 => horizontal::<4>(row, out, &columns),
            _ => horizontal_any(row, out, &columns, channels),
        }
    }

    let mut bytes = vec![0u8; keep.height * row_bytes];
    if from.height == height {
        bytes.copy_from_slice(&narrowed);
    } else {
        let mut sums = vec![0i32; row_bytes];
        for (span, out) in rows.spans.iter().zip(bytes.chunks_exact_mut(row_bytes)) {
            sums.fill(1 << (PRECISION - 1));
            let start = (span.start - first_row) * row_bytes;
            for (row, &weight) in narrowed[start..].chunks_exact(row_bytes).zip(rows.of(span)) {
                for (sum, &byte) in sums.iter_mut().zip(row) {
                    *sum += i32::from(byte) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = round(sum);
            }
        }
    }
    Image::from_parts(keep.height, keep.width, channels, bytes)
}

/// The whole image, resized to `height` x `width`.
#[cfg(feature = "plots")]
pub(crate) fn resized(image: &Image, height: usize, width: usize, filter: Interpolation) -> Image {
    let whole = Region { top: 0, left: 0, height, width };
    resize(image, Region::whole(image), (height, width), filter, whole)
}

/// One row of `C` channels.
fn horizontal<const C: usize>(row: &[u8], out: &mut [u8], columns: &Weights) {
    for (span, out) in columns.spans.iter().zip(out.chunks_exact_mut(C)) {
        let mut sums = [1i32 << (PRECISION - 1); C];
        let pixels = row[span.start * C..(span.start + span.len) * C].chunks_exact(C);
        for (pixel, &weight) in pixels.zip(columns.of(span)) {
            for c in 0..C {
                sums[c] += i32::from(pixel[c]) * weight;
            }
        }
        for c in 0..C {
            out[c] = round(sums[c]);
        }
    }
}

/// One row of any number of channels.
fn horizontal_any(row: &[u8], out: &mut [u8], columns: &Weights, channels: usize) {
    for (span, out) in columns.spans.iter().zip(out.chunks_exact_mut(channels)) {
        for (c, out) in out.iter_mut().enumerate() {
            let mut sum = 1i32 << (PRECISION - 1);
            for (k, &weight) in columns.of(span).iter().enumerate() {
                sum += i32::from(row[(span.start + k) * channels + c]) * weight;
            }
            *out = round(sum);
        }
    }
}

fn round(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn nearest(image: &Image, from: Region, (height, width): (usize, usize), keep: Region) -> Image {
    // Pillow steps from the first pixel's centre by the scale, and so accumulates rounding errors.
    let walk = |source: usize, target: usize, skip: usize, count: usize| -> Vec<usize> {
        let scale = source as f64 / target as f64;
        let mut at = scale * 0.5;
        let mut places = Vec::with_capacity(count);
        for i in 0..skip + count {
            if i >= skip {
                places.push((at as usize).min(source - 1));
            }
            at += scale;
        }
        places
    };
    let rows = walk(from.height, height, keep.top, keep.height);
    let columns = walk(from.width, width, keep.left, keep.width);
    let mut bytes = Vec::with_capacity(keep.height * keep.width * image.channels());
    for &y in &rows {
        for &x in &columns {
            bytes.extend_from_slice(image.pixel(from.top + y, from.left + x));
        }
    }
    Image::from_parts(keep.height, keep.width, image.channels(), bytes)
}

/// The source pixels of one target pixel, along one axis.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    len: usize,
    weights: usize,
}

/// The weights along one axis.
struct Weights {
    spans: Vec<Span>,
    weights: Vec<i32>,
}

impl Weights {
    /// For the pixels from `skip` to `skip + count` of `target`, computed from `source` pixels.
    fn new(source: usize, target: usize, filter: Interpolation, skip: usize, count: usize) -> Self {
        if source == target {
            let spans = (skip..skip + count).map(|start| Span { start, len: 1, weights: 0 }).collect();
            return Self { spans, weights: vec![1 << PRECISION] };
        }
        let scale = source as f64 / target as f64;
        let stretch = scale.max(1.0); // the filter widens when shrinking: that is the antialiasing
        let support = filter_support(filter) * stretch;
        let mut spans = Vec::with_capacity(count);
        let mut weights = Vec::with_capacity(count * (support.ceil() as usize * 2 + 1));
        let mut exact = Vec::new();
        for i in skip..skip + count {
            let center = (i as f64 + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(source);
            exact.clear();
            exact.extend(
                (start..end)
                    .map(|x| filter_weight(filter, ((x - start) as f64 + start as f64 - center + 0.5) / stretch)),
            );
            let total: f64 = exact.iter().sum();
            spans.push(Span { start, len: end - start, weights: weights.len() });
            weights.extend(exact.iter().map(|&w| {
                let w = if total == 0.0 { w } else { w / total } * f64::from(1 << PRECISION);
                (w + if w < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
        }
        Self { spans, weights }
    }

    fn of(&self, span: &Span) -> &[i32] {
        &self.weights[span.weights..span.weights + span.len]
    }
}

fn filter_support(filter: Interpolation) -> f64 {
    match filter {
        Interpolation::Nearest => 0.5,
        Interpolation::Bilinear => 1.0,
        Interpolation::Bicubic => 2.0,
        Interpolation::Lanczos => 3.0,
    }
}

fn filter_weight(filter: Interpolation, x: f64) -> f64 {
    const A: f64 = -0.5;
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    let x = x.abs();
    match filter {
        Interpolation::Nearest => 1.0,
        Interpolation::Bilinear => (1.0 - x).max(0.0),
        Interpolation::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        Interpolation::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        Interpolation::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
        Interpolation::Bicubic | Interpolation::Lanczos => 0.0,
    }
}
