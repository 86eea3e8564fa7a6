//! Max-pool: the portable rows, compiled for each instruction set.

use crate::ops::geometry::Geometry;
use crate::ops::portable::pool::{max_gradient_row, max_row};
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// The chooser: the best level of this processor.
pub(crate) fn choose() -> MaxPool {
    MaxPool { level: Level::chosen() }
}

/// Max-pool, at one level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MaxPool {
    level: Level,
}

struct MaxRow<'a, T> {
    x: &'a [T],
    g: &'a Geometry,
    row: usize,
    y: &'a mut [T],
    tap: &'a mut [u8],
}

impl<T: Lanes> Job<T> for MaxRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, _: S) {
        let g = self.g;
        max_row(self.x, g, self.row / g.oh, self.row % g.oh, self.y, self.tap);
    }
}

struct MaxGradientRow<'a, T> {
    dy: &'a [T],
    tap: &'a [u8],
    g: &'a Geometry,
    row: usize,
    dx: &'a mut [T],
    add: bool,
}

impl<T: Lanes> Job<T> for MaxGradientRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, _: S) {
        let g = self.g;
        max_gradient_row(self.dy, self.tap, g, self.row / g.h, self.row % g.h, self.dx, self.add);
    }
}

impl MaxPool {
    /// The maximum of each window and, in `tap`, its first position.
    pub fn forward<T: Lanes>(self, x: &[T], g: &Geometry, y: &mut [T], tap: &mut [u8]) {
        let row = (g.ow * g.c).max(1);
        y.par_chunks_mut(row).zip(tap.par_chunks_mut(row)).enumerate().for_each(|(row, (y, tap))| {
            T::run(self.level, MaxRow { x, g, row, y, tap });
        });
    }

    /// The gradient of max-pool's input, written or added.
    pub fn gradient<T: Lanes>(self, dy: &[T], tap: &[u8], g: &Geometry, dx: &mut [T], add: bool) {
        dx.par_chunks_mut((g.w * g.c).max(1)).enumerate().for_each(|(row, dx)| {
            T::run(self.level, MaxGradientRow { dy, tap, g, row, dx, add });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::geometry::Padding;
    use crate::ops::portable::pool;

    fn elements(len: usize) -> Vec<f32> {
        // Few different values, so that windows have ties.
        (0..len).map(|i| ((i * 7919 + i / 13 * 104_729) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn all_levels_agree_with_the_plain_loops_bit_for_bit() {
        for (dims, kernel, stride, pad) in [
            ([2, 9, 8, 17], 3, 2, [1; 4]),
            ([1, 7, 7, 64], 2, 2, [0; 4]),
            ([2, 5, 6, 3], 5, 1, [2; 4]),
            ([1, 4, 4, 33], 3, 3, [2, 0, 1, 2]),
            ([3, 1, 1, 1], 1, 1, [0; 4]),
        ] {
            let c = dims[3];
            let g = Geometry::new(dims, (c, 1, kernel, kernel), stride, 1, c, Padding::Sides(pad)).unwrap();
            let mut x = elements(g.input_len());
            x[0] = f32::NAN;
            let dy = elements(g.output_len());
            let (mut y, mut tap) = (vec![0.0; g.output_len()], vec![0; g.output_len()]);
            pool::max(&x, &g, &mut y, &mut tap);
            let mut dx = x.clone();
            pool::max_gradient(&dy, &tap, &g, &mut dx, true);
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for level in Level::available() {
                let (mut fast, mut fast_tap) = (vec![1.0; y.len()], vec![9; y.len()]);
                MaxPool { level }.forward(&x, &g, &mut fast, &mut fast_tap);
                assert_eq!((bits(&fast), &fast_tap), (bits(&y), &tap));
                let mut fast = x.clone();
                MaxPool { level }.gradient(&dy, &tap, &g, &mut fast, true);
                assert_eq!(bits(&fast), bits(&dx));
            }
        }
    }

    #[test]
    fn nan_stays_and_ties_go_to_the_first() {
        let g = Geometry::new([1, 1, 4, 1], (1, 1, 1, 4), 1, 1, 1, Padding::Even(0)).unwrap();
        for level in Level::available() {
            let (mut y, mut tap) = ([0.0f32], [0u8]);
            MaxPool { level }.forward(&[1.0, f32::NAN, 3.0, 2.0], &g, &mut y, &mut tap);
            assert!(y[0].is_nan() && tap[0] == 1);
            MaxPool { level }.forward(&[1.0, 3.0, 3.0, 2.0], &g, &mut y, &mut tap);
            assert!(y[0] == 3.0 && tap[0] == 1);
        }
    }
}
