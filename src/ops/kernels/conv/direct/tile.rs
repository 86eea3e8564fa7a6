//! The innermost loops: sums of products that stay in registers.
// Loops over registers: the compiler unrolls a plain counter.
#![allow(clippy::needless_range_loop)]

use crate::ops::activation::Activation;
use crate::ops::simd::{Job, Lanes, Simd};

/// The positions of a tile's factors in the packed input: blocks of rows of runs of elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    pub blocks: usize,
    pub block_step: usize,
    pub rows: usize,
    pub row_step: usize,
    pub runs: usize,
    pub run_step: usize,
    /// Elements that follow each other.
    pub len: usize,
    /// From one pixel of the tile to the next.
    pub pitch: usize,
}

impl Walk {
    /// The same loops, merged where contiguous: each iteration of an outer loop costs as much as a few products.
    pub fn flat(mut self) -> Self {
        for _ in 0..2 {
            if self.runs == 1 {
                (self.runs, self.run_step) = (self.rows, self.row_step);
                (self.rows, self.row_step) = (self.blocks, self.block_step);
                (self.blocks, self.block_step) = (1, 0);
            }
        }
        self
    }

    /// Products per output element.
    pub fn depth(&self) -> usize {
        self.blocks * self.rows * self.runs * self.len
    }
    /// One past the last element that a tile of `pixels` reads.
    fn reach(&self, pixels: usize) -> usize {
        (self.blocks - 1) * self.block_step
            + (self.rows - 1) * self.row_step
            + (self.runs - 1) * self.run_step
            + self.len
            + (pixels - 1) * self.pitch
    }
}

/// A tile of a convolution's result: some pixels, one panel of channels.
pub(crate) struct Tile<'a, T> {
    pub walk: &'a Walk,
    pub input: &'a [T],
    pub panel: &'a [T],
    pub out: &'a mut [T],
    /// From one pixel to the next in `out` and `residual`.
    pub out_pitch: usize,
    /// Channels to store.
    pub channels: usize,
    pub bias: Option<&'a [T]>,
    pub residual: Option<&'a [T]>,
    /// Whether to add to the output.
    pub add: bool,
    pub act: Activation,
}

/// A copy of sums in memory: an array that is indexed by a variable cannot stay in registers, and the original must.
#[inline(always)]
fn in_memory<S: Simd, const M: usize, const N: usize>(s: S, held: &[[S::V; N]; M]) -> [[S::V; N]; M] {
    let mut sums = [[s.zero(); N]; M];
    for i in 0..M {
        for v in 0..N {
            sums[i][v] = held[i][v];
        }
    }
    sums
}

/// A tile of `M` pixels and `N` vectors; `P` is the pitch if it is known beforehand, else 0.
struct Sized<'t, 'a, T, const M: usize, const N: usize, const P: usize>(&'t mut Tile<'a, T>);

