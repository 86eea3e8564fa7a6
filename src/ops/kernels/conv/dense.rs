//! Kernels as large as the whole input: a matrix product that reads the weights without packing.
//!
//! Fully connected layers, squeeze and excitation, the last blocks over small images. There may be more weights than
//! anything else in the network and few images in the batch: packing would cost as much as the product, and take the
//! weights' memory a second time. All sums run in an order that does not depend on the number of images.

use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Epilogue;
use crate::ops::geometry::Geometry;
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// Minimum output elements per task and image.
const ROWS: usize = 16;
/// Elements of the weights that one task reads, about.
const WORK: usize = 1 << 16;
/// Images times columns whose sums stay in the first-level cache.
const SUMS: usize = 4096;
/// Rows of the weights that are added to such sums at once.
const AT_ONCE: usize = 8;

/// Fully connected case: the kernel covers the whole input.
pub(crate) fn fits(g: &Geometry) -> bool {
    g.groups == 1 && g.pad == [0; 4] && (g.kh, g.kw) == (g.h, g.w)
}

/// Elements of one image.
fn columns(g: &Geometry) -> usize {
    g.c * g.h * g.w
}

/// From (N, H, W, C) to (N, C, H, W), the order of a kernel's rows.
pub(crate) fn in_order<T: Lanes>(x: &[T], g: &Geometry) -> Buffer<T> {
    let pixels = g.h * g.w;
    if pixels == 1 {
        return Buffer::copy_of(x);
    }
    let mut out = Buffer::arbitrary(x.len());
    for (x, out) in x.chunks_exact(columns(g)).zip(out.chunks_exact_mut(columns(g))) {
        for (p, x) in x.chunks_exact(g.c).enumerate() {
            x.iter().enumerate().for_each(|(c, &v)| out[c * pixels + p] = v);
        }
    }
    out
}

/// y = act(x w^T + bias + residual)
pub(crate) fn forward<T: Lanes>(level: Level, x: &[T], w: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
    let (len, n) = (columns(g), g.n);
    if y.is_empty() {
        return;
    }
    let ordered = (g.h * g.w > 1).then(|| in_order(x, g));
    let x = ordered.as_deref().unwrap_or(x);
    let rows = (WORK / len).clamp(ROWS.min(g.k), g.k).next_multiple_of(4);
    // [k][n], so that tasks write disjoint parts.
    let mut sums = Buffer::arbitrary(g.k * n);
    sums.par_chunks_mut(rows * n).zip(w.par_chunks(rows * len)).for_each(|(sums, w)| {
        T::run(level, Dots { x, w, len, sums });
    });
    for (i, y) in y.chunks_exact_mut(g.k).enumerate() {
        for (k, y) in y.iter_mut().enumerate() {
            let bias = e.bias.map_or(T::ZERO, |bias| bias[k]);
            let residual = e.residual.map_or(T::ZERO, |residual| residual[i * g.k + k]);
            *y = e.act.value(sums[k * n + i] + bias + residual);
        }
    }
}

/// The gradient of the input, written or added.
pub(crate) fn input_gradient<T: Lanes>(level: Level, dy: &[T], w: &[T], g: &Geometry, dx: &mut [T], add: bool) {
    let (len, n) = (columns(g), g.n);
    if dx.is_empty() {
        return;
    }
    let strip = (SUMS / n).next_multiple_of(16).clamp(64, 2048);
    // [strip][n][column of the strip]
    let mut sums = Buffer::<T>::arbitrary(n * len);
    sums.par_chunks_mut(n * strip).enumerate().for_each(|(i, sums)| {
        sums.fill(T::ZERO);
        let width = sums.len() / n;
        T::run(level, Rows { dy, w: &w[i * strip..], pitch: len, outputs: g.k, width, sums });
    });
    let pixels = g.h * g.w;
    for (i, dx) in dx.chunks_exact_mut(len).enumerate() {
        for (s, from) in (0..len).step_by(strip).enumerate() {
            let width = strip.min(len - from);
            let sums = &sums[s * n * strip + i * width..][..width];
            for (j, &v) in (from..).zip(sums) {
                let dx = &mut dx[j % pixels * g.c + j / pixels];
                *dx = if add { *dx + v } else { v };
            }
        }
    }
}

