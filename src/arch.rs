//! Built-in architectures: a table with a row each, and a file per family.

mod efficientnet;
mod names;
mod resnet;
mod vgg;

use crate::blueprint::{Blueprint, Kind};
use crate::error::{Error, Result};
use crate::input_spec::{InputSpec, Interpolation};
use crate::nn::Builder;
use std::fmt;
use std::sync::Arc;

/// The facts of one architecture.
pub(crate) struct Row {
    name: &'static str,
    /// The hub's repository with weights whose preprocessing the row's specification describes; "" if there is none.
    hub: &'static str,
    feature_dim: usize,
    /// The classifier's name in timm.
    classifier: &'static str,
    spec: fn() -> InputSpec,
    /// Overrides the specification's crop where it is not 0 (rows that differ in nothing else).
    crop_pct: f64,
    /// The same for torchvision's first weights, where it has any: (size, interpolation, crop).
    torchvision: Option<(usize, Interpolation, f64)>,
    family: Family,
}

/// The families, with the parameters of their members.
enum Family {
    ResNet(resnet::ResNet),
    Cifar(resnet::CifarResNet),
    Vgg(vgg::Vgg),
    EfficientNet(efficientnet::EfficientNet),
}

/// Whose names a file of weights uses.
///
/// Inside, everything has timm's names. The naming also decides where the two libraries compute differently: VGG's
/// first fully connected layer over inputs larger than 224 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Naming {
    /// timm's names; also the crate's own.
    Timm,
    /// torchvision's names.
    Torchvision,
    /// The names that Hugging Face's transformers writes. ResNets only.
    Transformers,
}

/// ImageNet's mean and standard deviation at this size.
fn imagenet(size: usize, interpolation: Interpolation, crop_pct: f64) -> InputSpec {
    InputSpec::new(size).interpolation(interpolation).crop_pct(crop_pct)
}

/// An architecture that the crate can build, load and train.
///
/// ```
/// use candle_finetune::Arch;
/// let arch: Arch = "resnet18".parse()?;
/// assert_eq!(arch, Arch::RESNET18);
/// assert_eq!(arch.feature_dim(), 512);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Arch(&'static Row);

macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident = $row:path;)*) => {
        impl Arch {
            $($(#[$doc])* pub const $name: Self = Self(&$row);)*

            /// Every architecture there is.
            pub fn all() -> &'static [Self] {
                &[$(Self::$name),*]
            }
        }
    };
}