impl<T: Lanes, const M: usize, const N: usize, const P: usize> Job<T> for Sized<'_, '_, T, M, N, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let t = self.0;
        let w = *t.walk;
        let pitch = if P == 0 { w.pitch } else { P };
        let last = (M - 1) * t.out_pitch + t.channels;
        // These make the loads and stores below safe; they cost nothing beside the loops.
        assert!(pitch == w.pitch && w.depth() > 0 && w.reach(M) <= t.input.len());
        assert!(w.depth() * N * S::LANES <= t.panel.len() && last <= t.out.len() && t.channels <= N * S::LANES);
        assert!(t.residual.is_none_or(|r| last <= r.len()) && t.bias.is_none_or(|b| t.channels <= b.len()));
        for i in 0..M {
            s.prefetch(t.out.as_ptr().wrapping_add(i * t.out_pitch));
            if N > 1 {
                s.prefetch(t.out.as_ptr().wrapping_add(i * t.out_pitch + S::LANES));
            }
        }
        let mut held = [[s.zero(); N]; M];
        let mut b = t.panel.as_ptr();
        for block in 0..w.blocks {
            for row in 0..w.rows {
                for run in 0..w.runs {
                    let at = block * w.block_step + row * w.row_step + run * w.run_step;
                    let mut a = t.input.as_ptr().wrapping_add(at);
                    for _ in 0..w.len {
                        // SAFETY: pixel i of this step lies below `reach`; the panel holds `depth` steps of N vectors.
                        unsafe {
                            let mut factors = [s.zero(); N];
                            for v in 0..N {
                                factors[v] = s.load(b.wrapping_add(v * S::LANES));
                            }
                            for i in 0..M {
                                let x = s.broadcast(a.wrapping_add(i * pitch));
                                for v in 0..N {
                                    held[i][v] = s.mul_add(x, factors[v], held[i][v]);
                                }
                            }
                        }
                        a = a.wrapping_add(1);
                        b = b.wrapping_add(N * S::LANES);
                    }
                }
            }
        }
        // Most tiles are whole, and go from the registers to where they belong: each of the common ends has its own
        // loop.
        macro_rules! store_whole {
            ($at:ident, $v:ident, $sum:ident => $y:expr) => {{
                for i in 0..M {
                    for $v in 0..N {
                        let $at = i * t.out_pitch + $v * S::LANES;
                        let $sum = held[i][$v];
                        // SAFETY: all channels of pixel i, N whole vectors, lie below `last`, in `out` and in a
                        // residual.
                        unsafe {
                            let y = $y;
                            s.store(t.out.as_mut_ptr().add($at), y);
                        }
                    }
                }
                return;
            }};
        }
        let whole = t.channels == N * S::LANES;
        if whole && t.bias.is_none() && t.residual.is_none() && t.act == Activation::Identity {
            if t.add {
                store_whole!(at, v, sum => s.add(sum, s.load(t.out.as_ptr().add(at))));
            }
            store_whole!(at, v, sum => sum);
        }
        let (low, high) = match t.act {
            Activation::Relu => (0.0, f64::INFINITY),
            Activation::Relu6 => (0.0, 6.0),
            _ => (f64::NEG_INFINITY, f64::INFINITY),
        };
        let (low, high) = (s.splat(T::from_f64(low)), s.splat(T::from_f64(high)));
        // NaN stays NaN: both take their second argument then.
        let clamp = |v| s.min(high, s.max(low, v));
        if whole && !t.add {
            let mut bias = [s.zero(); N];
            for v in 0..N {
                // SAFETY: a bias has at least as many elements as there are channels (asserted above), here N vectors.
                bias[v] = t.bias.map_or(bias[v], |b| unsafe { s.load(b.as_ptr().add(v * S::LANES)) });
            }
            if let Some(residual) = t.residual {
                store_whole!(at, v, sum => clamp(s.add(s.add(sum, bias[v]), s.load(residual.as_ptr().add(at)))));
            }
            store_whole!(at, v, sum => clamp(s.add(sum, bias[v])));
        }
        let sums = in_memory(s, &held);
        for v in 0..N {
            let n = t.channels.saturating_sub(v * S::LANES).min(S::LANES);
            if n == 0 {
                break;
            }
            // SAFETY: n channels from v * LANES on are below `channels`, so every access is below `last`.
            unsafe {
                let get = |p: *const T| s.load_first(p, n);
                let bias = if let Some(bias) = t.bias { get(bias.as_ptr().add(v * S::LANES)) } else { s.zero() };
                for i in 0..M {
                    let at = i * t.out_pitch + v * S::LANES;
                    let p = t.out.as_mut_ptr().add(at);
                    let mut sum = s.add(sums[i][v], bias);
                    if let Some(residual) = t.residual {
                        sum = s.add(sum, get(residual.as_ptr().add(at)));
                    }
                    if t.add {
                        sum = s.add(sum, get(p));
                    }
                    s.store_first(p, clamp(sum), n);
                }
            }
        }
    }
}

/// The tile heights that are compiled, for one vector and for two: not all, for the compiler's sake.
const SIZES: [&[usize]; 2] =
    [&[1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 14, 16, 20, 21, 24, 28], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14]];

/// The height of the next tile where `left` rows are left: tiles as even as the compiled heights allow.
#[inline(always)]
pub(crate) fn next_size<S: Simd>(left: usize, vectors: usize) -> usize {
    let most = S::TILE[vectors - 1];
    let tiles = left.div_ceil(most);
    for tiles in [tiles, tiles + 1] {
        for &size in SIZES[vectors - 1] {
            if left.div_ceil(tiles) <= size && size <= most && size <= left {
                return size;
            }
        }
    }
    1
}

/// Evaluates the expression with the height as a constant.
macro_rules! by_size {
    ($value:expr, $most:expr, $size:ident => $body:expr; $($height:literal)*) => {
        match $value {
            $($height if $height <= $most => {
                const $size: usize = $height;
                $body
            })*
            _ => debug_assert!(false, "no tile of this height"),
        }
    };
}
macro_rules! one_vector {
    ($value:expr, $most:expr, $size:ident => $body:expr) => {
        by_size!($value, $most, $size => $body; 1 2 3 4 6 7 8 9 10 12 14 16 20 21 24 28)
    };
}
macro_rules! two_vectors {
    ($value:expr, $most:expr, $size:ident => $body:expr) => {
        by_size!($value, $most, $size => $body; 1 2 3 4 5 6 7 8 9 10 11 12 14)
    };
}

