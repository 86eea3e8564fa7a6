//! The network in the crate, and the labels of ImageNet-1k.

use crate::error::Result;
use crate::weights::Weights;

/// A ResNet-20 for 32 x 32 pixels with its classifier, saved by `examples/pretrain.rs`.
static BYTES: &[u8] = include_bytes!("../../assets/cifar_resnet20.safetensors");

/// The embedded network's tensors and description.
pub(super) fn weights() -> Result<Weights> {
    Weights::from_bytes("the embedded cifar_resnet20.safetensors", BYTES)
}

/// ImageNet-1k's classes in the order of their indices, one per line.
static IMAGENET: &str = include_str!("../../assets/imagenet1k_labels.txt");

/// The labels of ImageNet-1k's 1000 classes.
pub(crate) fn imagenet_labels() -> Vec<String> {
    IMAGENET.lines().map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_has_its_thousand_classes() {
        let labels = imagenet_labels();
        assert_eq!((labels.len(), labels[0].as_str(), labels[999].as_str()), (1000, "tench", "toilet tissue"));
        assert_eq!((labels[207].as_str(), labels[310].as_str()), ("golden retriever", "ant"));
        let mut sorted = labels.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), 1000, "every label names one class");
    }
}
