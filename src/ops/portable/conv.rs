//! Convolution with any kernel, stride, dilation, padding and groups.

use crate::ops::activation::Activation;
use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Epilogue;
use crate::ops::geometry::Geometry;
use crate::ops::number::Real;
use rayon::prelude::*;

/// From OIHW to [group][kh][kw][input channel][output channel], so that the innermost loops run over channels.
pub(crate) fn pack<T: Real>(w: &[T], g: &Geometry) -> Buffer<T> {
    let (cg, kg, taps) = (g.c / g.groups, g.k / g.groups, g.kh * g.kw);
    let mut out = Buffer::arbitrary(g.kernel_len());
    for (i, v) in out.iter_mut().enumerate() {
        let (j, rest) = (i % kg, i / kg);
        let (c, rest) = (rest % cg, rest / cg);
        let (t, group) = (rest % taps, rest / taps);
        *v = w[((group * kg + j) * cg + c) * taps + t];
    }
    out
}

/// y = act(conv(x, w) + bias + residual), `w` as `pack` made it.
pub(crate) fn forward<T: Real>(x: &[T], w: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
    let (cg, kg) = (g.c / g.groups, g.k / g.groups);
    y.par_chunks_mut((g.ow * g.k).max(1)).enumerate().for_each(|(row, y)| {
        let (n, oy) = (row / g.oh, row % g.oh);
        for ox in 0..g.ow {
            let sum = &mut y[ox * g.k..][..g.k];
            match e.bias {
                Some(bias) => sum.copy_from_slice(bias),
                None => sum.fill(T::zero()),
            }
            for (a, b) in (0..g.kh).flat_map(|a| (0..g.kw).map(move |b| (a, b))) {
                let (Some(iy), Some(ix)) = (g.row(oy, a), g.column(ox, b)) else { continue };
                let pixel = &x[((n * g.h + iy) * g.w + ix) * g.c..][..g.c];
                for group in 0..g.groups {
                    let taps = &w[((group * g.kh + a) * g.kw + b) * cg * kg..][..cg * kg];
                    let sum = &mut sum[group * kg..][..kg];
                    for (&v, taps) in pixel[group * cg..][..cg].iter().zip(taps.chunks_exact(kg)) {
                        multiply_add(sum, v, taps);
                    }
                }
            }
            if let Some(residual) = e.residual {
                let residual = &residual[(row * g.ow + ox) * g.k..][..g.k];
                sum.iter_mut().zip(residual).for_each(|(s, &r)| *s += r);
            }
            if e.act != Activation::Identity {
                sum.iter_mut().for_each(|s| *s = e.act.value(*s));
            }
        }
    });
}

/// The gradient of the input: each input pixel gathers from the output pixels that read it.
pub(crate) fn input_gradient<T: Real>(dy: &[T], w: &[T], g: &Geometry, dx: &mut [T], add: bool) {
    let (cg, kg) = (g.c / g.groups, g.k / g.groups);
    // Output channels innermost in `w` would make this a dot product; transposed, it is a row update.
    let mut transposed = Buffer::arbitrary(w.len());
    for (from, to) in w.chunks_exact(cg * kg).zip(transposed.chunks_exact_mut(cg * kg)) {
        for (j, to) in to.chunks_exact_mut(cg).enumerate() {
            to.iter_mut().enumerate().for_each(|(c, v)| *v = from[c * kg + j]);
        }
    }
    dx.par_chunks_mut((g.w * g.c).max(1)).enumerate().for_each(|(row, dx)| {
        let (n, y) = (row / g.h, row % g.h);
        if !add {
            dx.fill(T::zero());
        }
        for x in 0..g.w {
            let sum = &mut dx[x * g.c..][..g.c];
            for (a, b) in (0..g.kh).flat_map(|a| (0..g.kw).map(move |b| (a, b))) {
                let (Some(oy), Some(ox)) = (g.row_back(y, a), g.column_back(x, b)) else { continue };
                let pixel = &dy[((n * g.oh + oy) * g.ow + ox) * g.k..][..g.k];
                for group in 0..g.groups {
                    let taps = &transposed[((group * g.kh + a) * g.kw + b) * cg * kg..][..cg * kg];
                    let sum = &mut sum[group * cg..][..cg];
                    for (&v, taps) in pixel[group * kg..][..kg].iter().zip(taps.chunks_exact(cg)) {
                        multiply_add(sum, v, taps);
                    }
                }
            }
        }
    });
}

/// The gradient of the kernel, OIHW: one task per tap and input channel, over all images.
pub(crate) fn weight_gradient<T: Real>(x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
    let (cg, kg, taps) = (g.c / g.groups, g.k / g.groups, g.kh * g.kw);
    // One accumulator row per (group, tap, input channel), in `pack`'s order.
    let mut sums = Buffer::<T>::zeros(g.kernel_len());
    sums.par_chunks_mut(kg).enumerate().for_each(|(i, sum)| {
        let (c, rest) = (i % cg, i / cg);
        let (t, group) = (rest % taps, rest / taps);
        let (a, b) = (t / g.kw, t % g.kw);
        for (n, oy) in (0..g.n).flat_map(|n| (0..g.oh).map(move |oy| (n, oy))) {
            let Some(iy) = g.row(oy, a) else { continue };
            for ox in 0..g.ow {
                let Some(ix) = g.column(ox, b) else { continue };
                let v = x[((n * g.h + iy) * g.w + ix) * g.c + group * cg + c];
                multiply_add(sum, v, &dy[((n * g.oh + oy) * g.ow + ox) * g.k + group * kg..][..kg]);
            }
        }
    });
    for (i, &v) in sums.iter().enumerate() {
        let (j, rest) = (i % kg, i / kg);
        let (c, rest) = (rest % cg, rest / cg);
        let (t, group) = (rest % taps, rest / taps);
        dw[((group * kg + j) * cg + c) * taps + t] = v;
    }
}

#[inline(always)]
fn multiply_add<T: Real>(sum: &mut [T], v: T, row: &[T]) {
    for (s, &r) in sum.iter_mut().zip(row) {
        *s += v * r;
    }
}
