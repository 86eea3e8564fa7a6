//! Max and average pools.

use crate::ops::geometry::Geometry;
use crate::ops::real::Real;
use rayon::prelude::*;

/// The first position of the window that holds the maximum; padding never wins, NaN does.
pub(crate) fn max<T: Real>(x: &[T], g: &Geometry, y: &mut [T], tap: &mut [u8]) {
    let row = (g.ow * g.c).max(1);
    y.par_chunks_mut(row).zip(tap.par_chunks_mut(row)).enumerate().for_each(|(r, (y, tap))| {
        let (n, oy) = (r / g.oh, r % g.oh);
        for ox in 0..g.ow {
            let (y, tap) = (&mut y[ox * g.c..][..g.c], &mut tap[ox * g.c..][..g.c]);
            let mut first = true;
            for (a, b) in (0..g.kh).flat_map(|a| (0..g.kw).map(move |b| (a, b))) {
                let (Some(iy), Some(ix)) = (g.row(oy, a), g.column(ox, b)) else { continue };
                let pixel = &x[((n * g.h + iy) * g.w + ix) * g.c..][..g.c];
                let t = (a * g.kw + b) as u8;
                for j in 0..g.c {
                    // Written so that a NaN is kept, as PyTorch keeps it.
                    if first || !(pixel[j] <= y[j]) {
                        y[j] = pixel[j];
                        tap[j] = t;
                    }
                }
                first = false;
            }
            if first {
                y.fill(T::zero());
                tap.fill(u8::MAX);
            }
        }
    });
}

/// Each input pixel gathers from the windows that chose it.
pub(crate) fn max_gradient<T: Real>(dy: &[T], tap: &[u8], g: &Geometry, dx: &mut [T], add: bool) {
    dx.par_chunks_mut((g.w * g.c).max(1)).enumerate().for_each(|(row, dx)| {
        let (n, y) = (row / g.h, row % g.h);
        if !add {
            dx.fill(T::zero());
        }
        for x in 0..g.w {
            let dx = &mut dx[x * g.c..][..g.c];
            for (a, b) in (0..g.kh).flat_map(|a| (0..g.kw).map(move |b| (a, b))) {
                let (Some(oy), Some(ox)) = (g.row_back(y, a), g.column_back(x, b)) else { continue };
                let at = ((n * g.oh + oy) * g.ow + ox) * g.c;
                let t = (a * g.kw + b) as u8;
                for j in 0..g.c {
                    if tap[at + j] == t {
                        dx[j] += dy[at + j];
                    }
                }
            }
        }
    });
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
