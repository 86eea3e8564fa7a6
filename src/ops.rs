//! Differentiable operations on images: fast on the CPU, composed of Candle's own operations elsewhere.
//!
//! This is the only room that knows a memory layout and the only one where `unsafe` may stand. Everything above
//! hands [`FeatureMap`]s around and never names an axis.
#![allow(unsafe_code)]
// Kernels are loops over numbered lanes and rows; written so, they become vectors. `v != v` asks for what is no number.
#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    clippy::needless_bitwise_bool,
    clippy::eq_op,
    clippy::struct_field_names
)]

mod activation;
mod buffer;
mod conv;
mod device;
mod filter;
mod geometry;
mod gradient;
mod graph;
mod map;
mod norm;
mod paper;
mod pool;
mod portable;
mod reading;
mod real;
mod rows;
mod simd;
mod update;
mod value;

#[cfg(test)]
mod tests;

pub(crate) use activation::Activation;
pub(crate) use buffer::release_pool;
pub(crate) use filter::Filter;
pub(crate) use geometry::Padding;
pub(crate) use gradient::{Gradient, Gradients};
pub(crate) use graph::{backward, is_finite, no_grad};
pub(crate) use map::{ConvStep, FeatureMap, Norm, linear, linear_sketch, linear_step};
pub(crate) use paper::{Aftermath, Sketch};
pub(crate) use real::with_slice;
pub(crate) use rows::{cross_entropy, softmax};
pub(crate) use update::{Moments, Rule, overwrite, update};
