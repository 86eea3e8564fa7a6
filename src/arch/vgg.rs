//! VGG (Simonyan and Zisserman 2014, arXiv 1409.1556), with and without batch norm, and its convolutions alone.

use super::{Family, Naming, Row, imagenet};
use crate::error::Result;
use crate::input_spec::Interpolation;
use crate::nn::{Builder, Conv, ConvSpec, Module};
use crate::ops::{Activation, FeatureMap, Padding};

/// The parameters of a VGG.
pub(super) struct Vgg {
    /// Convolutions per stage; each stage ends in a max-pool.
    convs: [usize; 5],
    batch_norm: bool,
    /// Without the two fully connected layers.
    features_only: bool,
}

const CHANNELS: [usize; 5] = [64, 128, 256, 512, 512];

const fn row(name: &'static str, hub: &'static str, convs: [usize; 5], batch_norm: bool, features_only: bool) -> Row {
    Row {
        name,
        hub,
        feature_dim: if features_only { 512 } else { 4096 },
        classifier: "head.fc",
        spec: || imagenet(224, Interpolation::Bilinear, 0.875),
        crop_pct: 0.875,
        torchvision: Some((224, Interpolation::Bilinear, 0.875)),
        family: Family::Vgg(Vgg { convs, batch_norm, features_only }),
    }
}

const D11: [usize; 5] = [1, 1, 2, 2, 2];
const D13: [usize; 5] = [2, 2, 2, 2, 2];
const D16: [usize; 5] = [2, 2, 3, 3, 3];
const D19: [usize; 5] = [2, 2, 4, 4, 4];

pub(super) static VGG11: Row = row("vgg11", "timm/vgg11.tv_in1k", D11, false, false);
pub(super) static VGG11_BN: Row = row("vgg11_bn", "timm/vgg11_bn.tv_in1k", D11, true, false);
pub(super) static VGG13: Row = row("vgg13", "timm/vgg13.tv_in1k", D13, false, false);
pub(super) static VGG13_BN: Row = row("vgg13_bn", "timm/vgg13_bn.tv_in1k", D13, true, false);
pub(super) static VGG16: Row = row("vgg16", "timm/vgg16.tv_in1k", D16, false, false);
pub(super) static VGG16_BN: Row = row("vgg16_bn", "timm/vgg16_bn.tv_in1k", D16, true, false);
pub(super) static VGG19: Row = row("vgg19", "timm/vgg19.tv_in1k", D19, false, false);
pub(super) static VGG19_BN: Row = row("vgg19_bn", "timm/vgg19_bn.tv_in1k", D19, true, false);
pub(super) static VGG11_FEATURES: Row = row("vgg11_features", "timm/vgg11.tv_in1k", D11, false, true);
pub(super) static VGG11_BN_FEATURES: Row = row("vgg11_bn_features", "timm/vgg11_bn.tv_in1k", D11, true, true);
pub(super) static VGG13_FEATURES: Row = row("vgg13_features", "timm/vgg13.tv_in1k", D13, false, true);
pub(super) static VGG13_BN_FEATURES: Row = row("vgg13_bn_features", "timm/vgg13_bn.tv_in1k", D13, true, true);
pub(super) static VGG16_FEATURES: Row = row("vgg16_features", "timm/vgg16.tv_in1k", D16, false, true);
pub(super) static VGG16_BN_FEATURES: Row = row("vgg16_bn_features", "timm/vgg16_bn.tv_in1k", D16, true, true);
pub(super) static VGG19_FEATURES: Row = row("vgg19_features", "timm/vgg19.tv_in1k", D19, false, true);
pub(super) static VGG19_BN_FEATURES: Row = row("vgg19_bn_features", "timm/vgg19_bn.tv_in1k", D19, true, true);

/// A convolution and, at a stage's end, the max-pool after it.
struct ConvPool {
    conv: Conv,
    pool: bool,
}

impl Module for ConvPool {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let y = self.conv.forward(x)?;
        if self.pool { Ok(y.max_pool(2, 2, Padding::Even(0))?) } else { Ok(y) }
    }
}

/// The first fully connected layer, as a convolution over 7 x 7 pixels.
struct Fc6 {
    conv: Conv,
    /// Averages any larger map to 7 x 7 first, as torchvision does; timm lets the convolution slide over it.
    always: bool,
}

impl Module for Fc6 {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let (_, _, h, w) = x.dims()?;
        let (rows, columns) = if self.always { (7, 7) } else { (h.max(7), w.max(7)) };
        let x = if (h, w) == (rows, columns) { x.clone() } else { x.adaptive_average(rows, columns)? };
        self.conv.forward(&x)
    }
}

impl Vgg {
    /// With its fully connected layers, as timm has it.
    pub(super) fn is_whole(&self) -> bool {
        !self.features_only
    }

    pub(super) fn build(&self, b: &mut Builder<'_>, naming: Naming) -> Result<()> {
        let mut inputs = b.channels;
        let mut index = 0;
        for (stage, (&count, outputs)) in self.convs.iter().zip(CHANNELS).enumerate() {
            for i in 0..count {
                let block = if index == 0 { "stem".to_string() } else { format!("features.{index}") };
                b.block(block, if index == 0 { "stem".to_string() } else { format!("stage{}", stage + 1) }, |b| {
                    let eps = self.batch_norm.then_some(1e-5);
                    let spec = ConvSpec::new(inputs, outputs, 3).act(Activation::Relu).norm(eps).biased();
                    let spec = if index == 0 { spec.on_images() } else { spec };
                    let norm = format!("features.{}", index + 1);
                    let conv = Conv::new(b, &format!("features.{index}"), &norm, spec)?;
                    Ok(ConvPool { conv, pool: i + 1 == count })
                })?;
                inputs = outputs;
                index += if self.batch_norm { 3 } else { 2 };
            }
            index += 1; // the max-pool has a number of its own
        }
        if self.features_only {
            return Ok(());
        }
        let fc = |inputs, kernel| {
            ConvSpec::new(inputs, 4096, kernel).padding(Padding::Even(0)).norm(None).act(Activation::Relu)
        };
        b.block("pre_logits.fc1", "pre_logits", |b| {
            let always = naming == Naming::Torchvision;
            Ok(Fc6 { conv: Conv::new(b, "pre_logits.fc1", "", fc(512, 7))?, always })
        })?;
        b.block("pre_logits.fc2", "pre_logits", |b| Conv::new(b, "pre_logits.fc2", "", fc(4096, 1)))
    }

    /// Convolutions alone can be taken out of a file of the whole network.
    pub(super) fn may_ignore(&self, name: &str) -> bool {
        self.features_only && ["pre_logits.", "head.fc.", "classifier."].iter().any(|part| name.starts_with(part))
    }

    /// torchvision keeps the fully connected layers as linear ones, under other names.
    pub(super) fn name_in(naming: Naming, canonical: &str) -> String {
        let rename = |from: &str, to: &str| canonical.strip_prefix(from).map(|rest| format!("{to}{rest}"));
        match naming {
            Naming::Timm | Naming::Transformers => canonical.to_string(),
            Naming::Torchvision => rename("pre_logits.fc1.", "classifier.0.")
                .or_else(|| rename("pre_logits.fc2.", "classifier.3."))
                .or_else(|| rename("head.fc.", "classifier.6."))
                .unwrap_or_else(|| canonical.to_string()),
        }
    }
}