rows! {
    /// ResNet-18.
    RESNET18 = resnet::RESNET18;
    /// ResNet-34.
    RESNET34 = resnet::RESNET34;
    /// ResNet-50.
    RESNET50 = resnet::RESNET50;
    /// ResNet-101.
    RESNET101 = resnet::RESNET101;
    /// ResNet-152.
    RESNET152 = resnet::RESNET152;
    /// Wide ResNet-50-2.
    WIDE_RESNET50_2 = resnet::WIDE_RESNET50_2;
    /// ResNeXt-50 32x4d.
    RESNEXT50_32X4D = resnet::RESNEXT50_32X4D;
    /// ResNet-20 for 32 x 32 pixels.
    CIFAR_RESNET20 = resnet::CIFAR_RESNET20;
    /// ResNet-32 for 32 x 32 pixels.
    CIFAR_RESNET32 = resnet::CIFAR_RESNET32;
    /// ResNet-44 for 32 x 32 pixels.
    CIFAR_RESNET44 = resnet::CIFAR_RESNET44;
    /// ResNet-56 for 32 x 32 pixels.
    CIFAR_RESNET56 = resnet::CIFAR_RESNET56;
    /// VGG-11.
    VGG11 = vgg::VGG11;
    /// VGG-11 with batch norm.
    VGG11_BN = vgg::VGG11_BN;
    /// VGG-13.
    VGG13 = vgg::VGG13;
    /// VGG-13 with batch norm.
    VGG13_BN = vgg::VGG13_BN;
    /// VGG-16.
    VGG16 = vgg::VGG16;
    /// VGG-16 with batch norm.
    VGG16_BN = vgg::VGG16_BN;
    /// VGG-19.
    VGG19 = vgg::VGG19;
    /// VGG-19 with batch norm.
    VGG19_BN = vgg::VGG19_BN;
    /// VGG-11's convolutions, globally pooled.
    VGG11_FEATURES = vgg::VGG11_FEATURES;
    /// The convolutions of VGG-11 with batch norm, globally pooled.
    VGG11_BN_FEATURES = vgg::VGG11_BN_FEATURES;
    /// VGG-13's convolutions, globally pooled.
    VGG13_FEATURES = vgg::VGG13_FEATURES;
    /// The convolutions of VGG-13 with batch norm, globally pooled.
    VGG13_BN_FEATURES = vgg::VGG13_BN_FEATURES;
    /// VGG-16's convolutions, globally pooled.
    VGG16_FEATURES = vgg::VGG16_FEATURES;
    /// The convolutions of VGG-16 with batch norm, globally pooled.
    VGG16_BN_FEATURES = vgg::VGG16_BN_FEATURES;
    /// VGG-19's convolutions, globally pooled.
    VGG19_FEATURES = vgg::VGG19_FEATURES;
    /// The convolutions of VGG-19 with batch norm, globally pooled.
    VGG19_BN_FEATURES = vgg::VGG19_BN_FEATURES;
    /// EfficientNet-B0.
    EFFICIENTNET_B0 = efficientnet::B0;
    /// EfficientNet-B1.
    EFFICIENTNET_B1 = efficientnet::B1;
    /// EfficientNet-B2.
    EFFICIENTNET_B2 = efficientnet::B2;
    /// EfficientNet-B3.
    EFFICIENTNET_B3 = efficientnet::B3;
    /// EfficientNet-B4.
    EFFICIENTNET_B4 = efficientnet::B4;
    /// EfficientNet-Lite0.
    TF_EFFICIENTNET_LITE0 = efficientnet::LITE0;
    /// EfficientNet-Lite1.
    TF_EFFICIENTNET_LITE1 = efficientnet::LITE1;
    /// EfficientNet-Lite2.
    TF_EFFICIENTNET_LITE2 = efficientnet::LITE2;
    /// EfficientNet-Lite3.
    TF_EFFICIENTNET_LITE3 = efficientnet::LITE3;
    /// EfficientNet-Lite4.
    TF_EFFICIENTNET_LITE4 = efficientnet::LITE4;
}

