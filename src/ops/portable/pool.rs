//! Max and average pools.

use crate::ops::buffer::Buffer;
use crate::ops::geometry::Geometry;
use crate::ops::number::Real;
use rayon::prelude::*;

/// The first position of the window that holds the maximum; padding never wins, NaN does.
#[cfg(test)]
pub(crate) fn max<T: Real>(x: &[T], g: &Geometry, y: &mut [T], tap: &mut [u8]) {
    let row = (g.ow * g.c).max(1);
    y.par_chunks_mut(row).zip(tap.par_chunks_mut(row)).enumerate().for_each(|(r, (y, tap))| {
        max_row(x, g, r / g.oh, r % g.oh, y, tap);
    });
}

/// One row of `max`: output row `oy` of image `n`.
#[inline(always)]
pub(crate) fn max_row<T: Real>(x: &[T], g: &Geometry, n: usize, oy: usize, y: &mut [T], tap: &mut [u8]) {
    for ox in 0..g.ow {
        let (y, tap) = (&mut y[ox * g.c..][..g.c], &mut tap[ox * g.c..][..g.c]);
        let mut j = 0;
        while j + 16 <= g.c {
            max_window::<T, 16>(x, g, [n, oy, ox, j], &mut y[j..], &mut tap[j..]);
            j += 16;
        }
        while j < g.c {
            max_window::<T, 1>(x, g, [n, oy, ox, j], &mut y[j..], &mut tap[j..]);
            j += 1;
        }
    }
}

/// One window of `max`, for the `L` channels from `j` on, which stay in registers.
#[inline(always)]
fn max_window<T: Real, const L: usize>(x: &[T], g: &Geometry, [n, oy, ox, j]: [usize; 4], y: &mut [T], tap: &mut [u8]) {
    // The result of an empty window: zero, without a position.
    let (mut best, mut index) = ([T::zero(); L], [u32::from(u8::MAX); L]);
    let mut first = true;
    for a in 0..g.kh {
        let Some(iy) = g.row(oy, a) else { continue };
        for b in 0..g.kw {
            let Some(ix) = g.column(ox, b) else { continue };
            let pixel = &x[((n * g.h + iy) * g.w + ix) * g.c + j..][..L];
            let t = (a * g.kw + b) as u32;
            for l in 0..L {
                // A NaN is larger than all and is not replaced, as in PyTorch.
                let wins = first | (pixel[l] > best[l]) | (pixel[l] != pixel[l]);
                best[l] = if wins { pixel[l] } else { best[l] };
                index[l] = if wins { t } else { index[l] };
            }
            first = false;
        }
    }
    y[..L].copy_from_slice(&best);
    for (tap, index) in tap[..L].iter_mut().zip(index) {
        *tap = index as u8;
    }
}

/// The elements at the positions that won a max-pool, each of whose windows has a pixel.
pub(crate) fn winners<T: Real>(x: &[T], tap: &[u8], g: &Geometry) -> Buffer<T> {
    let mut out = Buffer::arbitrary(g.output_len());
    let row_len = (g.ow * g.k).max(1);
    out.par_chunks_mut(row_len).zip(tap.par_chunks(row_len)).enumerate().for_each(|(row, (out, tap))| {
        let (image, top) = (&x[row / g.oh * g.h * g.w * g.c..], row % g.oh * g.stride);
        for (ox, (out, tap)) in out.chunks_exact_mut(g.k).zip(tap.chunks_exact(g.k)).enumerate() {
            for (c, (out, &tap)) in out.iter_mut().zip(tap).enumerate() {
                let (y, x) = (top + usize::from(tap) / g.kw, ox * g.stride + usize::from(tap) % g.kw);
                *out = image[((y - g.pad[0]) * g.w + x - g.pad[1]) * g.c + c];
            }
        }
    });
    out
}

/// Each input pixel gathers from the windows that chose it.
#[cfg(test)]
pub(crate) fn max_gradient<T: Real>(dy: &[T], tap: &[u8], g: &Geometry, dx: &mut [T], add: bool) {
    dx.par_chunks_mut((g.w * g.c).max(1)).enumerate().for_each(|(row, dx)| {
        max_gradient_row(dy, tap, g, row / g.h, row % g.h, dx, add);
    });
}

/// One row of `max_gradient`: input row `y` of image `n`.
#[inline(always)]
pub(crate) fn max_gradient_row<T: Real>(
    dy: &[T],
    tap: &[u8],
    g: &Geometry,
    n: usize,
    y: usize,
    dx: &mut [T],
    add: bool,
) {
    if !add {
        dx.fill(T::zero());
    }
    for x in 0..g.w {
        let dx = &mut dx[x * g.c..][..g.c];
        for a in 0..g.kh {
            let Some(oy) = g.row_back(y, a) else { continue };
            for b in 0..g.kw {
                let Some(ox) = g.column_back(x, b) else { continue };
                let at = ((n * g.oh + oy) * g.ow + ox) * g.c;
                let t = (a * g.kw + b) as u8;
                let (dy, tap) = (&dy[at..][..g.c], &tap[at..][..g.c]);
                for j in 0..g.c {
                    dx[j] += if tap[j] == t { dy[j] } else { T::zero() };
                }
            }
        }
    }
}

/// The windows of an average pool along one axis: from and to, in input pixels.
pub(crate) type Windows = Vec<(usize, usize)>;

/// Windows that divide `size` pixels into `parts` (which may overlap by a pixel), as PyTorch's adaptive pools do.
pub(crate) fn adaptive_windows(size: usize, parts: usize) -> Windows {
    (0..parts).map(|i| (i * size / parts, ((i + 1) * size).div_ceil(parts))).collect()
}

/// The average over each window: (N, H, W, C) -> (N, rows, columns, C).
pub(crate) fn average<T: Real>(x: &[T], dims: [usize; 4], rows: &Windows, columns: &Windows, y: &mut [T]) {
    let [_, h, w, c] = dims;
    y.par_chunks_mut(c * columns.len()).enumerate().for_each(|(r, y)| {
        let (n, (y0, y1)) = (r / rows.len(), rows[r % rows.len()]);
        for (y, &(x0, x1)) in y.chunks_exact_mut(c).zip(columns) {
            y.fill(T::zero());
            for at in (y0..y1).flat_map(|iy| (x0..x1).map(move |ix| ((n * h + iy) * w + ix) * c)) {
                y.iter_mut().zip(&x[at..at + c]).for_each(|(s, &v)| *s += v);
            }
            let scale = T::from_f64(1.0 / ((y1 - y0) * (x1 - x0)) as f64);
            y.iter_mut().for_each(|s| *s *= scale);
        }
    });
}

/// The gradient of `average`'s input.
pub(crate) fn average_gradient<T: Real>(dy: &[T], dims: [usize; 4], rows: &Windows, columns: &Windows, dx: &mut [T]) {
    let [_, h, w, c] = dims;
    dx.par_chunks_mut(h * w * c).zip(dy.par_chunks(rows.len() * columns.len() * c)).for_each(|(dx, dy)| {
        dx.fill(T::zero());
        for (r, &(y0, y1)) in rows.iter().enumerate() {
            for (q, &(x0, x1)) in columns.iter().enumerate() {
                let scale = T::from_f64(1.0 / ((y1 - y0) * (x1 - x0)) as f64);
                let g = &dy[(r * columns.len() + q) * c..][..c];
                for at in (y0..y1).flat_map(|iy| (x0..x1).map(move |ix| (iy * w + ix) * c)) {
                    dx[at..at + c].iter_mut().zip(g).for_each(|(d, &g)| *d += g * scale);
                }
            }
        }
    });
}