/// The gradient of the weights.
pub(crate) fn weight_gradient<T: Lanes>(level: Level, x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
    let len = columns(g);
    if dw.is_empty() || g.n == 0 {
        return dw.fill(T::ZERO);
    }
    let ordered = (g.h * g.w > 1).then(|| in_order(x, g));
    let x = ordered.as_deref().unwrap_or(x);
    let piece = (WORK / g.n.max(1)).clamp(256, WORK);
    dw.par_chunks_mut(piece).enumerate().for_each(|(i, dw)| {
        T::run(level, Outers { dy, x, images: g.n, len, from: i * piece, out: dw });
    });
}

/// A piece of the weights' gradient, from its element `from` on. `x` is in the weights' order.
pub(crate) fn outer<T: Lanes>(level: Level, dy: &[T], x: &[T], images: usize, from: usize, out: &mut [T]) {
    let len = x.len() / images.max(1);
    if len > 0 {
        T::run(level, Outers { dy, x, images, len, from, out });
    }
}

/// Products of rows of `w` with rows of `x`, both of `len` elements; `sums` is [row of w][row of x].
struct Dots<'a, T> {
    x: &'a [T],
    w: &'a [T],
    len: usize,
    sums: &'a mut [T],
}

impl<T: Lanes> Job<T> for Dots<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { x, w, len, sums } = self;
        let (rows, images) = (w.len() / len, x.len() / len);
        assert!(w.len() == rows * len && x.len() == images * len && sums.len() == rows * images);
        let mut k = 0;
        while k < rows {
            let most = if rows - k >= 4 { 4 } else { 1 };
            let mut n = 0;
            while n < images {
                let (w, x) = (&w[k * len..][..most * len], &x[n * len..]);
                let to = &mut sums[k * images + n..];
                n += match (most, images - n >= 4) {
                    (4, true) => dots::<S, 4, 4>(s, x, w, len, to, images),
                    (4, false) => dots::<S, 4, 1>(s, x, w, len, to, images),
                    (_, true) => dots::<S, 1, 4>(s, x, w, len, to, images),
                    (_, false) => dots::<S, 1, 1>(s, x, w, len, to, images),
                };
            }
            k += most;
        }
    }
}

/// K rows of `w` times N rows of `x`; returns N.
#[inline(always)]
fn dots<S: Simd, const K: usize, const N: usize>(
    s: S,
    x: &[S::T],
    w: &[S::T],
    len: usize,
    sums: &mut [S::T],
    pitch: usize,
) -> usize {
    assert!(x.len() >= N * len && w.len() >= K * len);
    let mut tile = [[s.zero(); N]; K];
    let mut i = 0;
    while i < len {
        let n = S::LANES.min(len - i);
        // SAFETY: `n` elements from i on lie in each of the rows of `len` elements (asserted above).
        let get = |p: &[S::T], row: usize| unsafe {
            let p = p.as_ptr().add(row * len + i);
            s.load_first(p, n)
        };
        let mut rows = [s.zero(); N];
        for (j, row) in rows.iter_mut().enumerate() {
            *row = get(x, j);
        }
        for (k, tile) in tile.iter_mut().enumerate() {
            let v = get(w, k);
            for (sum, row) in tile.iter_mut().zip(rows) {
                *sum = s.mul_add(v, row, *sum);
            }
        }
        i += S::LANES;
    }
    for (k, tile) in tile.iter().enumerate() {
        for (j, sum) in tile.iter().enumerate() {
            let mut elements = [S::T::ZERO; 16];
            // SAFETY: no vector is longer than 16 elements.
            unsafe { s.store(elements.as_mut_ptr(), *sum) };
            sums[k * pitch + j] = elements[..S::LANES].iter().fold(S::T::ZERO, |a, &b| a + b);
        }
    }
    N
}

/// sums[n][j] += sum over k of dy[n][k] w[k][j], for `width` columns j; a row of `w` begins every `pitch`.
struct Rows<'a, T> {
    dy: &'a [T],
    w: &'a [T],
    pitch: usize,
    outputs: usize,
    width: usize,
    sums: &'a mut [T],
}

