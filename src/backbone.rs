//! An immutable network with weights and without its classifier, divided into named blocks.

mod init;
mod network;

pub(crate) use init::{random_tensors, uniform as init_uniform};
use network::check_size;
pub(crate) use network::{Network, residual_branches, spatial_blocks};

use crate::arch::{Arch, Naming};
use crate::blueprint::Blueprint;
use crate::error::{Error, Result, shown_list};
use crate::input_spec::InputSpec;
use crate::nn::BlockInfo;
use crate::ops::no_grad;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A network without its classifier: images in, features out.
///
/// It is a value. Cloning is cheap (tensors are shared), and nothing that was handed out ever changes: training works
/// on copies.
///
/// ```
/// use candle_finetune::{Arch, Backbone};
/// use candle_finetune::candle_core::{DType, Device, Tensor};
///
/// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// let features = backbone.forward(&images)?;
/// assert_eq!(features.dims(), [2, 64]);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct Backbone {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub profile: Profile,
    /// The backbone's tensors by canonical name, running statistics included.
    pub tensors: BTreeMap<String, Tensor>,
    /// The original classifier's weight (classes, feature_dim) and bias (classes).
    pub classifier: Option<(Tensor, Tensor)>,
    /// The labels of the original classifier's classes.
    pub labels: Option<Vec<String>>,
    pub network: Network,
}

/// The metadata of a backbone's weights. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub blueprint: Blueprint,
    /// Whose names the weights came with.
    pub naming: Naming,
    pub spec: InputSpec,
    pub device: Device,
    pub dtype: DType,
    /// Tensors that are only saved again, unused: `num_batches_tracked`.
    pub counters: Arc<BTreeMap<String, Tensor>>,
    pub origin: Origin,
}

/// The origin of weights.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    /// A repository of the hub, or a file's name; `None` for random weights.
    pub name: Option<String>,
    /// What was chosen, removed and ignored at loading.
    pub notes: Vec<String>,
    /// Names and shapes of the file's classifier where it is not one linear layer over the features.
    pub unused: Vec<String>,
}

impl Origin {
    /// The place alone, for weights that were trained since.
    pub fn place(&self) -> Self {
        Self { name: self.name.clone(), ..Self::default() }
    }
}

impl Backbone {
    /// Random weights to train from scratch with, of an [`Arch`] or of your own [`Blueprint`]: convolutions start from
    /// He's normal distribution (He et al. 2015, arXiv 1502.01852). Equal seeds give equal weights.
    ///
    /// # Errors
    /// If the network does not support the size in its specification.
    pub fn random<N>(network: N, seed: u64, device: &Device) -> Result<Self>
    where
        N: TryInto<Blueprint>,
        Error: From<N::Error>,
    {
        let blueprint = network.try_into()?;
        let tensors = random_tensors(&blueprint, seed, DType::F32, device)?;
        let spec = blueprint.input_spec().clone();
        let profile = Profile {
            blueprint,
            naming: Naming::Timm,
            spec,
            device: device.clone(),
            dtype: DType::F32,
            counters: Arc::default(),
            origin: Origin::default(),
        };
        Self::assemble(profile, tensors, None, None)
    }

    pub(crate) fn assemble(
        mut profile: Profile,
        tensors: BTreeMap<String, Tensor>,
        classifier: Option<(Tensor, Tensor)>,
        labels: Option<Vec<String>>,
    ) -> Result<Self> {
        if profile.spec.size != profile.blueprint.input_spec().size {
            check_size(&profile.blueprint, profile.spec.size)?;
        }
        let network = Network::build(&profile.blueprint, &tensors)?;
        profile.dtype = tensors.values().next().map_or(DType::F32, Tensor::dtype);
        Ok(Self { inner: Arc::new(Inner { profile, tensors, classifier, labels, network }) })
    }

