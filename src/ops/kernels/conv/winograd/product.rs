//! The forward pass of a Winograd convolution, and by the same steps the gradient of its input.

use super::tiles::{Tiles, block_destinations};
use super::transform::{FromPoints, ToPoints};
use crate::ops::activation::Activation;
use crate::ops::epilogue::Epilogue;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::direct::{Grid, Walk};
use crate::ops::kernels::conv::layout::{Blocks, Panels, cut};
use crate::ops::simd::{Lanes, Level, with_scratch};
use rayon::prelude::*;

/// y (+)= act(conv(x, w) + bias + residual), from `blocks` to `panels`; `w` as `pack` or `pack_backward` made it.
#[allow(clippy::too_many_arguments)] // a product's two sides, three arrays and what happens to the sums
pub(crate) fn product<T: Lanes, const P: usize>(
    level: Level,
    x: &[T],
    w: &[T],
    g: &Geometry,
    (blocks, panels): (Blocks, Panels),
    e: &Epilogue<T>,
    y: &mut [T],
    add: bool,
) {
    let tiles = Tiles::new::<P>(g);
    let rows = g.n * tiles.rows;
    let task = rows_per_task::<T, P>(rows, tiles.columns, &blocks, &panels);
    let row_len = g.w * panels.channels;
    let starts: Vec<usize> = (0..rows).step_by(task).collect();
    let end = |row: usize| (row + task).min(rows);
    let lens = starts.iter().map(|&row| (tiles.pixel_row(end(row)) - tiles.pixel_row(row)) * row_len);
    let list = cut(y, lens);
    list.into_par_iter().zip(starts).with_max_len(1).for_each(|(out, row)| {
        let (from, count) = (row * tiles.columns, (end(row) - row) * tiles.columns);
        let residual = e.residual.map(|r| &r[tiles.pixel_row(row) * row_len..][..out.len()]);
        let (pitch, total) = (blocks.count * blocks.pitch, panels.total());
        with_scratch(P * P * count * (pitch + total), |scratch| {
            let (values, products) = scratch.split_at_mut(P * P * count * pitch);
            let destinations = block_destinations(&blocks, count, panels.lanes);
            let point = count * pitch;
            let to = ToPoints::<T, P, false> {
                map: x,
                channels: blocks.channels,
                tiles,
                from,
                count,
                destinations: &destinations,
                point,
                out: values,
            };
            T::run(level, to);
            let depth = blocks.count * blocks.size;
            let kernels = w.chunks_exact(depth * total);
            let points = values.chunks_exact(point).zip(products.chunks_exact_mut(count * total)).zip(kernels);
            for ((input, out), kernel) in points {
                T::run(level, matrix_product(&blocks, &panels, count, input, kernel, out));
            }
            let from = FromPoints::<T, P> {
                products,
                pitch: total,
                tiles,
                from,
                count,
                out,
                channels: panels.channels,
                bias: e.bias,
                residual,
                add,
                act: e.act,
            };
            T::run(level, from);
        });
    });
}

/// The product at one point, [block][tile][pitch] times [panel][block][..] to [tile][channel].
fn matrix_product<'a, T>(
    blocks: &Blocks,
    panels: &Panels,
    count: usize,
    input: &'a [T],
    kernel: &'a [T],
    out: &'a mut [T],
) -> Grid<'a, T> {
    let walk = Walk {
        blocks: blocks.count,
        block_step: count * blocks.pitch,
        rows: 1,
        row_step: 0,
        runs: 1,
        run_step: 0,
        len: blocks.size,
        pitch: blocks.pitch,
    };
    Grid {
        walk,
        row_step: 0,
        rows: 1,
        columns: count,
        // Padding included: whole vectors are stored, and the output transform reads them.
        panels: Panels { channels: panels.total(), ..*panels },
        input,
        kernel,
        out,
        out_row: 0,
        out_pitch: panels.total(),
        bias: None,
        residual: None,
        add: false,
        act: Activation::Identity,
    }
}

/// Bytes of values and products that a thread keeps, for a kernel of this many elements at the points. (One row of
/// tiles of a very wide map may take more.)
pub(crate) fn scratch_bytes(kernel: usize, size: usize) -> usize {
    const KERNEL: usize = 700 << 10;
    const SMALL: usize = 400 << 10;
    const LARGE: usize = 768 << 10;
    const MOST: usize = 6 << 20;
    let kernel = kernel * size;
    if kernel <= KERNEL { SMALL } else { (kernel / 2).clamp(LARGE, MOST) }
}

/// Rows of tiles per task. Each point's kernel is read once per task, so a task should have many tiles; their
/// values and products should stay in the second-level cache, together with the kernel if that is small. The cut does
/// not change the result, so it may depend on the number of threads.
fn rows_per_task<T, const P: usize>(rows: usize, columns: usize, blocks: &Blocks, panels: &Panels) -> usize {
    let budget = scratch_bytes(P * P * blocks.channels * panels.total(), size_of::<T>());
    let row = P * P * columns * (blocks.count * blocks.pitch + panels.total()) * size_of::<T>();
    let most = (budget / row).max(1);
    let threads = rayon::current_num_threads();
    let size = most.min(rows.div_ceil(threads)).max(1);
    // Tasks of equal size, a multiple of the threads.
    rows.div_ceil(rows.div_ceil(size).next_multiple_of(threads).max(1)).max(1)
}
