//! The gradient of a convolution's kernel: a sum over all output pixels, in an order that depends on the shape alone.

use super::flatten::{Steps, compact, flatten, forward_layout};
use super::forward::walk;
use super::tile::{GradientTile, gradient_product, next_size};
use super::unpack::unpack;
use crate::ops::buffer::Buffer;
use crate::ops::geometry::Geometry;
use crate::ops::kernels::conv::layout::{Blocks, Panels, cut};
use crate::ops::kernels::conv::window::{Image, PackPanels, PackRows, Window};
use crate::ops::simd::{Job, Lanes, Level, Simd, with_scratch};
use rayon::prelude::*;

/// Gradients of at most this many elements are summed by several tasks, each in separate memory.
const SMALL: usize = 200_000;
/// Output pixels that are packed at once where the gradient is small.
const PIXELS: usize = 512;
/// Elements of a block and of a panel that tile after tile reads: they stay in the second-level cache.
const NEAR: usize = 48 * 1024;
/// Elements that are packed at once where the gradient is not small.
const PACKED_AT_ONCE: usize = 4 << 20;

/// Everything about the sums of one group that does not change from piece to piece.
#[derive(Clone, Copy)]
struct Plan<'a, T> {
    level: Level,
    x: &'a [T],
    dy: &'a [T],
    g: Geometry,
    steps: Steps,
    blocks: Blocks,
    panels: Panels,
    group: usize,
}

/// Some output rows of some images, packed.
#[derive(Clone, Copy)]
struct Packed<'a, T> {
    images: usize,
    rows: usize,
    window: Window,
    input: &'a [T],
    panels: &'a [T],
}

impl<T: Lanes> Plan<'_, T> {
    /// The input rows that `rows` output rows from `from` on read.
    fn window(&self, from: usize, rows: usize) -> Window {
        let g = &self.g;
        Window {
            top: (from * g.stride) as isize - g.pad[0] as isize,
            left: -(g.pad[1] as isize),
            rows: (rows - 1) * g.stride + (g.kh - 1) * g.dilation + 1,
            columns: (g.ow - 1) * g.stride + (g.kw - 1) * g.dilation + 1,
        }
    }

    fn panels_len(&self, rows: usize) -> usize {
        rows * self.g.ow * self.panels.total()
    }

    /// Elements of the group's gradient.
    fn len(&self) -> usize {
        self.panels.total() * self.depth()
    }

    fn depth(&self) -> usize {
        self.blocks.count * self.g.kh * self.g.kw * self.blocks.size
    }

    fn pack(&self, image: usize, from: usize, rows: usize, input: &mut [T], panels: &mut [T]) {
        let (g, group) = (&self.g, self.group);
        let source = Image {
            data: &self.x[image * self.steps.image..],
            h: g.h,
            w: g.w,
            row: self.steps.row,
            pitch: self.steps.pixel,
            first: group * self.blocks.channels,
        };
        let window = self.window(from, rows);
        T::run(self.level, PackRows { image: source, window, blocks: self.blocks, out: input });
        let data = &self.dy[(image * g.oh + from) * g.ow * g.k..][..rows * g.ow * g.k];
        let first = group * self.panels.channels;
        let pixels = rows * g.ow;
        T::run(self.level, PackPanels { data, pitch: g.k, first, pixels, panels: self.panels, out: panels });
    }

    /// Adds the products of the packed elements to the gradient of panel `p` and block `b`, or writes them.
    fn accumulate(&self, packed: Packed<T>, p: usize, b: usize, add: bool, out: &mut [T]) {
        T::run(self.level, Accumulate { plan: self, packed, p, b, add, out });
    }
}

struct Accumulate<'a, 'p, T> {
    plan: &'a Plan<'p, T>,
    packed: Packed<'a, T>,
    p: usize,
    b: usize,
    add: bool,
    out: &'a mut [T],
}

impl<T: Lanes> Job<T> for Accumulate<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let Self { plan, packed, p, b, add, out } = self;
        let Plan { g, blocks, panels, .. } = plan;
        let (vectors, width) = (panels.vectors(p), panels.width(p));
        let window = &packed.window;
        let walk = walk(blocks, window, [g.kh, g.kw], [g.dilation; 2], g.stride);
        let pixels = packed.rows * g.ow;
        // Contiguous rows are merged.
        let joined = g.stride * window.row_len(blocks) == g.ow * walk.pitch;
        let (tall, wide) = if joined { (1, pixels) } else { (packed.rows, g.ow) };
        let at_once = (NEAR / (window.block_len(blocks) + pixels * width)).clamp(1, packed.images);
        for image in (0..packed.images).step_by(at_once) {
            let input = &packed.input[image * window.len(blocks) + b * walk.block_step..];
            let panel = &packed.panels[image * panels.total() * pixels + panels.first(p) * pixels..];
            let mut to = 0;
            for row in 0..walk.rows {
                for run in 0..walk.runs {
                    let from = row * walk.row_step + run * walk.run_step;
                    let mut m = 0;
                    while m < walk.len {
                        let pairs = next_size::<S>(walk.len - m, vectors);
                        let t = GradientTile {
                            images: at_once.min(packed.images - image),
                            rows: tall,
                            columns: wide,
                            input: &input[from + m..],
                            image_step: window.len(blocks),
                            row_step: g.stride * window.row_len(blocks),
                            pitch: walk.pitch,
                            panel,
                            panel_image: panels.total() * pixels,
                            out: &mut out[to * width..][..pairs * width],
                            add: add || image > 0,
                        };
                        gradient_product(s, pairs, vectors, t);
                        m += pairs;
                        to += pairs;
                    }
                }
            }
        }
    }
}

