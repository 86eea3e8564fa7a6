//! ConvNeXt (Liu et al. 2022, arXiv 2201.03545) and ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808).

use super::row::{Family, Features, Row};
use crate::input_spec::InputSpec;
use crate::params::TensorInit;
use candle_core::{Module, Result};
use candle_nn::{LayerNorm, VarBuilder, layer_norm};
use candle_transformers::models::convnext::{Config, convnext_no_final_layer};

const FAMILY: Family = Family {
    name: "ConvNeXt",
    features: "the pooled map after the head's norm",
    // The two versions differ in two optional tensors: a scale per channel, and the response norm of each MLP.
    has: |tensor, network| {
        let second = network.starts_with("zoo/convnextv2");
        let is_grn = tensor.contains(".mlp.grn.");
        (second || !is_grn) && (!second || !tensor.ends_with(".gamma"))
    },
    // The layer scale of the paper. At 0, the model's own value, the blocks would be identities.
    init: |tensor| tensor.ends_with(".gamma").then_some(TensorInit::Constant(1e-6)),
    is_position: |_| false,
    cut: None,
    sizes: None,
    note: "trainable at 64 pixels and more: over a map of one pixel, the gradient stops at the layer norms of the last stage, \
           which the audit reports",
};

/// The model's features, and the norm of its head, which the model only has together with a classifier.
fn build(config: &Config, dim: usize, vb: VarBuilder<'_>) -> Result<Features> {
    #[allow(clippy::disallowed_methods)] // the original's; trainable parameters take another path below
    let norm = layer_norm(dim, 1e-6, vb.pp("head.norm"))?;
    let body = convnext_no_final_layer(config, vb)?;
    Ok(Box::new(move |images| {
        let pooled = body.forward(images)?;
        // candle-nn's fast layer norm has no gradient.
        if pooled.track_op() || norm.weight().track_op() {
            with_gradient(&norm, &pooled)
        } else {
            norm.forward(&pooled)
        }
    }))
}

/// The layer norm made of operations that have gradients.
fn with_gradient(norm: &LayerNorm, x: &candle_core::Tensor) -> Result<candle_core::Tensor> {
    let Some(bias) = norm.bias() else { return norm.forward(x) };
    candle_nn::ops::layer_norm_slow(x, norm.weight(), bias, norm.eps() as f32)
}

/// ImageNet's mean and standard deviation, bicubic, 224 pixels.
fn spec(crop_pct: f64) -> InputSpec {
    InputSpec::new(224).crop_pct(crop_pct)
}

macro_rules! rows {
    ($($name:literal, $hub:literal, $config:ident, $dim:literal, $crop:literal;)*) => {
        pub(super) const ROWS: &[Row] = &[$(Row {
            name: concat!("zoo/", $name),
            hub: concat!("timm/", $name, ".", $hub),
            feature_dim: $dim,
            classifier: "head.fc",
            spec: || spec($crop),
            build: |vb| build(&Config::$config(), $dim, vb),
            family: &FAMILY,
        }),*];
    };
}

rows! {
    "convnext_atto", "d2_in1k", atto, 320, 0.875;
    "convnext_femto", "d1_in1k", femto, 384, 0.875;
    "convnext_pico", "d1_in1k", pico, 512, 0.875;
    "convnext_nano", "d1h_in1k", nano, 640, 0.95;
    "convnext_tiny", "fb_in1k", tiny, 768, 0.875;
    "convnext_small", "fb_in1k", small, 768, 0.875;
    "convnext_base", "fb_in1k", base, 1024, 0.875;
    "convnext_large", "fb_in1k", large, 1536, 0.875;
    "convnextv2_atto", "fcmae_ft_in1k", atto, 320, 0.875;
    "convnextv2_femto", "fcmae_ft_in1k", femto, 384, 0.875;
    "convnextv2_pico", "fcmae_ft_in1k", pico, 512, 0.875;
    "convnextv2_nano", "fcmae_ft_in1k", nano, 640, 0.875;
    "convnextv2_tiny", "fcmae_ft_in1k", tiny, 768, 0.875;
    "convnextv2_base", "fcmae_ft_in1k", base, 1024, 0.875;
    "convnextv2_large", "fcmae_ft_in1k", large, 1536, 0.875;
}
