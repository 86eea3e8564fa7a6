//! The facts of one network.

use crate::blueprint::SizeRule;
use crate::input_spec::InputSpec;
use crate::params::TensorInit;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Images (N, 3, H, W) to features (N, feature_dim).
pub(super) type Features = Box<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// The facts of one network.
pub(super) struct Row {
    /// "zoo/" and timm's name, or that of its weights.
    pub name: &'static str,
    /// The hub's repository of weights whose tensors have the model's names.
    pub hub: &'static str,
    pub feature_dim: usize,
    /// The classifier's name in the model.
    pub classifier: &'static str,
    /// The preprocessing of the weights on the hub.
    pub spec: fn() -> InputSpec,
    /// Builds the model up to its features.
    pub build: fn(VarBuilder<'_>) -> Result<Features>,
    pub family: &'static Family,
}

/// The facts that the networks of a family share.
pub(super) struct Family {
    pub name: &'static str,
    /// How candle-transformers gives the features, for the table.
    pub features: &'static str,
    /// Whether a file of weights has a tensor that the model also does without, by the tensor's name and the network's.
    pub has: fn(tensor: &str, network: &str) -> bool,
    /// Initial values of tensors for which the model gives none.
    pub init: fn(tensor: &str) -> Option<TensorInit>,
    /// Tensors of rank 2 and more without weight decay: tokens and positions.
    pub is_position: fn(tensor: &str) -> bool,
    /// Why its parameters cannot be trained, if the backward pass does not reach all of them.
    pub cut: Option<&'static str>,
    /// Sizes of images that the model cannot take, although its tensors would allow them.
    pub sizes: Option<SizeRule>,
    /// Further notes, for the table.
    pub note: &'static str,
}
