//! ResNet, Wide ResNet and ResNeXt (He et al. 2015, arXiv 1512.03385; Zagoruyko and Komodakis 2016, arXiv 1605.07146;
//! Xie et al. 2016, arXiv 1611.05431), and the ResNets for CIFAR of the first paper's section 4.2.

use super::{Family, Naming, Row, imagenet};
use crate::error::Result;
use crate::input_spec::{InputSpec, Interpolation};
use crate::nn::{Builder, Conv, ConvSpec, Module};
use crate::ops::{Activation, FeatureMap, Padding};

/// The parameters of a ResNet.
pub(super) struct ResNet {
    /// Blocks per stage.
    layers: [usize; 4],
    /// 1x1, 3x3, 1x1 instead of two 3x3.
    bottleneck: bool,
    groups: usize,
    /// Channels of a bottleneck's 3x3 per group, at 64 planes.
    base_width: usize,
}

const fn row(name: &'static str, hub: &'static str, net: ResNet, crop_pct: f64) -> Row {
    Row {
        name,
        hub,
        feature_dim: if net.bottleneck { 2048 } else { 512 },
        classifier: "fc",
        spec: || imagenet(224, Interpolation::Bicubic, 0.875),
        crop_pct,
        torchvision: Some((224, Interpolation::Bilinear, 0.875)),
        family: Family::ResNet(net),
    }
}

const fn basic(layers: [usize; 4]) -> ResNet {
    ResNet { layers, bottleneck: false, groups: 1, base_width: 64 }
}

const fn bottleneck(layers: [usize; 4], groups: usize, base_width: usize) -> ResNet {
    ResNet { layers, bottleneck: true, groups, base_width }
}

pub(super) static RESNET18: Row = row("resnet18", "timm/resnet18.a1_in1k", basic([2, 2, 2, 2]), 0.95);
pub(super) static RESNET34: Row = row("resnet34", "timm/resnet34.a1_in1k", basic([3, 4, 6, 3]), 0.95);
pub(super) static RESNET50: Row = row("resnet50", "timm/resnet50.a1_in1k", bottleneck([3, 4, 6, 3], 1, 64), 0.95);
pub(super) static RESNET101: Row = row("resnet101", "timm/resnet101.a1h_in1k", bottleneck([3, 4, 23, 3], 1, 64), 0.95);
pub(super) static RESNET152: Row = row("resnet152", "timm/resnet152.a1h_in1k", bottleneck([3, 8, 36, 3], 1, 64), 0.95);
pub(super) static WIDE_RESNET50_2: Row =
    row("wide_resnet50_2", "timm/wide_resnet50_2.racm_in1k", bottleneck([3, 4, 6, 3], 1, 128), 0.875);
pub(super) static RESNEXT50_32X4D: Row =
    row("resnext50_32x4d", "timm/resnext50_32x4d.a1h_in1k", bottleneck([3, 4, 6, 3], 32, 4), 0.95);

/// The stem's convolution and max-pool.
struct Stem(Conv);

impl Module for Stem {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        Ok(self.0.forward(x)?.max_pool(3, 2, Padding::Even(1))?)
    }
}

/// A residual block: convolutions in a row, the last joined by the shortcut.
struct Residual {
    convs: Vec<Conv>,
    shortcut: Shortcut,
}

enum Shortcut {
    Identity,
    /// A 1x1 convolution with a norm.
    Projection(Conv),
    /// Every second pixel, zeros for the new channels.
    Subsample {
        stride: usize,
        before: usize,
        after: usize,
    },
}

impl Module for Residual {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let shortcut = match &self.shortcut {
            Shortcut::Identity => x.clone(),
            Shortcut::Projection(conv) => conv.forward(x)?,
            Shortcut::Subsample { stride, before, after } => x.subsample(*stride, *before, *after)?,
        };
        let Some((last, before)) = self.convs.split_last() else { return Ok(shortcut) };
        let mut u = x.clone();
        for conv in before {
            u = conv.forward(&u)?;
        }
        last.join(&u, Some(&shortcut))
    }
}

impl ResNet {
    pub(super) fn build(&self, b: &mut Builder<'_>) -> Result<()> {
        let relu = |spec: ConvSpec| spec.act(Activation::Relu);
        let images = b.channels;
        b.block("stem", "stem", |b| {
            Ok(Stem(Conv::new(b, "conv1", "bn1", relu(ConvSpec::new(images, 64, 7).stride(2).on_images()))?))
        })?;
        let expansion = if self.bottleneck { 4 } else { 1 };
        let mut inputs = 64;
        for (stage, &count) in self.layers.iter().enumerate() {
            let planes = 64 << stage;
            for i in 0..count {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let outputs = planes * expansion;
                let name = format!("layer{}.{i}", stage + 1);
                b.block(&name, format!("layer{}", stage + 1), |b| {
                    let specs = if self.bottleneck {
                        let width = planes * self.base_width / 64 * self.groups;
                        vec![
                            relu(ConvSpec::new(inputs, width, 1)),
                            relu(ConvSpec::new(width, width, 3).stride(stride).groups(self.groups)),
                            relu(ConvSpec::new(width, outputs, 1)),
                        ]
                    } else {
                        let first = relu(ConvSpec::new(inputs, planes, 3).stride(stride));
                        vec![first, relu(ConvSpec::new(planes, planes, 3))]
                    };
                    let mut convs = Vec::with_capacity(specs.len());
                    for (j, spec) in specs.into_iter().enumerate() {
                        convs.push(Conv::new(
                            b,
                            &format!("{name}.conv{}", j + 1),
                            &format!("{name}.bn{}", j + 1),
                            spec,
                        )?);
                    }
                    let shortcut = if stride > 1 || inputs != outputs {
                        let spec = ConvSpec::new(inputs, outputs, 1).stride(stride);
                        let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                        Shortcut::Projection(Conv::new(b, &conv, &norm, spec)?)
                    } else {
                        Shortcut::Identity
                    };
                    Ok(Residual { convs, shortcut })
                })?;
                inputs = outputs;
            }
        }
        Ok(())
    }

