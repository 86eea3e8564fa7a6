//! The operations, one file or folder each, with their three forms side by side: the CPU form with its gradient, the
//! composed form of Candle's operations, and the symbolic form of the memory model.
//!
//! An operation that uses existing kernels is one new file here and its line below.

mod activate;
mod add;
mod average_pool;
mod class_token;
mod conv;
mod generalized_mean;
mod linear;
mod max_pool;
mod mean_pixels;
pub(super) mod rows;
mod scale;
mod subsample;
pub(super) mod weighted_loss;

pub(crate) use conv::{ConvStep, Norm};
#[cfg(test)]
pub(super) use linear::on_device;
pub(crate) use linear::{linear, linear_step, linear_symbolic};
