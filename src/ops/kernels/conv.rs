//! Convolution and its two gradients: the choice among the algorithms, and the memory that each of them takes.

mod dense;
mod depthwise;
mod direct;
mod layout;
mod residues;
#[cfg(test)]
mod tests;
mod window;
mod winograd;

use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Epilogue;
use crate::ops::geometry::Geometry;
use crate::ops::portable;
use crate::ops::simd::{Lanes, Level};

pub(crate) use dense::in_order as dense_order;

/// A way to compute a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// Plain loops, any shape, any type.
    Portable,
    /// Tiles in registers (`direct`), any shape; the backward order depends on stride and dilation.
    Direct { stride: usize, dilation: usize },
    /// 3x3 kernels by their values at this many points per axis (`winograd`): 4 or 6.
    Winograd { points: usize },
    /// One kernel per channel (`depthwise`).
    Depthwise,
    /// A kernel as large as the input, read without packing (`dense`).
    Dense,
}

impl Algorithm {
    /// The algorithm for this geometry. It does not look at the number of images: an image's result must not depend on
    /// the others in its batch.
    fn of(g: &Geometry) -> Self {
        if g.c == 0 || g.k == 0 {
            return Self::Portable;
        }
        if dense::fits(g) {
            return Self::Dense;
        }
        if depthwise::fits(g) && g.c > 1 {
            return Self::Depthwise;
        }
        match winograd::points(g) {
            Some(points) => Self::Winograd { points },
            None => Self::Direct { stride: g.stride, dilation: g.dilation },
        }
    }
}

/// The chooser: the algorithm for this geometry, at the best level of this processor. The step and the memory model
/// both read it.
pub(crate) fn choose(g: &Geometry) -> Choice {
    Choice { level: Level::chosen(), algorithm: Algorithm::of(g) }
}

/// How one convolution is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice {
    level: Level,
    pub algorithm: Algorithm,
}

/// Evaluates the expression with the number of points per axis as a constant.
macro_rules! by_points {
    ($points:expr, $P:ident => $body:expr) => {
        if $points == 6 {
            const $P: usize = 6;
            $body
        } else {
            const $P: usize = 4;
            $body
        }
    };
}

/// The direction that a packed kernel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The result.
    Forward,
    /// The gradient of the input.
    Backward,
}

impl Choice {
    /// Whether kernels are read from their tensor without packing.
    pub fn reads_unpacked(self) -> bool {
        self.algorithm == Algorithm::Dense
    }

    /// Whether the gradient of the input reads the kernel in another packed order than the result does.
    pub fn packs_for_backward(self) -> bool {
        matches!(self.algorithm, Algorithm::Direct { .. } | Algorithm::Winograd { .. })
    }

    /// An OIHW kernel in the order in which the loops of this direction read it.
    pub fn pack<T: Lanes>(self, w: &[T], g: &Geometry, direction: Direction) -> Buffer<T> {
        let level = self.level;
        match (self.algorithm, direction) {
            (Algorithm::Portable, _) => portable::conv::pack(w, g),
            (Algorithm::Depthwise, _) => depthwise::pack(w, g),
            (Algorithm::Dense, _) => Buffer::copy_of(w),
            (Algorithm::Direct { .. }, Direction::Forward) => direct::pack(level, w, g),
            (Algorithm::Direct { .. }, Direction::Backward) => direct::pack_backward(level, w, g),
            (Algorithm::Winograd { points }, _) => {
                by_points!(points, P => winograd::pack::<T, P>(level, w, g, direction == Direction::Backward))
            }
        }
    }

    /// y = act(conv(x, w) + bias + residual); `w` as packed for `Direction::Forward`.
    pub fn forward<T: Lanes>(self, x: &[T], w: &[T], g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
        let level = self.level;
        match self.algorithm {
            Algorithm::Portable => portable::conv::forward(x, w, g, e, y),
            Algorithm::Depthwise => depthwise::forward(level, x, w, g, e, y),
            Algorithm::Dense => dense::forward(level, x, w, g, e, y),
            Algorithm::Direct { .. } => direct::forward(level, x, w, g, e, y),
            Algorithm::Winograd { points } => by_points!(points, P => {
                let sides = direct::forward_layout(g, T::lanes(level));
                winograd::product::<T, P>(level, x, w, g, sides, e, y, false);
            }),
        }
    }

    /// The gradient of the input, written or added; `w` as packed for `Direction::Backward`.
    pub fn input_gradient<T: Lanes>(self, dy: &[T], w: &[T], g: &Geometry, dx: &mut [T], add: bool) {
        let level = self.level;
        match self.algorithm {
            Algorithm::Portable => portable::conv::input_gradient(dy, w, g, dx, add),
            Algorithm::Depthwise => depthwise::input_gradient(level, dy, w, g, dx, add),
            Algorithm::Dense => dense::input_gradient(level, dy, w, g, dx, add),
            Algorithm::Direct { .. } => direct::input_gradient(level, dy, w, g, dx, add),
            Algorithm::Winograd { points } => by_points!(points, P => {
                let sides = direct::backward_layout(g, T::lanes(level));
                winograd::product::<T, P>(level, dy, w, g, sides, &Epilogue::NONE, dx, add);
            }),
        }
    }

    /// The gradient of the OIHW kernel.
    pub fn weight_gradient<T: Lanes>(self, x: &[T], dy: &[T], g: &Geometry, dw: &mut [T]) {
        let level = self.level;
        match self.algorithm {
            Algorithm::Portable => portable::conv::weight_gradient(x, dy, g, dw),
            Algorithm::Depthwise => depthwise::weight_gradient(level, x, dy, g, dw),
            Algorithm::Dense => dense::weight_gradient(level, x, dy, g, dw),
            Algorithm::Direct { .. } => direct::weight_gradient(level, x, dy, g, dw),
            Algorithm::Winograd { points } => {
                by_points!(points, P => winograd::weight_gradient::<T, P>(level, x, dy, g, dw));
            }
        }
    }

    /// Elements that `pack` allocates, intermediate copies included.
    pub fn packed_len(self, g: &Geometry) -> usize {
        match self.algorithm {
            Algorithm::Dense => 0,
            // The points, and the kernel in the direct order while they are computed.
            Algorithm::Winograd { points } => g.c * g.k * (points * points + 9),
            _ => g.kernel_len(),
        }
    }

    /// Elements of pooled memory that `weight_gradient` allocates temporarily, about.
    pub fn weight_gradient_len(self, g: &Geometry) -> usize {
        match self.algorithm {
            Algorithm::Winograd { .. } => winograd::weight_gradient_len(g),
            Algorithm::Direct { .. } => direct::weight_gradient_len(g),
            _ => 0,
        }
    }

    /// Bytes that each thread keeps as scratch memory, where they are many.
    pub fn scratch_bytes(self, g: &Geometry, element: usize) -> usize {
        match self.algorithm {
            Algorithm::Winograd { points } => winograd::scratch_bytes(points * points * g.c * g.k, element),
            _ => 0,
        }
    }
}

/// The elements from `from` on of the matrix whose row k, column c is the sum over the images of d[k] x[c].
pub(crate) fn outer<T: Lanes>(d: &[T], x: &[T], images: usize, from: usize, out: &mut [T]) {
    dense::outer(Level::chosen(), d, x, images, from, out);
}
