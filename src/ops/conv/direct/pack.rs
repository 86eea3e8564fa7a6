//! Orders of the kernel's numbers, for the result and for the gradient of the input.

use super::{backward_layout, forward_layout};
use crate::ops::buffer::Buffer;
use crate::ops::conv::layout::{Blocks, Panels, cut};
use crate::ops::conv::phases::Classes;
use crate::ops::geometry::Geometry;
use crate::ops::simd::{Lanes, Level};
use rayon::prelude::*;

/// From OIHW to [group][panel][block][kh][kw][input channel of the block][output channel of the panel].
pub(crate) fn pack<T: Lanes>(level: Level, w: &[T], g: &Geometry) -> Buffer<T> {
    let (blocks, panels) = forward_layout(g, T::lanes(level));
    let (cg, taps) = (g.c / g.groups, g.kh * g.kw);
    let depth = blocks.count * taps * blocks.size;
    let mut out = Buffer::arbitrary(g.groups * panels.total() * depth);
    let lens = (0..g.groups).flat_map(|_| (0..panels.count()).map(|p| panels.width(p) * depth));
    let list = cut(&mut out, lens);
    list.into_par_iter().enumerate().for_each(|(i, out)| {
        let (group, p) = (i / panels.count(), i % panels.count());
        let (width, valid, first) = (panels.width(p), panels.valid(p), group * panels.channels + panels.first(p));
        if valid < width || blocks.count * blocks.size > cg {
            out.fill(T::ZERO);
        }
        for (b, out) in out.chunks_exact_mut(taps * blocks.size * width).enumerate() {
            for j in 0..valid {
                let from = &w[((first + j) * cg + b * blocks.size) * taps..][..blocks.valid(b) * taps];
                for (c, from) in from.chunks_exact(taps).enumerate() {
                    for (t, &v) in from.iter().enumerate() {
                        out[(t * blocks.size + c) * width + j] = v;
                    }
                }
            }
        }
    });
    out
}

/// Numbers of one group's kernel in backward order, up to the class `(row, column)` of all.
pub(super) fn class_offset(blocks: &Blocks, panels: &Panels, axes: [Classes; 2], row: usize, column: usize) -> usize {
    let before = (0..row).map(|r| axes[0].len(r) * axes[1].taps).sum::<usize>()
        + axes[0].len(row) * (0..column).map(|c| axes[1].len(c)).sum::<usize>();
    before * blocks.count * blocks.size * panels.total()
}

/// From the forward order to [group][class][panel][block][class's kh][class's kw][output channel][input channel].
pub(crate) fn pack_backward<T: Lanes>(level: Level, forward: &[T], g: &Geometry) -> Buffer<T> {
    let lanes = T::lanes(level);
    let (from_blocks, from_panels) = forward_layout(g, lanes);
    let (blocks, panels) = backward_layout(g, lanes);
    let axes = [Classes::new(g.kh, g.stride, g.dilation), Classes::new(g.kw, g.stride, g.dilation)];
    let from_depth = from_blocks.count * g.kh * g.kw * from_blocks.size;
    let classes: Vec<(usize, usize)> =
        (0..axes[0].count()).flat_map(|r| (0..axes[1].count()).map(move |c| (r, c))).collect();
    let depth = |(r, c): (usize, usize)| blocks.count * axes[0].len(r) * axes[1].len(c) * blocks.size;
    let jobs: Vec<(usize, (usize, usize), usize)> = (0..g.groups)
        .flat_map(|group| classes.iter().map(move |&class| (group, class)))
        .flat_map(|(group, class)| (0..panels.count()).map(move |p| (group, class, p)))
        .collect();
    let mut out = Buffer::arbitrary(g.groups * blocks.count * blocks.size * g.kh * g.kw * panels.total());
    let list = cut(&mut out, jobs.iter().map(|&(_, class, p)| panels.width(p) * depth(class)));
    list.into_par_iter().zip(jobs).for_each(|(out, (group, (row, column), p))| {
        let (width, valid) = (panels.width(p), panels.valid(p));
        if valid < width || blocks.count * blocks.size > blocks.channels {
            out.fill(T::ZERO);
        }
        let forward = &forward[group * from_panels.total() * from_depth..];
        let mut steps = out.chunks_exact_mut(blocks.size * width);
        for b in 0..blocks.count {
            for (i, j) in (0..axes[0].len(row)).flat_map(|i| (0..axes[1].len(column)).map(move |j| (i, j))) {
                let t = axes[0].tap(row, i) * g.kw + axes[1].tap(column, j);
                let Some(out) = steps.next() else { return };
                for c in 0..valid {
                    let (from_block, from_c) =
                        ((panels.first(p) + c) / from_blocks.size, (panels.first(p) + c) % from_blocks.size);
                    for k in 0..blocks.valid(b) {
                        let channel = b * blocks.size + k;
                        let q = channel / (2 * lanes);
                        let at = from_panels.first(q) * from_depth
                            + ((from_block * g.kh * g.kw + t) * from_blocks.size + from_c) * from_panels.width(q);
                        out[k * width + c] = forward[at + channel - from_panels.first(q)];
                    }
                }
            }
        }
    });
    out
}