    /// Features (N, feature_dim) of images (N, C, H, W), normalised as in [`Backbone::input_spec`]. Always in
    /// evaluation mode, never with a graph.
    ///
    /// # Errors
    /// If the images have another number of channels, or are too small for the architecture.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        no_grad(|| self.inner.network.features(images))
    }

    /// The output of each stage for images (N, C, H, W), averaged over its pixels: the stages of [`Backbone::stages`]
    /// in order, each with features (N, channels). The last are those of [`Backbone::forward`]. In evaluation mode,
    /// without a graph.
    ///
    /// A linear classifier on each shows where in the network the features fit some images best.
    ///
    /// ```
    /// use candle_finetune::{Arch, Backbone};
    /// use candle_finetune::candle_core::{DType, Device, Tensor};
    ///
    /// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
    /// for (stage, features) in backbone.stage_features(&images)? {
    ///     println!("{stage}: {:?}", features.dims()); // stem: [2, 16] ... layer3: [2, 64]
    /// }
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn stage_features(&self, images: &Tensor) -> Result<Vec<(String, Tensor)>> {
        no_grad(|| self.inner.network.stage_features(images))
    }

    /// The architecture, if it is one of the crate's.
    pub fn arch(&self) -> Option<Arch> {
        Arch::of(&self.inner.profile.blueprint)
    }

    /// The network without its weights.
    pub fn blueprint(&self) -> &Blueprint {
        &self.inner.profile.blueprint
    }

    /// The name of the architecture or blueprint: "resnet18".
    pub fn name(&self) -> &str {
        self.blueprint().name()
    }

    /// The preprocessing of images.
    pub fn input_spec(&self) -> &InputSpec {
        &self.inner.profile.spec
    }

    /// The number of features per image.
    pub fn feature_dim(&self) -> usize {
        self.blueprint().feature_dim()
    }

    /// The blocks in order, the stem first: the units of freezing.
    pub fn blocks(&self) -> &[BlockInfo] {
        self.blueprint().blocks()
    }

    /// The stages in order: name, and how many learnable parameters they hold.
    pub fn stages(&self) -> Vec<(String, usize)> {
        let mut stages: Vec<(String, usize)> = Vec::new();
        for block in self.blocks() {
            match stages.last_mut() {
                Some((name, size)) if *name == block.stage => *size += block.parameters,
                _ => stages.push((block.stage.clone(), block.parameters)),
            }
        }
        stages
    }

    /// The labels of the original classifier, if the file holds them.
    pub fn labels(&self) -> Option<&[String]> {
        self.inner.labels.as_deref()
    }

    /// The number of classes of the original classifier, if the file holds one.
    pub fn num_classes(&self) -> Option<usize> {
        self.inner.classifier.as_ref().and_then(|(weight, _)| weight.dims().first().copied())
    }

    /// Decisions at loading that may be unexpected: averaged weights were taken, a prefix was removed from names, a
    /// classifier that is not one linear layer was ignored. Empty if none was needed.
    ///
    /// ```
    /// use candle_finetune::{Backbone, candle_core::Device};
    /// assert!(Backbone::embedded(&Device::Cpu)?.notes().is_empty());
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn notes(&self) -> &[String] {
        &self.inner.profile.origin.notes
    }

    /// Why there is no original classifier to use, with the remedy.
    pub(crate) fn without_classifier(&self) -> String {
        match self.inner.profile.origin.unused.as_slice() {
            [] => "the weights came without a classifier".into(),
            unused => format!(
                "the classifier that came with the weights is not one linear layer over {} features: it is {}",
                self.feature_dim(),
                shown_list(unused.iter().map(String::as_str))
            ),
        }
    }

    /// Every tensor by its canonical (timm) name, running statistics included.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.inner.tensors
    }

    /// The device that holds the tensors.
    pub fn device(&self) -> &Device {
        &self.inner.profile.device
    }

    /// The same weights for images of another size: height and width in pixels.
    ///
    /// ```
    /// use candle_finetune::{Arch, Backbone, candle_core::Device};
    /// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// assert_eq!(backbone.for_input_size(48, 64)?.input_spec().size, (48, 64));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// The crate's architectures are convolutional and take any size that leaves pixels for their last layers. Vision
    /// transformers of the zoo take fewer sizes, and the error names them.
    ///
    /// # Errors
    /// If the size is too small; the message has the smallest one.
    pub fn for_input_size(&self, height: usize, width: usize) -> Result<Self> {
        self.for_input_spec(self.input_spec().clone().size(height, width))
    }

    /// The same weights with another preprocessing than [`Backbone::input_spec`].
    ///
    /// # Errors
    /// If the number of channels differs, which [`Source::channels`](crate::Source::channels) changes at loading, or
    /// the images would be too small.
    pub fn for_input_spec(&self, spec: InputSpec) -> Result<Self> {
        if spec.channels != self.input_spec().channels || spec.mean.len() != spec.channels {
            let problem = "the number of channels is fixed when weights are loaded (`Source::channels`)";
            return Err(Error::invalid("input specification", problem));
        }
        let Inner { profile, tensors, classifier, labels, .. } = &*self.inner;
        let profile = Profile { spec, ..profile.clone() };
        Self::assemble(profile, tensors.clone(), classifier.clone(), labels.clone())
    }
}

