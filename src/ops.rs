//! Differentiable operations on images. Only this module depends on a memory layout or contains `unsafe`.
//!
//! Code above passes [`FeatureMap`]s and never names an axis. Each operation has three forms:
//!
//! | form | input | purpose |
//! |---|---|---|
//! | CPU | NHWC buffers | the crate's own kernels, with gradients |
//! | composed | an NCHW tensor | Candle's operations, for other devices; tested on the CPU |
//! | symbolic | sizes | the memory model: what the CPU form allocates and saves, and its multiply-adds |
//!
//! From the bottom up: facts (`number`, `buffer`, `geometry`, `activation`, `epilogue`); `simd` and the plain loops of
//! `portable`; `kernels` with a chooser per operation; the graph (`gradient`, `graph`, `saved`, `filter`, `update`);
//! the forms of a feature map (`value`, `device`, `memory_model`) and `feature_map`, which joins them; the operations
//! in `op`.
#![allow(unsafe_code)]
// Kernels are loops over numbered lanes and rows, a form that the compiler vectorises. `v != v` tests for NaN.
#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    clippy::needless_bitwise_bool,
    clippy::eq_op,
    clippy::struct_field_names
)]

mod activation;
mod buffer;
mod device;
mod epilogue;
mod feature_map;
mod filter;
mod geometry;
mod gradient;
mod graph;
mod kernels;
mod memory_model;
mod number;
mod op;
mod portable;
mod saved;
mod simd;
mod update;
mod value;

/// The name of the instruction set that the kernels use.
pub(crate) fn instruction_set() -> &'static str {
    simd::Level::chosen().name()
}

#[cfg(test)]
mod tests;

pub(crate) use activation::Activation;
pub(crate) use buffer::release_pool;
pub(crate) use feature_map::FeatureMap;
pub(crate) use filter::Filter;
pub(crate) use geometry::Padding;
pub(crate) use gradient::{Gradient, Gradients};
pub(crate) use graph::{backward, is_finite, no_grad};
pub(crate) use memory_model::{StepMemory, Symbolic};
pub(crate) use number::with_slice;
pub(crate) use op::rows::{cross_entropy, softmax};
pub(crate) use op::weighted_loss::{LossTerms, weighted_loss};
pub(crate) use op::{ConvStep, Norm, linear, linear_step, linear_symbolic};
pub(crate) use update::{Moments, Rule, overwrite, update};