/// Computes a tile of `pixels` pixels (from `next_size`) and `vectors` vectors of channels.
#[inline(always)]
pub(crate) fn product<S: Simd>(s: S, pixels: usize, vectors: usize, mut t: Tile<S::T>) {
    let t = &mut t;
    match (vectors, t.walk.pitch) {
        (1, 16) if S::FIXED_PITCH => one_vector!(pixels, S::TILE[0], M => s.call(Sized::<_, M, 1, 16>(t))),
        (1, _) => one_vector!(pixels, S::TILE[0], M => s.call(Sized::<_, M, 1, 0>(t))),
        (_, 16) if S::FIXED_PITCH => two_vectors!(pixels, S::TILE[1], M => s.call(Sized::<_, M, 2, 16>(t))),
        (_, 32) if S::FIXED_PITCH => two_vectors!(pixels, S::TILE[1], M => s.call(Sized::<_, M, 2, 32>(t))),
        _ => two_vectors!(pixels, S::TILE[1], M => s.call(Sized::<_, M, 2, 0>(t))),
    }
}

/// A tile of a kernel's gradient: some (tap, input channel) pairs, one panel of output channels, summed over pixels.
pub(crate) struct GradientTile<'a, T> {
    pub images: usize,
    pub rows: usize,
    pub columns: usize,
    pub input: &'a [T],
    pub image_step: usize,
    pub row_step: usize,
    /// From one pixel to the next in `input`.
    pub pitch: usize,
    /// Gradients of the result, [image][row][column][width].
    pub panel: &'a [T],
    pub panel_image: usize,
    pub out: &'a mut [T],
    pub add: bool,
}

struct SizedGradient<'t, 'a, T, const M: usize, const N: usize>(&'t mut GradientTile<'a, T>);

impl<T: Lanes, const M: usize, const N: usize> Job<T> for SizedGradient<'_, '_, T, M, N> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let t = self.0;
        let width = N * S::LANES;
        assert!(t.images > 0 && t.rows > 0 && t.columns > 0 && M * width <= t.out.len());
        let reach = (t.images - 1) * t.image_step + (t.rows - 1) * t.row_step + (t.columns - 1) * t.pitch + M;
        let panel_reach = (t.images - 1) * t.panel_image + t.rows * t.columns * width;
        assert!(reach <= t.input.len() && panel_reach <= t.panel.len());
        let mut held = [[s.zero(); N]; M];
        for image in 0..t.images {
            let mut b = t.panel.as_ptr().wrapping_add(image * t.panel_image);
            for row in 0..t.rows {
                let mut a = t.input.as_ptr().wrapping_add(image * t.image_step + row * t.row_step);
                for _ in 0..t.columns {
                    // SAFETY: `reach` and `panel_reach` bound all positions.
                    unsafe {
                        let mut factors = [s.zero(); N];
                        for v in 0..N {
                            factors[v] = s.load(b.wrapping_add(v * S::LANES));
                        }
                        for i in 0..M {
                            let x = s.broadcast(a.wrapping_add(i));
                            for v in 0..N {
                                held[i][v] = s.mul_add(x, factors[v], held[i][v]);
                            }
                        }
                    }
                    a = a.wrapping_add(t.pitch);
                    b = b.wrapping_add(width);
                }
            }
        }
        let sums = in_memory(s, &held);
        for i in 0..M {
            for v in 0..N {
                // SAFETY: `out` holds M rows of `width` elements.
                unsafe {
                    let p = t.out.as_mut_ptr().add(i * width + v * S::LANES);
                    let sum = if t.add { s.add(sums[i][v], s.load(p)) } else { sums[i][v] };
                    s.store(p, sum);
                }
            }
        }
    }
}

/// Computes a tile of `pairs` pairs (from `next_size`) and `vectors` vectors of channels.
#[inline(always)]
pub(crate) fn gradient_product<S: Simd>(s: S, pairs: usize, vectors: usize, mut t: GradientTile<S::T>) {
    let t = &mut t;
    match vectors {
        1 => one_vector!(pairs, S::TILE[0], M => s.call(SizedGradient::<_, M, 1>(t))),
        _ => two_vectors!(pairs, S::TILE[1], M => s.call(SizedGradient::<_, M, 2>(t))),
    }
}