/// dw = the gradient, OIHW.
pub(crate) fn weight_gradient<T: Lanes>(level: Level, x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
    if dy.is_empty() {
        dw.fill(T::ZERO);
        return;
    }
    let (blocks, panels) = forward_layout(g, T::lanes(level));
    let few = is_small(g);
    // Pixels are summed over here and fill no tile: short rows divide best.
    let (g, steps) = if few { flatten(compact(g), 1) } else { compact(g) };
    let one = dw.len() / g.groups;
    for (group, dw) in dw.chunks_exact_mut(one).enumerate() {
        let plan = Plan { level, x, dy, g, steps, blocks, panels, group };
        let sums = if few { small(&plan) } else { large(&plan, PACKED_AT_ONCE) };
        unpack(level, &blocks, &panels, g.kh * g.kw, &sums, dw);
    }
}

/// Elements that one group's sums take at most: in whole vectors, of the longest there are, so that the cut is the same
/// for all.
fn group_len(g: &Geometry) -> usize {
    (g.k / g.groups).next_multiple_of(16) * (g.c / g.groups) * g.kh * g.kw
}

fn is_small(g: &Geometry) -> bool {
    group_len(g) <= SMALL
}

/// Elements of pooled memory, about, that a gradient takes beside itself.
pub(crate) fn weight_gradient_len(g: &Geometry) -> usize {
    if g.output_len() == 0 {
        return 0;
    }
    if is_small(g) {
        return group_len(g) * Shares::new(&flatten(compact(g), 1).0).slices;
    }
    let (g, _) = &compact(g);
    group_len(g) + PACKED_AT_ONCE.min((g.input_len() + g.output_len()) / g.groups)
}

/// How the rows of a small gradient are divided among tasks. It depends on the shape alone, since it decides the order
/// of the sums.
#[derive(Debug)]
struct Shares {
    /// Units of rows in each image that are packed and summed at once.
    units: usize,
    /// Tasks, each of some units and with separate sums.
    slices: usize,
}

impl Shares {
    fn new(g: &Geometry) -> Self {
        const SLICES: usize = 32;
        /// Units that there should be at least, for a few threads.
        const UNITS: usize = 4;
        /// Minimum products per task.
        const WORK: usize = 1 << 19;
        let len = group_len(g);
        let tasks = (g.n * g.oh * g.ow * g.kernel_len() / g.groups / WORK).max(1);
        let units = g.oh.div_ceil((PIXELS / g.ow).clamp(1, g.oh)).max(UNITS.min(tasks).div_ceil(g.n)).min(g.oh);
        // Four or a multiple of it if nothing else limits them, so that few threads end together.
        let slices = SLICES.min((1usize << 20).div_ceil(len).next_multiple_of(4)).min(g.n * units).min(tasks);
        Self { units, slices }
    }
}

/// The start of part `i` of `parts`: parts of the same size, as nearly as can be.
fn part_start(whole: usize, i: usize, parts: usize) -> usize {
    whole * i / parts
}

/// Several tasks, each with separate sums over a part of the rows; then the sum of the sums, in order.
fn small<T: Lanes>(plan: &Plan<T>) -> Buffer<T> {
    let (g, len) = (&plan.g, plan.len());
    let Shares { units: per_image, slices } = Shares::new(g);
    let units = g.n * per_image;
    let rows = g.oh.div_ceil(per_image);
    let (window, panels_len) = (plan.window(0, rows), plan.panels_len(rows));
    let mut sums = Buffer::<T>::arbitrary(slices * len);
    sums.par_chunks_mut(len).with_max_len(1).enumerate().for_each(|(slice, sums)| {
        with_scratch(window.len(&plan.blocks) + panels_len, |scratch| {
            let (input, panels) = scratch.split_at_mut(window.len(&plan.blocks));
            let first = part_start(units, slice, slices);
            for unit in first..part_start(units, slice + 1, slices) {
                let (image, i) = (unit / per_image, unit % per_image);
                let from = part_start(g.oh, i, per_image);
                let rows = part_start(g.oh, i + 1, per_image) - from;
                plan.pack(image, from, rows, input, panels);
                let packed = Packed { images: 1, rows, window: plan.window(from, rows), input, panels };
                let pairs = plan.depth() / plan.blocks.count;
                let mut products = |p: usize, b: usize| {
                    let width = plan.panels.width(p);
                    let at = plan.panels.first(p) * plan.depth() + b * pairs * width;
                    plan.accumulate(packed, p, b, unit > first, &mut sums[at..][..pairs * width]);
                };
                // The smaller side stays in cache while the larger one is read once.
                if window.len(&plan.blocks) > panels_len {
                    (0..plan.blocks.count).for_each(|b| (0..plan.panels.count()).for_each(|p| products(p, b)));
                } else {
                    (0..plan.panels.count()).for_each(|p| (0..plan.blocks.count).for_each(|b| products(p, b)));
                }
            }
        });
    });
    let (total, rest) = sums.split_at_mut(len);
    let size = (len / 16).max(1024);
    total.par_chunks_mut(size).enumerate().for_each(|(i, total)| {
        for other in rest.chunks_exact(len) {
            total.iter_mut().zip(&other[i * size..]).for_each(|(t, &o)| *t += o);
        }
    });
    sums
}

