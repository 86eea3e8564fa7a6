//! Convolution and its two gradients: chooses among the algorithms.

mod depthwise;
mod direct;
mod layout;
mod phases;
mod rows;
#[cfg(test)]
mod tests;
mod winograd;

use super::geometry::Geometry;
use super::portable;
use super::real::{Algorithm, Epilogue, Packed};
use super::simd::{Lanes, Level};

/// The algorithm for this geometry and a kernel that is frozen or learns.
pub(crate) fn algorithm(g: &Geometry, frozen: bool) -> Algorithm {
    if g.c == 0 || g.k == 0 {
        return Algorithm::Portable;
    }
    if depthwise::fits(g) && g.c > 1 {
        return Algorithm::Depthwise;
    }
    match winograd::points(g) {
        Some(points) => Algorithm::Winograd { points, frozen },
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

/// Packs an OIHW kernel.
pub(crate) fn pack<T: Lanes>(level: Level, algorithm: Algorithm, w: &[T], g: &Geometry) -> Packed<T> {
    let data = match algorithm {
        Algorithm::Portable => portable::conv::pack(w, g),
        Algorithm::Depthwise => depthwise::pack(w, g),
        Algorithm::Direct { .. } | Algorithm::Winograd { frozen: false, .. } => direct::pack(level, w, g),
        Algorithm::Winograd { points, .. } => by_points!(points, P => winograd::pack::<T, P>(level, w, g)),
    };
    Packed::new(algorithm, data)
}

/// y = act(conv(x, w) + bias + residual)
pub(crate) fn forward<T: Lanes>(level: Level, x: &[T], w: &Packed<T>, g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
    match w.algorithm {
        Algorithm::Portable => portable::conv::forward(x, &w.data, g, e, y),
        Algorithm::Depthwise => depthwise::forward(level, x, &w.data, g, e, y),
        Algorithm::Direct { .. } => direct::forward(level, x, &w.data, g, e, y),
        Algorithm::Winograd { points, frozen } => by_points!(points, P => {
            let sides = direct::forward_layout(g, T::lanes(level));
            let made = (!frozen).then(|| winograd::to_points::<T, P>(level, &w.data, &sides.0, &sides.1));
            let kernel = made.as_ref().unwrap_or(&w.data);
            winograd::product::<T, P>(level, x, kernel, g, sides, e, y, false);
        }),
    }
}

/// The gradient of the input, written or added.
pub(crate) fn input_gradient<T: Lanes>(level: Level, dy: &[T], w: &Packed<T>, g: &Geometry, dx: &mut [T], add: bool) {
    match w.algorithm {
        Algorithm::Portable => portable::conv::input_gradient(dy, &w.data, g, dx, add),
        Algorithm::Depthwise => depthwise::input_gradient(level, dy, &w.data, g, dx, add),
        Algorithm::Direct { .. } => {
            let backward = w.backward(|| direct::pack_backward(level, &w.data, g));
            direct::input_gradient(level, dy, backward, g, dx, add);
        }
        Algorithm::Winograd { points, frozen } => by_points!(points, P => {
            let backward = w.backward(|| winograd::pack_backward::<T, P>(level, &w.data, frozen, g));
            let sides = direct::backward_layout(g, T::lanes(level));
            winograd::product::<T, P>(level, dy, backward, g, sides, &Epilogue::NONE, dx, add);
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
        Algorithm::Direct { .. } => direct::weight_gradient(level, x, dy, g, dw),
        Algorithm::Winograd { points, .. } => {
            by_points!(points, P => winograd::weight_gradient::<T, P>(level, x, dy, g, dw));
        }
    }
}
