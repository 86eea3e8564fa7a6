//! Transforms tiles to their values at the points, and back.
// Loops over registers: the compiler unrolls a plain counter.
#![allow(clippy::needless_range_loop)]

use super::tiles::{Destination, Tiles};
use crate::ops::activation::Activation;
use crate::ops::simd::{Job, Lanes, Simd};
use candle_core::WithDType;

/// With six points they are 0, A, -A, B, -B and infinity. These A and B leave about half the rounding error of 1 and 2,
/// the paper's choice: 1.6 instead of 3.9 times that of the direct sum, over 64 channels of rectified noise. The
/// minimum is flat. Products of their squares are exact in f32.
const A: f64 = 11.0 / 16.0;
const B: f64 = 13.0 / 8.0;
const A2: f64 = A * A;
const B2: f64 = B * B;
/// The product of the differences of A, and of B, from all other finite points; that of 0 is A2 B2.
const AT_A: f64 = 2.0 * A2 * (A2 - B2);
const AT_B: f64 = 2.0 * B2 * (B2 - A2);

/// A constant in every lane. (A closure might not be inlined, and then could not use the instructions.)
#[inline(always)]
fn n<S: Simd>(s: S, v: f64) -> S::V {
    s.splat(S::T::from_f64(v))
}

/// Values of the inputs at the points (B^T of the paper).
#[inline(always)]
fn inputs<S: Simd, const P: usize>(s: S, x: &[S::V; P]) -> [S::V; P] {
    let mut y = *x;
    if P == 4 {
        y[0] = s.sub(x[0], x[2]);
        y[1] = s.add(x[1], x[2]);
        y[2] = s.sub(x[2], x[1]);
        y[3] = s.sub(x[1], x[3]);
        return y;
    }
    y[0] = s.mul_add(n(s, A2 * B2), x[0], s.mul_add(n(s, -A2 - B2), x[2], x[4]));
    let (even, odd) = (s.mul_add(n(s, -B2), x[2], x[4]), s.mul(n(s, A), s.mul_add(n(s, -B2), x[1], x[3])));
    y[1] = s.add(even, odd);
    y[2] = s.sub(even, odd);
    let (even, odd) = (s.mul_add(n(s, -A2), x[2], x[4]), s.mul(n(s, B), s.mul_add(n(s, -A2), x[1], x[3])));
    y[3] = s.add(even, odd);
    y[4] = s.sub(even, odd);
    y[5] = s.mul_add(n(s, A2 * B2), x[1], s.mul_add(n(s, -A2 - B2), x[3], x[5]));
    y
}

/// The first P - 2 elements as values at the points: what the gradient of the outputs is multiplied by (A).
#[inline(always)]
fn gradients<S: Simd, const P: usize>(s: S, x: &[S::V; P]) -> [S::V; P] {
    let mut y = *x;
    if P == 4 {
        y[1] = s.add(x[0], x[1]);
        y[2] = s.sub(x[0], x[1]);
        y[3] = s.sub(s.zero(), x[1]);
        return y;
    }
    let (even, odd) = (s.mul_add(n(s, A2), x[2], x[0]), s.mul(n(s, A), s.mul_add(n(s, A2), x[3], x[1])));
    y[1] = s.add(even, odd);
    y[2] = s.sub(even, odd);
    let (even, odd) = (s.mul_add(n(s, B2), x[2], x[0]), s.mul(n(s, B), s.mul_add(n(s, B2), x[3], x[1])));
    y[3] = s.add(even, odd);
    y[4] = s.sub(even, odd);
    y[5] = x[3];
    y
}

/// P - 2 outputs from the products at the points (A^T); the last two elements are meaningless.
#[inline(always)]
fn outputs<S: Simd, const P: usize>(s: S, x: &[S::V; P]) -> [S::V; P] {
    let mut y = *x;
    let (sum, difference) = (s.add(x[1], x[2]), s.sub(x[1], x[2]));
    if P == 4 {
        y[0] = s.add(x[0], sum);
        y[1] = s.sub(difference, x[3]);
        return y;
    }
    let (sum2, difference2) = (s.add(x[3], x[4]), s.sub(x[3], x[4]));
    y[0] = s.add(s.add(x[0], sum), sum2);
    y[1] = s.mul_add(n(s, B), difference2, s.mul(n(s, A), difference));
    y[2] = s.mul_add(n(s, B2), sum2, s.mul(n(s, A2), sum));
    y[3] = s.mul_add(n(s, B2 * B), difference2, s.mul_add(n(s, A2 * A), difference, x[5]));
    y
}

