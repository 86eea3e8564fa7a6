//! Transforms a kernel to its values at the points.
// Loops over registers: the compiler unrolls a plain counter, and might not inline a closure.
#![allow(clippy::needless_range_loop)]

use super::transform::{kernel, kernel_gradient};
use crate::ops::buffer::Buffer;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::direct;
use crate::ops::kernels::conv::layout::{Blocks, Panels, cut};
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// From OIHW to [point][panel][block][channel of the block][channel of the panel]. `back`: for the gradient of the
/// input, the kernel mirrored, its input and output channels exchanged.
pub(crate) fn pack<T: Lanes, const P: usize>(level: Level, w: &[T], g: &Geometry, back: bool) -> Buffer<T> {
    let lanes = T::lanes(level);
    if back {
        let (blocks, panels) = direct::backward_layout(g, lanes);
        to_points::<T, P>(level, &direct::pack_backward(level, w, g), &blocks, &panels)
    } else {
        let (blocks, panels) = direct::forward_layout(g, lanes);
        to_points::<T, P>(level, &direct::pack(level, w, g), &blocks, &panels)
    }
}

/// From [panel][block][3][3][..] to [point][panel][block][..].
fn to_points<T: Lanes, const P: usize>(level: Level, plain: &[T], blocks: &Blocks, panels: &Panels) -> Buffer<T> {
    let depth = blocks.count * blocks.size;
    let point = panels.total() * depth;
    let mut out = Buffer::arbitrary(P * P * point);
    // A piece per panel and block at every point: those of one panel and block belong to one task.
    let lens: Vec<usize> =
        (0..panels.count()).flat_map(|p| vec![panels.width(p) * blocks.size; blocks.count]).collect();
    let mut tasks: Vec<Vec<&mut [T]>> = lens.iter().map(|_| Vec::with_capacity(P * P)).collect();
    for out in out.chunks_exact_mut(point) {
        tasks.iter_mut().zip(cut(out, lens.iter().copied())).for_each(|(task, piece)| task.push(piece));
    }
    tasks.into_par_iter().enumerate().for_each(|(i, points)| {
        let (p, b) = (i / blocks.count, i % blocks.count);
        let from = 9 * (panels.first(p) * depth + b * panels.width(p) * blocks.size);
        T::run(level, KernelToPoints::<T, P> { plain: &plain[from..], points });
    });
    out
}

/// The kernel's gradient from that of its values: from [point][panel][block][..] to [panel][block][3][3][..].
pub(super) fn from_points<T: Lanes, const P: usize>(
    level: Level,
    points: &[T],
    blocks: &Blocks,
    panels: &Panels,
) -> Buffer<T> {
    let depth = blocks.count * blocks.size;
    let point = panels.total() * depth;
    let mut out = Buffer::arbitrary(9 * point);
    let lens = (0..panels.count()).flat_map(|p| vec![9 * panels.width(p) * blocks.size; blocks.count]);
    cut(&mut out, lens).into_par_iter().enumerate().for_each(|(i, out)| {
        let (p, b) = (i / blocks.count, i % blocks.count);
        let from = panels.first(p) * depth + b * panels.width(p) * blocks.size;
        T::run(level, KernelFromPoints::<T, P> { points: &points[from..], point, out });
    });
    out
}

struct KernelToPoints<'a, T, const P: usize> {
    /// Nine runs, each of the length of one of `points`.
    plain: &'a [T],
    points: Vec<&'a mut [T]>,
}

impl<T: Lanes, const P: usize> Job<T> for KernelToPoints<'_, T, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(mut self, s: S) {
        let len = self.points[0].len();
        assert!(9 * len <= self.plain.len() && len.is_multiple_of(S::LANES));
        assert!(self.points.len() == P * P && self.points.iter().all(|p| p.len() == len));
        for at in (0..len).step_by(S::LANES) {
            let mut half = [[s.zero(); P]; 3];
            for j in 0..3 {
                let mut column = [s.zero(); 3];
                for i in 0..3 {
                    // SAFETY: nine runs of `len` elements, and a vector from `at` on lies within a run.
                    column[i] = unsafe { s.load(self.plain.as_ptr().add((i * 3 + j) * len + at)) };
                }
                half[j] = kernel::<S, P>(s, &column);
            }
            for i in 0..P {
                let row = kernel::<S, P>(s, &[half[0][i], half[1][i], half[2][i]]);
                for j in 0..P {
                    // SAFETY: each of the P x P pieces holds `len` elements (asserted above).
                    unsafe { s.store(self.points[i * P + j].as_mut_ptr().add(at), row[j]) };
                }
            }
        }
    }
}

struct KernelFromPoints<'a, T, const P: usize> {
    points: &'a [T],
    /// From one point to the next.
    point: usize,
    out: &'a mut [T],
}

impl<T: Lanes, const P: usize> Job<T> for KernelFromPoints<'_, T, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let len = self.out.len() / 9;
        assert!(len.is_multiple_of(S::LANES) && (P * P - 1) * self.point + len <= self.points.len());
        for at in (0..len).step_by(S::LANES) {
            let mut half = [[s.zero(); 3]; P];
            for j in 0..P {
                let mut column = [s.zero(); P];
                for i in 0..P {
                    // SAFETY: `len` elements at each point, and a vector from `at` on lies within them.
                    column[i] = unsafe { s.load(self.points.as_ptr().add((i * P + j) * self.point + at)) };
                }
                half[j] = kernel_gradient::<S, P>(s, &column);
            }
            for i in 0..3 {
                let mut row = [s.zero(); P];
                for j in 0..P {
                    row[j] = half[j][i];
                }
                let row = kernel_gradient::<S, P>(s, &row);
                for j in 0..3 {
                    // SAFETY: nine runs of `len` elements.
                    unsafe { s.store(self.out.as_mut_ptr().add((i * 3 + j) * len + at), row[j]) };
                }
            }
        }
    }
}
