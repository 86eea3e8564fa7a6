//! Convolution and its two gradients: chooses among the algorithms.

pub(crate) mod dense;
mod depthwise;
mod direct;
mod layout;
mod phases;
mod rows;
#[cfg(test)]
mod tests;
mod winograd;

pub(crate) use direct::weight_gradient_memory as direct_gradient_memory;
pub(crate) use winograd::scratch as winograd_scratch;

use super::buffer::Buffer;
use super::geometry::Geometry;
use super::portable;
use super::real::{Algorithm, Epilogue};
use super::simd::{Lanes, Level};

/// The algorithm for this geometry.
pub(crate) fn algorithm(g: &Geometry) -> Algorithm {
    if g.c == 0 || g.k == 0 {
        return Algorithm::Portable;
    }
    if dense::fits(g) {
        return Algorithm::Dense;
    }
    if depthwise::fits(g) && g.c > 1 {
        return Algorithm::Depthwise;
    }
    match winograd::points(g) {
        Some(points) => Algorithm::Winograd { points },
        None => Algorithm::Direct { stride: g.stride, dilation: g.dilation },
    }
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

/// An OIHW kernel in the order of the loops for the result or (`back`) for the gradient of the input.
pub(crate) fn pack<T: Lanes>(level: Level, algorithm: Algorithm, w: &[T], g: &Geometry, back: bool) -> Buffer<T> {
    match (algorithm, back) {
        (Algorithm::Portable, _) => portable::conv::pack(w, g),
        (Algorithm::Depthwise, _) => depthwise::pack(w, g),
        (Algorithm::Dense, _) => Buffer::copy_of(w),
        (Algorithm::Direct { .. }, false) => direct::pack(level, w, g),
        (Algorithm::Direct { .. }, true) => direct::pack_backward(level, w, g),
        (Algorithm::Winograd { points }, _) => by_points!(points, P => winograd::pack::<T, P>(level, w, g, back)),
    }
}

/// y = act(conv(x, w) + bias + residual), `w` as `pack` made it.
pub(crate) fn forward<T: Lanes>(
    level: Level,
    algorithm: Algorithm,
    x: &[T],
    w: &[T],
    g: &Geometry,
    e: &Epilogue<T>,
    y: &mut [T],
) {
    match algorithm {
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

/// The gradient of the input, written or added; `w` as `pack` made it for the way back.
pub(crate) fn input_gradient<T: Lanes>(
    level: Level,
    algorithm: Algorithm,
    dy: &[T],
    w: &[T],
    g: &Geometry,
    dx: &mut [T],
    add: bool,
) {
    match algorithm {
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
pub(crate) fn weight_gradient<T: Lanes>(
    level: Level,
    algorithm: Algorithm,
    x: &[T],
    dy: &[T],
    g: &Geometry,
    dw: &mut [T],
) {
    match algorithm {
        Algorithm::Portable => portable::conv::weight_gradient(x, dy, g, dw),
        Algorithm::Depthwise => depthwise::weight_gradient(level, x, dy, g, dw),
        Algorithm::Dense => dense::weight_gradient(level, x, dy, g, dw),
        Algorithm::Direct { .. } => direct::weight_gradient(level, x, dy, g, dw),
        Algorithm::Winograd { points } => {
            by_points!(points, P => winograd::weight_gradient::<T, P>(level, x, dy, g, dw));
        }
    }
}
