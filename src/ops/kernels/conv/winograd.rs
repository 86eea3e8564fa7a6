//! Winograd's convolution of 3x3 kernels (Lavin and Gray 2015, arXiv 1509.09308).
//!
//! A tile of m x m outputs reads P x P inputs, P = m + 2. Read the inputs and the kernel as polynomials: their
//! product is known from its values at P points, and at a point it is one multiplication. So an output tile costs
//! P x P multiplications per pair of channels instead of 9 m m: 36 for 144 with m = 4, 16 for 36 with m = 2. What
//! remains is a matrix product over the channels for each of the P x P points, by the tiles of `direct`.
//!
//! Larger tiles save more and lose digits.

mod kernel_gradient;
mod pack;
mod product;
mod tiles;
mod transform;

pub(crate) use kernel_gradient::{weight_gradient, weight_gradient_len};
pub(crate) use pack::pack;
pub(crate) use product::{product, scratch_bytes};

use super::layout::Blocks;
use crate::ops::geometry::Geometry;

/// Whether the algorithm can do this geometry. Channels too few for whole vectors in a block are left to other
/// algorithms.
pub(crate) fn fits(g: &Geometry) -> bool {
    let roomy = |channels| Blocks::new(channels).pitch == 16;
    roomy(g.c) && roomy(g.k) && (g.kh, g.kw, g.stride, g.dilation, g.groups, g.pad) == (3, 3, 1, 1, 1, [1; 4])
}

/// Points per axis, P, where the algorithm pays off. It must not depend on the number of images: an image's result
/// would depend on the others in its batch.
pub(crate) fn points(g: &Geometry) -> Option<usize> {
    if !fits(g) || g.c < 16 || g.k < 16 {
        return None;
    }
    match g.h.min(g.w) {
        12.. => Some(6),
        4.. => Some(4),
        _ => None,
    }
}