impl<T: Lanes> Job<T> for Rows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { dy, w, pitch, outputs, width, sums } = self;
        let images = sums.len() / width;
        assert!(images * outputs == dy.len() && images * width == sums.len());
        assert!(outputs == 0 || (outputs - 1) * pitch + width <= w.len());
        let mut k = 0;
        while k < outputs {
            let rows = AT_ONCE.min(outputs - k);
            let mut j = 0;
            while j < width {
                let n = S::LANES.min(width - j);
                let mut vectors = [s.zero(); AT_ONCE];
                for (i, v) in vectors.iter_mut().enumerate().take(rows) {
                    // SAFETY: row k + i is below `outputs`, and `n` elements from j on lie within its `width`.
                    *v = unsafe {
                        let p = w.as_ptr().add((k + i) * pitch + j);
                        s.load_first(p, n)
                    };
                }
                for image in 0..images {
                    // SAFETY: `n` elements from j on lie within the image's `width` sums, and dy has `outputs` elements
                    // of each image.
                    unsafe {
                        let p = sums.as_mut_ptr().add(image * width + j);
                        let mut sum = s.load_first(p, n);
                        let d = dy.as_ptr().add(image * outputs + k);
                        if rows == AT_ONCE {
                            for (i, &v) in vectors.iter().enumerate() {
                                sum = s.mul_add(s.broadcast(d.add(i)), v, sum);
                            }
                        } else {
                            for (i, &v) in vectors.iter().enumerate().take(rows) {
                                sum = s.mul_add(s.broadcast(d.add(i)), v, sum);
                            }
                        }
                        s.store_first(p, sum, n);
                    }
                }
                j += S::LANES;
            }
            k += rows;
        }
    }
}

/// Elements from `from` on of the matrix whose row k, column c is the sum over n of dy[n][k] x[n][c].
struct Outers<'a, T> {
    dy: &'a [T],
    x: &'a [T],
    images: usize,
    len: usize,
    from: usize,
    out: &'a mut [T],
}

impl<T: Lanes> Job<T> for Outers<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { dy, x, images, len, from, out } = self;
        let outputs = dy.len() / images.max(1);
        assert!(dy.len() == images * outputs && x.len() == images * len && from + out.len() <= outputs * len);
        let mut at = 0;
        while at < out.len() {
            let (k, c) = ((from + at) / len, (from + at) % len);
            let end = (len - c).min(out.len() - at);
            let mut j = 0;
            while j + 4 * S::LANES <= end {
                outer_tile::<S, 4>(s, &dy[k..], outputs, &x[c + j..], len, images, &mut out[at + j..], S::LANES);
                j += 4 * S::LANES;
            }
            while j < end {
                let n = S::LANES.min(end - j);
                outer_tile::<S, 1>(s, &dy[k..], outputs, &x[c + j..], len, images, &mut out[at + j..], n);
                j += n;
            }
            at += end;
        }
    }
}

/// V vectors of the sum over the images of their element `d` times their elements `x`; of the last vector `n` elements.
#[allow(clippy::too_many_arguments)] // plain sizes and slices, inlined
#[inline(always)]
fn outer_tile<S: Simd, const V: usize>(
    s: S,
    d: &[S::T],
    d_pitch: usize,
    x: &[S::T],
    x_pitch: usize,
    images: usize,
    out: &mut [S::T],
    n: usize,
) {
    let elements = (V - 1) * S::LANES + n;
    assert!(n <= S::LANES && out.len() >= elements);
    assert!(images == 0 || ((images - 1) * d_pitch < d.len() && (images - 1) * x_pitch + elements <= x.len()));
    let mut sums = [s.zero(); V];
    for image in 0..images {
        // SAFETY: asserted above for the last image.
        unsafe {
            let d = s.broadcast(d.as_ptr().add(image * d_pitch));
            let x = x.as_ptr().add(image * x_pitch);
            for (v, sum) in sums.iter_mut().enumerate() {
                let p = x.add(v * S::LANES);
                let x = s.load_first(p, n);
                *sum = s.mul_add(d, x, *sum);
            }
        }
    }
    for (v, sum) in sums.iter().enumerate() {
        // SAFETY: asserted above.
        unsafe {
            let p = out.as_mut_ptr().add(v * S::LANES);
            s.store_first(p, *sum, n);
        }
    }
}
