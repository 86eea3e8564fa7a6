//! The weights that the crate carries.

use crate::error::Result;
use crate::weights::Weights;

/// A ResNet-20 for 32 x 32 pixels with its classifier, as `examples/pretrain.rs` saved it.
static BYTES: &[u8] = include_bytes!("../assets/cifar_resnet20.safetensors");

/// The embedded network's tensors and description.
pub(crate) fn weights() -> Result<Weights> {
    Weights::from_bytes("the embedded cifar_resnet20.safetensors", BYTES)
}
