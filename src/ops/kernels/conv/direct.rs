//! Direct convolution: a product of small matrices whose sums stay in registers.
//!
//! A task copies the input rows that it needs into blocks of up to 16 channels, with the padding made explicit; the
//! kernel lies packed in panels of one or two vectors of output channels. A tile then holds some pixels times one
//! panel in registers, and runs over channels and taps: per step one or two loads of the panel and one broadcast per
//! pixel. No matrix of patches is ever made.

mod flatten;
mod forward;
mod input_gradient;
mod kernel_gradient;
mod pack;
mod tile;
mod unpack;

pub(crate) use flatten::{backward_layout, forward_layout};
pub(super) use forward::Grid;
pub(crate) use forward::forward;
pub(crate) use input_gradient::input_gradient;
pub(crate) use kernel_gradient::{weight_gradient, weight_gradient_len};
pub(crate) use pack::{pack, pack_backward};
pub(super) use tile::{GradientTile, Walk, gradient_product, next_size};
pub(super) use unpack::unpack;
