//! Channels repeated until they fill vectors evenly.
//!
//! Channels rarely fill vectors evenly, so several pixels are taken as one: a *period* is the smallest run of whole
//! pixels that is also a whole number of groups of four vectors. Coefficients are repeated to that length, and then
//! the data is a plain stream, whatever the number of channels.

use crate::ops::buffer::Buffer;
use crate::ops::simd::{Lanes, Level};

/// Elements that one task handles, at least.
pub(super) const PIECE: usize = 1 << 14;
/// Vectors that are summed side by side.
pub(super) const GROUP: usize = 4;

/// Elements in a period of `c` channels.
pub(super) fn period<T: Lanes>(level: Level, c: usize) -> usize {
    let group = GROUP * T::lanes(level);
    group / gcd(c, group) * c
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whole periods that make about one piece.
pub(super) fn piece(period: usize) -> usize {
    PIECE.div_ceil(period).max(1) * period
}

/// The coefficients of the channels, repeated to a period.
pub(super) fn repeat<T: Lanes>(a: &[T], period: usize) -> Buffer<T> {
    let mut out = Buffer::arbitrary(period);
    for out in out.chunks_exact_mut(a.len().max(1)) {
        out.copy_from_slice(a);
    }
    out
}
