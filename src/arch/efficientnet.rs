//! EfficientNet (Tan and Le 2019, arXiv 1905.11946) and EfficientNet-Lite (no squeeze and excitation, ReLU6, fixed
//! stem and head; TensorFlow's asymmetric padding and batch norm epsilon).

use super::{Family, Naming, Row, imagenet};
use crate::error::Result;
use crate::input_spec::{InputSpec, Interpolation};
use crate::nn::{Builder, Conv, ConvSpec, Module};
use crate::ops::{Activation, FeatureMap, Padding};

/// The parameters of an EfficientNet.
pub(super) struct EfficientNet {
    width: f64,
    depth: f64,
    lite: bool,
}

/// Repeats, kernel, stride, expansion, channels of each stage of B0.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
];

/// Channels times the width multiplier, in multiples of 8, never more than 10 % below.
const fn channels(base: usize, width: f64) -> usize {
    let wanted = base as f64 * width;
    let rounded = ((wanted + 4.0) as usize / 8) * 8;
    let rounded = if rounded < 8 { 8 } else { rounded };
    if (rounded as f64) < 0.9 * wanted { rounded + 8 } else { rounded }
}

const fn row(
    name: &'static str,
    hub: &'static str,
    (width, depth): (f64, f64),
    spec: fn() -> InputSpec,
    torchvision: (usize, f64),
) -> Row {
    let feature_dim = channels(1280, width);
    let family = Family::EfficientNet(EfficientNet { width, depth, lite: false });
    let torchvision = Some((torchvision.0, Bicubic, torchvision.1));
    Row { name, hub, feature_dim, classifier: "classifier", spec, crop_pct: 0.0, torchvision, family }
}

const fn lite(name: &'static str, hub: &'static str, width: f64, depth: f64, spec: fn() -> InputSpec) -> Row {
    let family = Family::EfficientNet(EfficientNet { width, depth, lite: true });
    Row { name, hub, feature_dim: 1280, classifier: "classifier", spec, crop_pct: 0.0, torchvision: None, family }
}

fn half(size: usize, interpolation: Interpolation, crop_pct: f64) -> InputSpec {
    imagenet(size, interpolation, crop_pct).normalize(&[0.5; 3], &[0.5; 3])
}

use Interpolation::{Bicubic, Bilinear};

pub(super) static B0: Row = row(
    "efficientnet_b0",
    "timm/efficientnet_b0.ra_in1k",
    (1.0, 1.0),
    || imagenet(224, Bicubic, 0.875),
    (224, 224.0 / 256.0),
);
pub(super) static B1: Row = row(
    "efficientnet_b1",
    "timm/efficientnet_b1.ra4_e3600_r240_in1k",
    (1.0, 1.1),
    || half(240, Bicubic, 0.9),
    (240, 240.0 / 256.0),
);
pub(super) static B2: Row =
    row("efficientnet_b2", "timm/efficientnet_b2.ra_in1k", (1.1, 1.2), || imagenet(256, Bicubic, 0.875), (288, 1.0));
pub(super) static B3: Row = row(
    "efficientnet_b3",
    "timm/efficientnet_b3.ra2_in1k",
    (1.2, 1.4),
    || imagenet(288, Bicubic, 0.875),
    (300, 300.0 / 320.0),
);
pub(super) static B4: Row = row(
    "efficientnet_b4",
    "timm/efficientnet_b4.ra2_in1k",
    (1.4, 1.8),
    || imagenet(320, Bicubic, 0.875),
    (380, 380.0 / 384.0),
);
pub(super) static LITE0: Row =
    lite("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k", 1.0, 1.0, || half(224, Bicubic, 0.875));
pub(super) static LITE1: Row =
    lite("tf_efficientnet_lite1", "timm/tf_efficientnet_lite1.in1k", 1.0, 1.1, || half(240, Bicubic, 0.882));
pub(super) static LITE2: Row =
    lite("tf_efficientnet_lite2", "timm/tf_efficientnet_lite2.in1k", 1.1, 1.2, || half(260, Bicubic, 0.89));
pub(super) static LITE3: Row =
    lite("tf_efficientnet_lite3", "timm/tf_efficientnet_lite3.in1k", 1.2, 1.4, || half(300, Bilinear, 0.904));
pub(super) static LITE4: Row =
    lite("tf_efficientnet_lite4", "timm/tf_efficientnet_lite4.in1k", 1.4, 1.8, || half(380, Bilinear, 0.92));

/// An inverted residual block: widen, filter each channel, squeeze and excite, narrow.
struct Inverted {
    /// Absent in the first stage, which does not widen.
    expand: Option<Conv>,
    depthwise: Conv,
    squeeze: Option<(Conv, Conv)>,
    project: Conv,
    residual: bool,
}

impl Module for Inverted {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let u = match &self.expand {
            Some(expand) => expand.forward(x)?,
            None => x.clone(),
        };
        let mut u = self.depthwise.forward(&u)?;
        if let Some((reduce, expand)) = &self.squeeze {
            let factors = expand.forward(&reduce.forward(&u.mean_pixels()?)?)?;
            u = u.scale(&factors)?;
        }
        self.project.join(&u, self.residual.then_some(x))
    }
}