    /// Neither wide nor grouped: what transformers has.
    pub(super) fn is_plain(&self) -> bool {
        self.groups == 1 && self.base_width == 64
    }

    /// Whether transformers' configuration agrees.
    pub(super) fn is_transformers(&self, bottleneck: bool, depths: &[usize], widths: &[usize]) -> bool {
        let expansion = if self.bottleneck { 4 } else { 1 };
        let own = [64, 128, 256, 512].map(|planes: usize| planes * expansion);
        self.is_plain() && self.bottleneck == bottleneck && self.layers == depths && own == widths
    }

    /// torchvision and timm agree on a ResNet's names; transformers counts stages and layers from 0.
    pub(super) fn name_in(naming: Naming, canonical: &str) -> String {
        let renamed = match naming {
            Naming::Timm | Naming::Torchvision => None,
            Naming::Transformers => Self::transformers_name(canonical),
        };
        renamed.unwrap_or_else(|| canonical.to_string())
    }

    fn transformers_name(canonical: &str) -> Option<String> {
        let (module, leaf) = canonical.rsplit_once('.')?;
        let of = |norm: bool| if norm { "normalization" } else { "convolution" };
        let module = match module {
            "conv1" | "bn1" => format!("resnet.embedder.embedder.{}", of(module == "bn1")),
            "fc" => "classifier.1".to_string(),
            _ => {
                let mut parts = module.strip_prefix("layer")?.splitn(3, '.');
                let (stage, i, part) = (parts.next()?.parse::<usize>().ok()?, parts.next()?, parts.next()?);
                let layer = match part.strip_prefix("downsample.") {
                    Some(index) => format!("shortcut.{}", of(index == "1")),
                    None => {
                        let number =
                            part.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse::<usize>().ok()?;
                        format!("layer.{}.{}", number.checked_sub(1)?, of(part.starts_with("bn")))
                    }
                };
                format!("resnet.encoder.stages.{}.layers.{i}.{layer}", stage.checked_sub(1)?)
            }
        };
        Some(format!("{module}.{leaf}"))
    }
}

/// A ResNet for 32 x 32 pixels: three stages of 16, 32 and 64 channels.
pub(super) struct CifarResNet {
    /// Blocks per stage; the depth is 6 n + 2.
    blocks: usize,
}

const fn cifar(name: &'static str, blocks: usize) -> Row {
    Row {
        name,
        hub: "",
        feature_dim: 64,
        classifier: "linear",
        spec: || InputSpec::new(32).interpolation(Interpolation::Bilinear),
        crop_pct: 1.0,
        torchvision: None,
        family: Family::Cifar(CifarResNet { blocks }),
    }
}

pub(super) static CIFAR_RESNET20: Row = cifar("cifar_resnet20", 3);
pub(super) static CIFAR_RESNET32: Row = cifar("cifar_resnet32", 5);
pub(super) static CIFAR_RESNET44: Row = cifar("cifar_resnet44", 7);
pub(super) static CIFAR_RESNET56: Row = cifar("cifar_resnet56", 9);

impl CifarResNet {
    pub(super) fn build(&self, b: &mut Builder<'_>) -> Result<()> {
        let relu = |spec: ConvSpec| spec.act(Activation::Relu);
        let images = b.channels;
        b.block("stem", "stem", |b| Conv::new(b, "conv1", "bn1", relu(ConvSpec::new(images, 16, 3).on_images())))?;
        let mut inputs = 16;
        for stage in 0..3 {
            let outputs = 16 << stage;
            for i in 0..self.blocks {
                let stride = if i == 0 && stage > 0 { 2 } else { 1 };
                let name = format!("layer{}.{i}", stage + 1);
                b.block(&name, format!("layer{}", stage + 1), |b| {
                    let first = relu(ConvSpec::new(inputs, outputs, 3).stride(stride));
                    let second = relu(ConvSpec::new(outputs, outputs, 3));
                    let convs = vec![
                        Conv::new(b, &format!("{name}.conv1"), &format!("{name}.bn1"), first)?,
                        Conv::new(b, &format!("{name}.conv2"), &format!("{name}.bn2"), second)?,
                    ];
                    let more = outputs - inputs;
                    let shortcut = if stride > 1 || more > 0 {
                        Shortcut::Subsample { stride, before: more / 2, after: more - more / 2 }
                    } else {
                        Shortcut::Identity
                    };
                    Ok(Residual { convs, shortcut })
                })?;
                inputs = outputs;
            }
        }
        Ok(())
    }
}