/// Values of three kernel elements at the points (G).
#[inline(always)]
pub(super) fn kernel<S: Simd, const P: usize>(s: S, x: &[S::V; 3]) -> [S::V; P] {
    let mut y = [x[0]; P];
    if P == 4 {
        let ends = s.add(x[0], x[2]);
        y[1] = s.mul(n(s, 0.5), s.add(ends, x[1]));
        y[2] = s.mul(n(s, 0.5), s.sub(ends, x[1]));
        y[3] = x[2];
        return y;
    }
    y[0] = s.mul(n(s, 1.0 / (A2 * B2)), x[0]);
    let (even, odd) = (s.mul_add(n(s, A2 / AT_A), x[2], s.mul(n(s, 1.0 / AT_A), x[0])), s.mul(n(s, A / AT_A), x[1]));
    y[1] = s.add(even, odd);
    y[2] = s.sub(even, odd);
    let (even, odd) = (s.mul_add(n(s, B2 / AT_B), x[2], s.mul(n(s, 1.0 / AT_B), x[0])), s.mul(n(s, B / AT_B), x[1]));
    y[3] = s.add(even, odd);
    y[4] = s.sub(even, odd);
    y[5] = x[2];
    y
}

/// The kernel's gradient from the gradients of its values at the points (G^T).
#[inline(always)]
pub(super) fn kernel_gradient<S: Simd, const P: usize>(s: S, x: &[S::V; P]) -> [S::V; 3] {
    let (sum, difference) = (s.add(x[1], x[2]), s.sub(x[1], x[2]));
    if P == 4 {
        let half = s.mul(n(s, 0.5), sum);
        return [s.add(x[0], half), s.mul(n(s, 0.5), difference), s.add(half, x[3])];
    }
    let (sum2, difference2) = (s.add(x[3], x[4]), s.sub(x[3], x[4]));
    [
        s.mul_add(n(s, 1.0 / (A2 * B2)), x[0], s.mul_add(n(s, 1.0 / AT_B), sum2, s.mul(n(s, 1.0 / AT_A), sum))),
        s.mul_add(n(s, B / AT_B), difference2, s.mul(n(s, A / AT_A), difference)),
        s.mul_add(n(s, B2 / AT_B), sum2, s.mul_add(n(s, A2 / AT_A), sum, x[5])),
    ]
}

/// Tiles of a map to their values at the points: of inputs, or (`GRADIENT`) of the gradient of the outputs.
pub(super) struct ToPoints<'a, T, const P: usize, const GRADIENT: bool> {
    /// All images, `channels` elements per pixel.
    pub map: &'a [T],
    pub channels: usize,
    pub tiles: Tiles,
    /// The first tile, and how many follow.
    pub from: usize,
    pub count: usize,
    pub destinations: &'a [Destination],
    /// Elements per point in `out`.
    pub point: usize,
    pub out: &'a mut [T],
}

impl<T: Lanes, const P: usize, const GRADIENT: bool> Job<T> for ToPoints<'_, T, P, GRADIENT> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { map, channels, tiles, from, count, destinations, point, out } = self;
        let Tiles { h, w, side, .. } = tiles;
        // Inputs reach one pixel further on all sides.
        let (reach, border) = if GRADIENT { (side, 0) } else { (P, 1) };
        assert!(count == 0 || (tiles.at(from + count - 1).0 + 1) * h * w * channels <= map.len());
        assert!(destinations.iter().all(|destination| {
            destination.valid <= S::LANES
                && destination.channel.min(channels) + destination.valid <= channels
                && (P * P - 1) * point + destination.to + count.max(1) * destination.step - destination.step + S::LANES
                    <= out.len()
        }));
        for tile in 0..count {
            let (image, y, x) = tiles.at(from + tile);
            let (y, x) = (y as isize - border, x as isize - border);
            let rows = (-y).max(0) as usize..reach.min((h as isize - y).max(0) as usize);
            let columns = (-x).max(0) as usize..reach.min((w as isize - x).max(0) as usize);
            let inside = rows == (0..reach) && columns == (0..reach);
            let pixel = (image * h * w) as isize + y * w as isize + x;
            for destination in destinations {
                let first = pixel * channels as isize + destination.channel.min(channels) as isize;
                let corner = map.as_ptr().wrapping_offset(first);
                let mut half = [[s.zero(); P]; P];
                if inside && destination.valid == S::LANES {
                    for j in 0..reach {
                        let mut column = [s.zero(); P];
                        for i in 0..reach {
                            // SAFETY: the tile lies inside its image, the vector inside its pixel (asserted above).
                            column[i] = unsafe { s.load(corner.wrapping_add((i * w + j) * channels)) };
                        }
                        half[j] = if GRADIENT { gradients(s, &column) } else { inputs(s, &column) };
                    }
                } else {
                    for j in columns.clone() {
                        let mut column = [s.zero(); P];
                        for i in rows.clone() {
                            // SAFETY: this pixel lies inside the image, and holds `valid` elements from here.
                            column[i] =
                                unsafe { s.load_part(corner.wrapping_add((i * w + j) * channels), destination.valid) };
                        }
                        half[j] = if GRADIENT { gradients(s, &column) } else { inputs(s, &column) };
                    }
                }
                let target = out.as_mut_ptr().wrapping_add(destination.to + tile * destination.step);
                for i in 0..P {
                    let mut row = [s.zero(); P];
                    for j in 0..P {
                        row[j] = half[j][i];
                    }
                    let row = if GRADIENT { gradients(s, &row) } else { inputs(s, &row) };
                    for j in 0..P {
                        // SAFETY: the last point's vector of the last tile ends inside `out` (asserted above).
                        unsafe { s.store(target.wrapping_add((i * P + j) * point), row[j]) };
                    }
                }
            }
        }
    }
}

