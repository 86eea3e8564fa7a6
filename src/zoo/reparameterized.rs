//! RepVGG (Ding et al. 2021, arXiv 2101.03697) and MobileOne (Vasu et al. 2022, arXiv 2206.04040), whose branches become
//! one convolution when the model is built.

use super::row::{Family, Row};
use crate::input_spec::{InputSpec, Interpolation};
use candle_core::{Module, Result};
use candle_nn::Func;
use candle_transformers::models::{mobileone, repvgg};

const NOTE: &str = "batch norms are folded into convolutions, which training does anew in every step";

const REPVGG: Family = Family {
    name: "RepVGG",
    features: "the pooled map",
    has: |_, _| true,
    init: |_| None,
    is_position: |_| false,
    cut: None,
    sizes: None,
    note: NOTE,
};

const MOBILEONE: Family = Family {
    name: "MobileOne",
    // Squeeze and excitation in the last five of the ten blocks of s4's third stage, and in its fourth stage. A block is
    // two layers.
    has: |tensor, network| {
        let Some((block, _)) = tensor.split_once(".attn.") else { return true };
        let late = |layer: &str| layer.parse::<usize>().is_ok_and(|layer| layer >= 10);
        network == "zoo/mobileone_s4"
            && (block.starts_with("stages.3.") || block.strip_prefix("stages.2.").is_some_and(late))
    },
    ..REPVGG
};

fn boxed(model: Func<'static>) -> super::row::Features {
    Box::new(move |images| model.forward(images))
}

/// ImageNet's mean and standard deviation, bilinear, 224 pixels.
fn spec(crop_pct: f64) -> InputSpec {
    InputSpec::new(224).interpolation(Interpolation::Bilinear).crop_pct(crop_pct)
}

macro_rules! rows {
    ($($name:literal, $hub:literal, $family:ident, $build:path, $config:path, $dim:literal, $crop:literal;)*) => {
        pub(super) const ROWS: &[Row] = &[$(Row {
            name: concat!("zoo/", $name),
            hub: concat!("timm/", $name, ".", $hub),
            feature_dim: $dim,
            classifier: "head.fc",
            spec: || spec($crop),
            build: |vb| -> Result<_> { Ok(boxed($build(&$config(), vb)?)) },
            family: &$family,
        }),*];
    };
}

rows! {
    "repvgg_a0", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::a0, 1280, 0.875;
    "repvgg_a1", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::a1, 1280, 0.875;
    "repvgg_a2", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::a2, 1408, 0.875;
    "repvgg_b0", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b0, 1280, 0.875;
    "repvgg_b1", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b1, 2048, 0.875;
    "repvgg_b1g4", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b1g4, 2048, 0.875;
    "repvgg_b2", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b2, 2560, 0.875;
    "repvgg_b2g4", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b2g4, 2560, 0.875;
    "repvgg_b3", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b3, 2560, 0.875;
    "repvgg_b3g4", "rvgg_in1k", REPVGG, repvgg::repvgg_no_final_layer, repvgg::Config::b3g4, 2560, 0.875;
    "mobileone_s0", "apple_in1k", MOBILEONE, mobileone::mobileone_no_final_layer, mobileone::Config::s0, 1024, 0.875;
    "mobileone_s1", "apple_in1k", MOBILEONE, mobileone::mobileone_no_final_layer, mobileone::Config::s1, 1280, 0.9;
    "mobileone_s2", "apple_in1k", MOBILEONE, mobileone::mobileone_no_final_layer, mobileone::Config::s2, 2048, 0.9;
    "mobileone_s3", "apple_in1k", MOBILEONE, mobileone::mobileone_no_final_layer, mobileone::Config::s3, 2048, 0.9;
    "mobileone_s4", "apple_in1k", MOBILEONE, mobileone::mobileone_no_final_layer, mobileone::Config::s4, 2048, 0.9;
}