impl Arch {
    /// The name, as timm spells it where timm has it: "resnet18".
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The hub's repository of the default weights, or `None` where there are none.
    pub fn hub_id(&self) -> Option<&'static str> {
        Some(self.0.hub).filter(|hub| !hub.is_empty())
    }

    /// The number of features per image.
    pub fn feature_dim(&self) -> usize {
        self.0.feature_dim
    }

    /// The classifier's name: its tensors are `{classifier}.weight` and `{classifier}.bias`.
    pub fn classifier(&self) -> &'static str {
        self.0.classifier
    }

    /// The preprocessing of the default weights.
    pub fn input_spec(&self) -> InputSpec {
        let spec = (self.0.spec)();
        if self.0.crop_pct > 0.0 { spec.crop_pct(self.0.crop_pct) } else { spec }
    }

    /// The preprocessing of a file in this naming: for torchvision's, as its first weights
    /// (`IMAGENET1K_V1`) do.
    pub fn input_spec_in(&self, naming: Naming) -> InputSpec {
        match (naming, self.0.torchvision) {
            (Naming::Torchvision, Some((size, interpolation, crop_pct))) => imagenet(size, interpolation, crop_pct),
            (Naming::Transformers, _) => (self.0.spec)(),
            _ => self.input_spec(),
        }
    }

    /// Whether timm has it under this name.
    pub(crate) fn in_timm(self) -> bool {
        match &self.0.family {
            Family::Cifar(_) => false,
            Family::Vgg(net) => net.is_whole(),
            Family::ResNet(_) | Family::EfficientNet(_) => true,
        }
    }

    /// Whether torchvision has it.
    pub(crate) fn in_torchvision(self) -> bool {
        self.0.torchvision.is_some()
    }

    /// The architecture that transformers describes by these facts of a config.json of `model_type` resnet.
    pub(crate) fn of_transformers_resnet(bottleneck: bool, depths: &[usize], widths: &[usize]) -> Option<Self> {
        let fits = |arch: &&Self| match &arch.0.family {
            Family::ResNet(net) => net.is_transformers(bottleneck, depths, widths),
            _ => false,
        };
        Self::all().iter().find(fits).copied()
    }

    /// Whether transformers' own weights of it can be read.
    pub(crate) fn in_transformers(self) -> bool {
        matches!(&self.0.family, Family::ResNet(net) if net.is_plain())
    }

    /// The name in a file of this naming for the tensor with this canonical (timm) name.
    ///
    /// ```
    /// use candle_finetune::{Arch, Naming};
    /// let name = Arch::VGG11.name_in(Naming::Torchvision, "head.fc.weight");
    /// assert_eq!(name, "classifier.6.weight");
    /// ```
    pub fn name_in(&self, naming: Naming, canonical: &str) -> String {
        match self.0.family {
            Family::ResNet(_) => resnet::ResNet::name_in(naming, canonical),
            Family::Cifar(_) => canonical.to_string(),
            Family::Vgg(_) => vgg::Vgg::name_in(naming, canonical),
            Family::EfficientNet(_) => efficientnet::EfficientNet::name_in(naming, canonical),
        }
    }

    /// Whether a file may hold this tensor although the backbone has no use for it.
    pub(crate) fn may_ignore(self, name: &str) -> bool {
        match &self.0.family {
            Family::Vgg(net) => net.may_ignore(name),
            _ => false,
        }
    }

    /// The network without weights, for images of this many channels. Where the libraries compute differently it does
    /// as the one whose names the weights have.
    ///
    /// ```
    /// use candle_finetune::{Arch, Naming};
    /// let blueprint = Arch::RESNET18.blueprint(Naming::Timm, 3)?;
    /// assert_eq!((blueprint.feature_dim(), blueprint.blocks().len()), (512, 9));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for no channels, or more than 4096.
    pub fn blueprint(&self, naming: Naming, channels: usize) -> Result<Blueprint> {
        let arch = *self;
        let spec = self.input_spec().for_channels(channels)?;
        let build = move |b: &mut Builder<'_>| match &arch.0.family {
            Family::ResNet(net) => net.build(b),
            Family::Cifar(net) => net.build(b),
            Family::Vgg(net) => net.build(b, naming),
            Family::EfficientNet(net) => net.build(b),
        };
        let kind = Kind::BuiltIn(format!("{naming:?} {channels}"));
        Blueprint::new(self.name(), spec, self.feature_dim(), self.classifier(), kind, Arc::new(build))
    }

    /// The naming for which a blueprint of [`Arch::blueprint`] was made.
    pub(crate) fn naming_of(blueprint: &Blueprint) -> Naming {
        let made_for = |naming: &Naming| blueprint.layers().starts_with(&format!("{naming:?} "));
        [Naming::Torchvision, Naming::Transformers].into_iter().find(made_for).unwrap_or(Naming::Timm)
    }

    /// The architecture that a blueprint was made of, if it is one of the crate's.
    pub(crate) fn of(blueprint: &Blueprint) -> Option<Self> {
        Self::all().iter().find(|arch| blueprint.is_built_in() && arch.name() == blueprint.name()).copied()
    }
}

impl TryFrom<Arch> for Blueprint {
    type Error = Error;

    /// With timm's naming, for images of the channels that the default weights take.
    fn try_from(arch: Arch) -> Result<Self> {
        arch.blueprint(Naming::Timm, arch.input_spec().channels)
    }
}

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Arch {}

impl fmt::Debug for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arch({})", self.name())
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_has_one_block_and_one_name() {
        for arch in Arch::all() {
            let blueprint = Blueprint::try_from(*arch).unwrap();
            let declared = blueprint.declared();
            let mut names: Vec<_> = declared.iter().map(|d| d.name.clone()).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), declared.len(), "{arch}");
            assert!(declared.iter().any(|d| d.block == 0));
        }
    }
}