impl std::fmt::Debug for Backbone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.blocks().len();
        let parameters: usize = self.blocks().iter().map(|b| b.parameters).sum();
        write!(f, "Backbone({}, {blocks} blocks, {parameters} parameters, {:?}", self.name(), self.device())?;
        if let Some(classes) = self.num_classes() {
            write!(f, "; classifier of {classes} classes")?;
            if let Some(labels) = self.labels() {
                let more = if labels.len() > 5 { ", ..." } else { "" };
                write!(f, ": {}{more}", shown_list(labels.iter().take(5).map(String::as_str)))?;
            }
        }
        for note in self.notes() {
            write!(f, "; {note}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(channels: usize, size: usize) -> Tensor {
        let count = 2 * channels * size * size;
        let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 251) as f32 / 125.0 - 1.0).collect();
        Tensor::from_vec(values, (2, channels, size, size), &Device::Cpu).unwrap()
    }

    fn numbers(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn features_after_each_stage_are_those_of_the_blocks_up_to_it() {
        for (arch, size) in [(Arch::CIFAR_RESNET20, 32), (Arch::TF_EFFICIENTNET_LITE0, 64), (Arch::VGG11_FEATURES, 32)]
        {
            let backbone = Backbone::random(arch, 3, &Device::Cpu).unwrap();
            let images = images(3, size);
            let stages = backbone.stage_features(&images).unwrap();
            let names: Vec<&String> = stages.iter().map(|(name, _)| name).collect();
            let known = backbone.stages();
            assert_eq!(names, known.iter().map(|(name, _)| name).collect::<Vec<_>>(), "{arch}");
            for (name, features) in &stages {
                let count = backbone.blocks().iter().rposition(|b| b.stage == *name).unwrap() + 1;
                let map = no_grad(|| backbone.inner.network.prefix(&images, count)).unwrap();
                let mean = if map.rank() == 4 { map.mean((2, 3)).unwrap() } else { map };
                assert_eq!(features.dims(), mean.dims(), "{arch} {name}");
                for (a, b) in numbers(features).iter().zip(numbers(&mean)) {
                    assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{arch} {name}: {a} {b}");
                }
            }
            let last = &stages.last().unwrap().1;
            assert_eq!(numbers(last), numbers(&backbone.forward(&images).unwrap()), "{arch}");
        }
    }

    #[test]
    fn stage_features_refuse_what_forward_refuses() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &Device::Cpu).unwrap();
        let error = backbone.stage_features(&images(1, 32)).unwrap_err().to_string();
        assert!(error.contains("(N, 3, height, width)"), "{error}");
    }
}
