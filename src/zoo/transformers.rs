//! Vision transformers: ViT (Dosovitskiy et al. 2021, arXiv 2010.11929), DeiT (Touvron et al. 2021, arXiv 2012.12877)
//! and DINOv2 (Oquab et al. 2023, arXiv 2304.07193).

use super::row::{Family, Features, Row};
use crate::input_spec::{CropMode, InputSpec, Interpolation};
use crate::params::TensorInit;
use candle_core::{IndexOp, Module, Result, Tensor, bail};
use candle_nn::{Activation, VarBuilder, layer_norm};
use candle_transformers::models::{dinov2, vit};

const VIT: Family = Family {
    name: "ViT",
    features: "the class token after the last norm",
    has: |_, _| true,
    // The deviation that the papers use.
    init: |tensor| is_token(tensor).then_some(TensorInit::Normal(0.02)),
    is_position: is_token,
    cut: Some("no gradient passes candle-nn's softmax_last_dim and layer_norm; freeze it (`FreezePolicy::Backbone`)"),
    sizes: Some(|size, default| (size != default).then_some("images of the one size that its positions are for")),
    note: "images of one size",
};

const DINOV2: Family = Family {
    name: "DINOv2",
    features: "the class token beside the mean of the others, after the last norm; the classifier is replaced by a \
               selector, since only logits come out",
    init: |tensor| {
        let scale = tensor.ends_with(".gamma").then_some(TensorInit::Constant(1e-5));
        scale.or_else(|| is_token(tensor).then_some(TensorInit::Normal(0.02)))
    },
    cut: Some("no gradient passes candle-nn's layer_norm; freeze it (`FreezePolicy::Backbone`)"),
    sizes: Some(|(h, w), _| {
        (h != w || h == 0 || h % 14 != 0).then_some("square images whose sides are multiples of 14 pixels")
    }),
    note: "computed image by image; square images whose sides are multiples of 14 pixels; a classifier of 1000 classes has the model's own names \
           and shapes, one of other classes the names alone",
    ..VIT
};

/// Whether a tensor is a token or the positions.
fn is_token(tensor: &str) -> bool {
    ["cls_token", "pos_embed", "position_embeddings"].iter().any(|name| tensor.ends_with(name))
}

/// Of `width` features and `layers` layers, in patches of 16 pixels, with heads of 64 features.
fn config(width: usize, layers: usize) -> vit::Config {
    vit::Config {
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: width / 64,
        intermediate_size: 4 * width,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-12,
        image_size: 224,
        patch_size: 16,
        num_channels: 3,
        qkv_bias: true,
    }
}

/// The parts of `vit::Model`, which itself gives logits alone.
fn vit_features(config: &vit::Config, vb: VarBuilder<'_>) -> Result<Features> {
    let side = config.image_size;
    let vb = vb.pp("vit");
    let embeddings = vit::Embeddings::new(config, false, vb.pp("embeddings"))?;
    let encoder = vit::Encoder::new(config, vb.pp("encoder"))?;
    #[allow(clippy::disallowed_methods)] // the original's; it is never trained
    let norm = layer_norm(config.hidden_size, config.layer_norm_eps, vb.pp("layernorm"))?;
    Ok(Box::new(move |images| {
        let (_, _, height, width) = images.dims4()?;
        if (height, width) != (side, side) {
            bail!("images of {height} x {width} pixels; the model has positions for {side} x {side} alone");
        }
        let tokens = encoder.forward(&embeddings.forward(images, None, false)?)?;
        norm.forward(&tokens.i((.., 0, ..))?)
    }))
}

/// The model with an identity classifier: its weights are 1 on the diagonal and 0 elsewhere.
fn dinov2_features(width: usize, layers: usize, heads: usize, vb: VarBuilder<'_>) -> Result<Features> {
    let model = dinov2::DinoVisionTransformer::new(vb, layers, width, heads)?;
    Ok(Box::new(move |images| {
        let (_, _, height, width_of) = images.dims4()?;
        if height != width_of {
            bail!(
                "images of {height} x {width_of} pixels; candle-transformers turns the positions of images that are not square"
            );
        }
        // The model takes one image at a time.
        let one = |image: usize| model.forward(&images.narrow(0, image, 1)?)?.narrow(1, 0, 2 * width);
        Tensor::cat(&(0..images.dim(0)?).map(one).collect::<Result<Vec<_>>>()?, 0)
    }))
}

/// 224 pixels, squashed, as for Google's weights.
fn google() -> InputSpec {
    let spec = InputSpec::new(224).interpolation(Interpolation::Bilinear).crop_mode(CropMode::Squash).crop_pct(1.0);
    spec.normalize(&[0.5; 3], &[0.5; 3])
}

macro_rules! vits {
    ($($name:literal, $hub:literal, $width:literal, $layers:literal, $spec:expr;)*) => {
        const VITS: &[Row] = &[$(Row {
            name: concat!("zoo/", $name),
            hub: $hub,
            feature_dim: $width,
            classifier: "classifier",
            spec: $spec,
            build: |vb| vit_features(&config($width, $layers), vb),
            family: &VIT,
        }),*];
    };
}

vits! {
    "deit_tiny_patch16_224", "facebook/deit-tiny-patch16-224", 192, 12, || InputSpec::new(224);
    "deit_small_patch16_224", "facebook/deit-small-patch16-224", 384, 12, || InputSpec::new(224);
    "deit_base_patch16_224", "facebook/deit-base-patch16-224", 768, 12, || InputSpec::new(224);
    "vit_base_patch16_224", "google/vit-base-patch16-224", 768, 12, google;
    "vit_large_patch16_224", "google/vit-large-patch16-224", 1024, 24, google;
}

const DINOV2S: &[Row] = &[Row {
    name: "zoo/vit_small_patch14_dinov2",
    hub: "timm/vit_small_patch14_dinov2.lvd142m",
    feature_dim: 2 * 384,
    classifier: "head",
    spec: || InputSpec::new(518).crop_pct(1.0),
    build: |vb| dinov2_features(384, 12, 6, vb),
    family: &DINOV2,
}];

pub(super) const ROWS: [&[Row]; 2] = [VITS, DINOV2S];
