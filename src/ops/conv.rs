//! Convolution and its two gradients: chooses among the algorithms.

mod depthwise;
mod direct;
mod layout;
mod phases;
mod rows;
#[cfg(test)]
mod tests;

use super::geometry::Geometry;
use super::portable;
use super::real::{Algorithm, Epilogue, Packed};
use super::simd::{Lanes, Level};

/// The algorithm for this geometry.
pub(crate) fn algorithm(g: &Geometry) -> Algorithm {
    if g.c == 0 || g.k == 0 {
        return Algorithm::Portable;
    }
    if depthwise::fits(g) && g.c > 1 {
        return Algorithm::Depthwise;
    }
    Algorithm::Direct { stride: g.stride, dilation: g.dilation }
}

/// Packs an OIHW kernel.
pub(crate) fn pack<T: Lanes>(level: Level, algorithm: Algorithm, w: &[T], g: &Geometry) -> Packed<T> {
    let data = match algorithm {
        Algorithm::Portable => portable::conv::pack(w, g),
        Algorithm::Depthwise => depthwise::pack(w, g),
        Algorithm::Direct { .. } => direct::pack(level, w, g),
    };
    Packed::new(algorithm, data)
}

/// y = act(conv(x, w) + bias + residual)
pub(crate) fn forward<T: Lanes>(level: Level, x: &[T], w: &Packed<T>, g: &Geometry, e: &Epilogue<T>, y: &mut [T]) {
    match w.algorithm {
        Algorithm::Portable => portable::conv::forward(x, &w.data, g, e, y),
        Algorithm::Depthwise => depthwise::forward(level, x, &w.data, g, e, y),
        Algorithm::Direct { .. } => direct::forward(level, x, &w.data, g, e, y),
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
    }
}
