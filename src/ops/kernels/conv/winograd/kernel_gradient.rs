//! The gradient of a convolution's kernel: a sum over all tiles, in an order that depends on the shape alone.

use super::pack::from_points;
use super::tiles::{Tiles, block_destinations, panel_destinations};
use super::transform::ToPoints;
use crate::ops::buffer::Buffer;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::direct::{self, GradientTile, gradient_product, next_size};
use crate::ops::kernels::conv::layout::{Blocks, Panels, cut};
use crate::ops::simd::{Job, Lanes, Level, Simd};
use rayon::prelude::*;

/// Tiles per run: those of a run lie together at every point.
const RUN: usize = 32;
/// Elements of values at the points that are held at once, and runs at least.
const HELD: usize = 3 << 19;
const RUNS: usize = 4;
/// Elements of the gradient at the points that are summed at once: they should stay in the last cache, for each of them
/// is read and written again for every `HELD` values.
const SUMS: usize = 2 << 20;

/// Elements of pooled memory that `weight_gradient` allocates temporarily, about: values at the points,
/// and the gradient in the direct order.
pub(crate) fn weight_gradient_len(g: &Geometry) -> usize {
    2 * HELD + g.kernel_len().min(SUMS)
}

/// dw = the gradient, OIHW.
pub(crate) fn weight_gradient<T: Lanes, const P: usize>(level: Level, x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
    let lanes = T::lanes(level);
    let (blocks, panels) = direct::forward_layout(g, lanes);
    let tiles = Tiles::new::<P>(g);
    let count = g.n * tiles.rows * tiles.columns;
    if count == 0 {
        return dw.fill(T::ZERO);
    }
    // Some panels of output channels after the others. What it costs, the inputs' values anew, is little.
    let at_once = (SUMS / (P * P * blocks.count * blocks.size * 2 * lanes)).max(1);
    for first in (0..panels.count()).step_by(at_once) {
        let channel = panels.first(first);
        let channels = (g.k - channel).min(at_once * 2 * lanes);
        let dw = &mut dw[channel * g.c * 9..][..channels * g.c * 9];
        some_channels::<T, P>(level, x, dy, g, channel, Panels { channels, lanes }, dw);
    }
}

/// The same for the output channels of `panels`, the first of which is `channel` of all.
fn some_channels<T: Lanes, const P: usize>(
    level: Level,
    x: &[T],
    dy: &[T],
    g: &Geometry,
    channel: usize,
    panels: Panels,
    dw: &mut [T],
) {
    let lanes = panels.lanes;
    let blocks = Blocks::new(g.c);
    let tiles = Tiles::new::<P>(g);
    let count = g.n * tiles.rows * tiles.columns;
    let depth = blocks.count * blocks.size;
    let (pitch, total) = (blocks.count * blocks.pitch, panels.total());
    let (run_x, run_dy) = (P * P * pitch * RUN, P * P * total * RUN);
    let runs = (HELD / (run_x + run_dy)).max(RUNS).min(count.div_ceil(RUN));
    let (mut values, mut gradients) = (Buffer::arbitrary(runs * run_x), Buffer::arbitrary(runs * run_dy));
    let x_destinations = block_destinations(&blocks, RUN, lanes);
    let mut dy_destinations = panel_destinations(&panels, RUN);
    dy_destinations.iter_mut().for_each(|destination| destination.channel += channel);
    let mut sums = Buffer::<T>::arbitrary(P * P * total * depth);
    for start in (0..count).step_by(runs * RUN) {
        let runs = (count - start).div_ceil(RUN).min(runs);
        let list = values.par_chunks_exact_mut(run_x).zip(gradients.par_chunks_exact_mut(run_dy));
        list.take(runs).with_max_len(1).enumerate().for_each(|(i, (values, gradients))| {
            let from = start + i * RUN;
            let count = RUN.min(count - from);
            if count < RUN {
                // The missing tiles of the last run add nothing.
                values.fill(T::ZERO);
                gradients.fill(T::ZERO);
            }
            let x = ToPoints::<T, P, false> {
                map: x,
                channels: g.c,
                tiles,
                from,
                count,
                destinations: &x_destinations,
                point: pitch * RUN,
                out: values,
            };
            T::run(level, x);
            let dy = ToPoints::<T, P, true> {
                map: dy,
                channels: g.k,
                tiles,
                from,
                count,
                destinations: &dy_destinations,
                point: total * RUN,
                out: gradients,
            };
            T::run(level, dy);
        });
        let lens = (0..P * P).flat_map(|_| (0..panels.count()).map(|p| panels.width(p) * depth));
        cut(&mut sums, lens).into_par_iter().with_max_len(1).enumerate().for_each(|(i, sums)| {
            let (point, p) = (i / panels.count(), i % panels.count());
            let job = Accumulate {
                runs,
                values: &values[point * pitch * RUN..],
                value_run: run_x,
                gradients: &gradients[(point * total + panels.first(p)) * RUN..],
                gradient_run: run_dy,
                blocks,
                vectors: panels.vectors(p),
                add: start > 0,
                sums,
            };
            T::run(level, job);
        });
    }
    drop((values, gradients));
    let plain = from_points::<T, P>(level, &sums, &blocks, &panels);
    drop(sums);
    direct::unpack(level, &blocks, &panels, 9, &plain, dw);
}

/// Sums the products at one point, for one panel and all blocks.
struct Accumulate<'a, T> {
    runs: usize,
    /// [run] (`value_run` elements apart), in it [block][tile][pitch].
    values: &'a [T],
    value_run: usize,
    /// [run] (`gradient_run` elements apart), in it [tile][width].
    gradients: &'a [T],
    gradient_run: usize,
    blocks: Blocks,
    vectors: usize,
    /// Whether to add to the sums, or to begin them.
    add: bool,
    /// [block][input channel][width]
    sums: &'a mut [T],
}

impl<T: Lanes> Job<T> for Accumulate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Blocks { size, pitch, .. } = self.blocks;
        let width = self.vectors * S::LANES;
        for (b, sums) in self.sums.chunks_exact_mut(size * width).enumerate() {
            let mut m = 0;
            while m < size {
                let pairs = next_size::<S>(size - m, self.vectors);
                let t = GradientTile {
                    images: self.runs,
                    rows: 1,
                    columns: RUN,
                    input: &self.values[b * RUN * pitch + m..],
                    image_step: self.value_run,
                    row_step: 0,
                    pitch,
                    panel: self.gradients,
                    panel_image: self.gradient_run,
                    out: &mut sums[m * width..][..pairs * width],
                    add: self.add,
                };
                gradient_product(s, pairs, self.vectors, t);
                m += pairs;
            }
        }
    }
}