/// Products at the points, [point][tile][pitch], to tiles of outputs: y = act(outputs + bias + residual).
pub(super) struct FromPoints<'a, T, const P: usize> {
    pub products: &'a [T],
    pub pitch: usize,
    pub tiles: Tiles,
    /// The first tile, and how many follow: whole rows of tiles.
    pub from: usize,
    pub count: usize,
    /// The pixels that these tiles cover, `channels` elements each.
    pub out: &'a mut [T],
    pub channels: usize,
    pub bias: Option<&'a [T]>,
    pub residual: Option<&'a [T]>,
    /// Whether to add to the output.
    pub add: bool,
    pub act: Activation,
}

impl<T: Lanes, const P: usize> Job<T> for FromPoints<'_, T, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { products, pitch, tiles, from, count, out, channels, bias, residual, add, act } = self;
        let Tiles { h, w, side, columns, .. } = tiles;
        let (point, top) = (count * pitch, tiles.pixel_row(from / columns));
        let pixels = (tiles.pixel_row((from + count) / columns) - top) * w;
        assert!(from.is_multiple_of(columns) && count.is_multiple_of(columns) && P * P * point <= products.len());
        assert!(pixels * channels <= out.len() && channels <= pitch && pitch.is_multiple_of(S::LANES));
        assert!(bias.is_none_or(|b| channels <= b.len()) && residual.is_none_or(|r| pixels * channels <= r.len()));
        let (floor, six) = (s.zero(), s.splat(T::from_f64(6.0)));
        for tile in 0..count {
            let (image, y, x) = tiles.at(from + tile);
            let (rows, right) = (side.min(h - y), side.min(w - x));
            let corner = ((image * h + y - top) * w + x) * channels;
            for first in (0..channels).step_by(S::LANES) {
                let n = S::LANES.min(channels - first);
                let source = products.as_ptr().wrapping_add(tile * pitch + first);
                let mut shift = s.zero();
                if let Some(bias) = bias {
                    // SAFETY: there is an element per channel (asserted above).
                    shift = unsafe { s.load_first(bias.as_ptr().add(first), n) };
                }
                let mut half = [[s.zero(); P]; P];
                for j in 0..P {
                    let mut column = [s.zero(); P];
                    for i in 0..P {
                        // SAFETY: a whole vector below `pitch` of this tile, at each of the P x P points.
                        column[i] = unsafe { s.load(source.wrapping_add((i * P + j) * point)) };
                    }
                    half[j] = outputs(s, &column);
                }
                for i in 0..rows {
                    let mut row = [s.zero(); P];
                    for j in 0..P {
                        row[j] = half[j][i];
                    }
                    let row = outputs(s, &row);
                    for j in 0..right {
                        let at = corner + (i * w + j) * channels + first;
                        let p = out.as_mut_ptr().wrapping_add(at);
                        let mut sum = s.add(row[j], shift);
                        // SAFETY: n channels of a pixel of these tiles, all of which lie in `residual` and `out`.
                        unsafe {
                            if let Some(residual) = residual {
                                sum = s.add(sum, s.load_first(residual.as_ptr().add(at), n));
                            }
                            if add {
                                sum = s.add(sum, s.load_first(p, n));
                            }
                        }
                        match act {
                            Activation::Relu => sum = s.max(floor, sum),
                            Activation::Relu6 => sum = s.min(six, s.max(floor, sum)),
                            _ => {}
                        }
                        // SAFETY: as above.
                        unsafe { s.store_first(p, sum, n) }
                    }
                }
            }
        }
    }
}
