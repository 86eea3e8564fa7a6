//! Layers: each holds its tensors and calls an operation in `ops`.

mod builder;
mod conv;
mod custom;
mod drop_path;
mod folded;
mod layer;
mod linear;

pub use builder::BlockInfo;
pub(crate) use builder::{Builder, Module};
pub(crate) use conv::{Conv, ConvSpec};
#[cfg(feature = "zoo")]
pub(crate) use custom::Custom;
pub use custom::LayerTensors;
pub(crate) use drop_path::{DropPath, at_block, with_drop_path};
pub(crate) use folded::{Folded, checksum};
pub use layer::{Conv2d, Layer, Linear};
