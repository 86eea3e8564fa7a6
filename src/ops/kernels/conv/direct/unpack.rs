//! Unpacks the gradient of a kernel, from the order of its sums to OIHW.

use super::pack::PackedOrder;
use crate::ops::kernels::conv::layout::{Blocks, Panels, cut};
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// From [panel][block][kh][kw][input channel][output channel] to OIHW.
pub(in crate::ops::kernels::conv) fn unpack<T: Lanes>(
    level: Level,
    blocks: &Blocks,
    panels: &Panels,
    taps: usize,
    sums: &[T],
    dw: &mut [T],
) {
    let depth = blocks.count * taps * blocks.size;
    let lens = (0..panels.count()).map(|p| panels.valid(p) * blocks.channels * taps);
    cut(dw, lens).into_par_iter().enumerate().for_each(|(p, dw)| {
        let width = panels.width(p);
        let sums = &sums[panels.first(p) * depth..][..width * depth];
        for (b, sums) in sums.chunks_exact(taps * blocks.size * width).enumerate() {
            let dw = &mut dw[b * blocks.size * taps..];
            let order = PackedOrder { taps, size: blocks.size, width };
            let (run, outputs) = (blocks.valid(b) * taps, panels.valid(p));
            T::run(level, UnpackBlock { sums, order, dw, pitch: blocks.channels * taps, run, outputs });
        }
    });
}

/// From the order of one panel and block to OIHW: `run` elements of each output channel, one of which begins every
/// `pitch`.
struct UnpackBlock<'a, T> {
    sums: &'a [T],
    order: PackedOrder,
    dw: &'a mut [T],
    pitch: usize,
    run: usize,
    outputs: usize,
}

impl<T: Lanes> Job<T> for UnpackBlock<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { sums, order, dw, pitch, run, outputs } = self;
        // As when packing: LANES x LANES blocks, which may overlap.
        let in_squares = if run < S::LANES { 0 } else { outputs / S::LANES * S::LANES };
        assert!(in_squares == 0 || (in_squares - 1) * pitch + run <= dw.len() && in_squares <= order.width);
        assert!(run <= order.size * order.taps && order.taps * order.size * order.width <= sums.len());
        for j in (0..in_squares).step_by(S::LANES) {
            for i in (0..run).step_by(S::LANES) {
                let i = i.min(run - S::LANES);
                let mut rows = [s.zero(); 16];
                for (k, row) in rows.iter_mut().enumerate().take(S::LANES) {
                    // SAFETY: element i + k lies within the run, whose place has room for `width` elements.
                    *row = unsafe { s.load(sums.as_ptr().add(order.of(i + k) + j)) };
                }
                s.transpose(&mut rows);
                for (k, row) in rows.iter().enumerate().take(S::LANES) {
                    // SAFETY: output channel j + k is below `in_squares`, and LANES elements from i on lie within its
                    // run.
                    unsafe { s.store(dw.as_mut_ptr().add((j + k) * pitch + i), *row) };
                }
            }
        }
        for j in in_squares..outputs {
            for (i, v) in dw[j * pitch..][..run].iter_mut().enumerate() {
                *v = sums[order.of(i) + j];
            }
        }
    }
}