/// One task per panel and block, each over the images that fit in `packed` elements, then over the next ones.
fn large<T: Lanes>(plan: &Plan<T>, packed: usize) -> Buffer<T> {
    let g = &plan.g;
    let window = plan.window(0, g.oh);
    let (input_len, panels_len) = (window.len(&plan.blocks), plan.panels_len(g.oh));
    let at_once = (packed / (input_len + panels_len)).clamp(1, g.n);
    let (mut input, mut panels) = (Buffer::arbitrary(at_once * input_len), Buffer::arbitrary(at_once * panels_len));
    let mut sums = Buffer::<T>::arbitrary(plan.len());
    let pairs = plan.depth() / plan.blocks.count;
    for from in (0..g.n).step_by(at_once) {
        let images = at_once.min(g.n - from);
        let packs = input.par_chunks_exact_mut(input_len).zip(panels.par_chunks_exact_mut(panels_len));
        packs.take(images).with_max_len(1).enumerate().for_each(|(i, (input, panels))| {
            plan.pack(from + i, 0, g.oh, input, panels);
        });
        let packed = Packed { images, rows: g.oh, window, input: &input, panels: &panels };
        let widths = (0..plan.panels.count()).map(|p| plan.panels.width(p));
        let lens = widths.flat_map(|width| (0..plan.blocks.count).map(move |_| pairs * width));
        cut(&mut sums, lens).into_par_iter().with_max_len(1).enumerate().for_each(|(i, sums)| {
            plan.accumulate(packed, i / plan.blocks.count, i % plan.blocks.count, from > 0, sums);
        });
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::geometry::Padding;

    fn geometry(n: usize, size: [usize; 2], c: usize, k: usize) -> Geometry {
        Geometry::new([n, size[0], size[1], c], (k, c, 3, 3), 1, 1, 1, Padding::Even(1)).unwrap()
    }

    #[test]
    fn rows_are_shared_out_evenly() {
        for (n, h, w) in (1..9).flat_map(|n| (1..70).flat_map(move |h| [1, 7, 57, 300, 900].map(|w| (n, h, w)))) {
            let g = geometry(n, [h, w], 64, 64);
            let Shares { units, slices } = Shares::new(&g);
            let heights = (0..units).map(|i| part_start(h, i + 1, units) - part_start(h, i, units));
            let (least, most) = (heights.clone().min().unwrap(), heights.max().unwrap());
            assert!(least > 0 && most - least <= 1 && (most == 1 || most * w <= PIXELS), "{n} {h} {w}: {units}");
            assert!((1..=n * units).contains(&slices), "{n} {h} {w}: {units} {slices}");
            let tasks = (n * h * w * g.kernel_len()) >> 19;
            assert!(slices >= 4.min(tasks).min(n * h), "{n} {h} {w}: {units} {slices}");
        }
    }

    #[test]
    fn no_image_takes_no_memory() {
        let g = Geometry::new([0, 6, 6, 32], (48, 32, 1, 1), 1, 1, 1, Padding::Even(0)).unwrap();
        assert_eq!(weight_gradient_len(&g), 0);
    }

    #[test]
    fn large_gradients_go_on_with_the_next_images() {
        let g = geometry(5, [6, 7], 40, 24);
        let elements = |len: usize| (0..len).map(|i| ((i * 37 % 101) as f64 - 50.0) / 50.0).collect::<Vec<_>>();
        let (x, dy) = (elements(g.input_len()), elements(g.output_len()));
        for level in Level::available() {
            let (blocks, panels) = forward_layout(&g, f64::lanes(level));
            let plan = Plan { level, x: &x, dy: &dy, g, steps: Steps::of(&g), blocks, panels, group: 0 };
            let one = plan.window(0, g.oh).len(&blocks) + plan.panels_len(g.oh);
            let all = large(&plan, 5 * one);
            for images in 1..5 {
                let parts = large(&plan, images * one);
                assert!(all.iter().zip(&parts[..]).all(|(a, b)| (a - b).abs() < 1e-11), "{images} at once");
            }
        }
    }
}
