//! Means over the pixels of an image and factors per image, over NHWC data.

use crate::ops::buffer::Buffer;
use crate::ops::number::Real;
use rayon::prelude::*;

/// The mean over the pixels of each image: (N, pixels, C) -> (N, C).
pub(crate) fn mean_pixels<T: Real>(x: &[T], n: usize, pixels: usize, c: usize) -> Buffer<T> {
    let mut out = Buffer::zeros(n * c);
    let scale = T::from_f64(1.0 / pixels as f64);
    out.par_chunks_mut(c).zip(x.par_chunks(pixels * c)).for_each(|(out, x)| {
        for pixel in x.chunks_exact(c) {
            out.iter_mut().zip(pixel).for_each(|(s, &v)| *s += v);
        }
        out.iter_mut().for_each(|s| *s *= scale);
    });
    out
}

/// The gradient of `mean_pixels`: each pixel gets the image's gradient over the number of pixels.
pub(crate) fn mean_pixels_gradient<T: Real>(dy: &[T], pixels: usize, c: usize, dx: &mut [T], add: bool) {
    let scale = T::from_f64(1.0 / pixels as f64);
    dx.par_chunks_mut(pixels * c).zip(dy.par_chunks(c)).for_each(|(dx, dy)| {
        for pixel in dx.chunks_exact_mut(c) {
            for (d, &g) in pixel.iter_mut().zip(dy) {
                let g = g * scale;
                *d = if add { *d + g } else { g };
            }
        }
    });
}

/// y = x s, with one factor per image and channel.
pub(crate) fn scale<T: Real>(x: &[T], s: &[T], pixels: usize, c: usize, y: &mut [T], add: bool) {
    y.par_chunks_mut(pixels * c).zip(x.par_chunks(pixels * c)).zip(s.par_chunks(c)).for_each(|((y, x), s)| {
        for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for j in 0..c {
                let v = x[j] * s[j];
                y[j] = if add { y[j] + v } else { v };
            }
        }
    });
}

/// The gradient of `scale`'s factors: the sum over pixels of x dy.
pub(crate) fn scale_gradient<T: Real>(x: &[T], dy: &[T], pixels: usize, c: usize, ds: &mut [T], add: bool) {
    ds.par_chunks_mut(c).zip(x.par_chunks(pixels * c)).zip(dy.par_chunks(pixels * c)).for_each(|((ds, x), dy)| {
        if !add {
            ds.fill(T::zero());
        }
        for (x, dy) in x.chunks_exact(c).zip(dy.chunks_exact(c)) {
            for j in 0..c {
                ds[j] += x[j] * dy[j];
            }
        }
    });
}
