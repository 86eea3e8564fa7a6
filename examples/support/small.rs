//! The small backbone and the images that come with the crate, so that an example needs no other files.
#![allow(dead_code)] // each example uses its part

use candle_finetune::Backbone;
use candle_finetune::candle_core::Device;
use std::path::PathBuf;

/// A small part of Fashion-MNIST: train, valid and test, ten classes.
pub fn images() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/fashion")
}

/// The ResNet-20 for 32 x 32 pixels that comes with the crate, trained on CIFAR-10.
pub fn backbone(device: &Device) -> candle_finetune::Result<Backbone> {
    Backbone::embedded(device)
}