impl EfficientNet {
    pub(super) fn build(&self, b: &mut Builder<'_>) -> Result<()> {
        let (act, eps) = if self.lite { (Activation::Relu6, 1e-3) } else { (Activation::Silu, 1e-5) };
        let conv = |inputs, outputs, kernel, stride| {
            let padding = if self.lite { Padding::Same } else { Padding::Even((kernel - 1) / 2) };
            ConvSpec::new(inputs, outputs, kernel).stride(stride).padding(padding).norm(Some(eps))
        };
        let stem = if self.lite { 32 } else { channels(32, self.width) };
        let images = b.channels;
        b.block("stem", "stem", |b| Conv::new(b, "conv_stem", "bn1", conv(images, stem, 3, 2).act(act).on_images()))?;
        let mut inputs = stem;
        for (stage, &(repeats, kernel, stride, expansion, base)) in STAGES.iter().enumerate() {
            let fixed = self.lite && (stage == 0 || stage + 1 == STAGES.len());
            let count = if fixed { repeats } else { (repeats as f64 * self.depth).ceil() as usize };
            let outputs = channels(base, self.width);
            for i in 0..count {
                let stride = if i == 0 { stride } else { 1 };
                let name = format!("blocks.{stage}.{i}");
                b.block(&name, format!("blocks.{stage}"), |b| {
                    let at = |part: &str| format!("{name}.{part}");
                    let wide = inputs * expansion;
                    let expand = match expansion {
                        1 => None,
                        _ => Some(Conv::new(b, &at("conv_pw"), &at("bn1"), conv(inputs, wide, 1, 1).act(act))?),
                    };
                    // The norms are numbered in their order, so the first stage's numbers are one lower.
                    let (bn_dw, project, bn_project) =
                        if expand.is_some() { ("bn2", "conv_pwl", "bn3") } else { ("bn1", "conv_pw", "bn2") };
                    let spec = conv(wide, wide, kernel, stride).groups(wide).act(act);
                    let depthwise = Conv::new(b, &at("conv_dw"), &at(bn_dw), spec)?;
                    let squeeze = if self.lite {
                        None
                    } else {
                        let narrow = (inputs / 4).max(1);
                        let bare = |i, o, act| ConvSpec::new(i, o, 1).norm(None).act(act);
                        let reduce = Conv::new(b, &at("se.conv_reduce"), "", bare(wide, narrow, act))?;
                        let sigmoid = bare(narrow, wide, Activation::Sigmoid);
                        Some((reduce, Conv::new(b, &at("se.conv_expand"), "", sigmoid)?))
                    };
                    let project = Conv::new(b, &at(project), &at(bn_project), conv(wide, outputs, 1, 1))?;
                    Ok(Inverted { expand, depthwise, squeeze, project, residual: stride == 1 && inputs == outputs })
                })?;
                inputs = outputs;
            }
        }
        let features = if self.lite { 1280 } else { channels(1280, self.width) };
        b.block("conv_head", "conv_head", |b| Conv::new(b, "conv_head", "bn2", conv(inputs, features, 1, 1).act(act)))
    }

    /// torchvision numbers what timm names.
    pub(super) fn name_in(naming: Naming, canonical: &str) -> String {
        if naming != Naming::Torchvision {
            return canonical.to_string();
        }
        let (module, leaf) = canonical.rsplit_once('.').unwrap_or((canonical, ""));
        let module = match module {
            "conv_stem" => "features.0.0".to_string(),
            "bn1" => "features.0.1".to_string(),
            "conv_head" => "features.8.0".to_string(),
            "bn2" => "features.8.1".to_string(),
            "classifier" => "classifier.1".to_string(),
            other => Self::block_name(other).unwrap_or_else(|| other.to_string()),
        };
        format!("{module}.{leaf}")
    }

    fn block_name(module: &str) -> Option<String> {
        let mut parts = module.strip_prefix("blocks.")?.splitn(3, '.');
        let (stage, i, part) = (parts.next()?.parse::<usize>().ok()?, parts.next()?, parts.next()?);
        let inner = if stage == 0 {
            match part {
                "conv_dw" => "0.0",
                "bn1" => "0.1",
                "se.conv_reduce" => "1.fc1",
                "se.conv_expand" => "1.fc2",
                "conv_pw" => "2.0",
                "bn2" => "2.1",
                _ => return None,
            }
        } else {
            match part {
                "conv_pw" => "0.0",
                "bn1" => "0.1",
                "conv_dw" => "1.0",
                "bn2" => "1.1",
                "se.conv_reduce" => "2.fc1",
                "se.conv_expand" => "2.fc2",
                "conv_pwl" => "3.0",
                "bn3" => "3.1",
                _ => return None,
            }
        };
        Some(format!("features.{}.{i}.block.{inner}", stage + 1))
    }
}
