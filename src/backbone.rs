//! Pretrained weights as a value: an ordered list of named blocks that nobody changes.

mod description;
mod init;
mod matching;
mod names;
mod network;
mod snapshot;
mod sound;
mod source;

pub(crate) use description::{DESCRIPTION_VERSION, Saved};
pub(crate) use init::{random_tensors, uniform as init_uniform};
pub(crate) use network::Network;
use network::check_size;
pub(crate) use snapshot::Snapshot;
pub(crate) use sound::check as check_numbers;
pub use source::Source;

use crate::arch::{Arch, InputSpec, Naming};
use crate::error::{Error, Result, shown_list};
use crate::ops::no_grad;
use crate::params::BlockInfo;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
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
    pub arch: Arch,
    pub naming: Naming,
    pub spec: InputSpec,
    pub device: Device,
    pub dtype: DType,
    /// The backbone's tensors by canonical name, running statistics included.
    pub tensors: BTreeMap<String, Tensor>,
    /// Tensors that nothing computes with and that are written back: `num_batches_tracked`.
    pub counters: BTreeMap<String, Tensor>,
    /// The original classifier's weight (classes, feature_dim) and bias (classes).
    pub classifier: Option<(Tensor, Tensor)>,
    /// What the original classifier's classes are called.
    pub labels: Option<Vec<String>>,
    pub origin: Origin,
    pub network: Network,
}

/// Where weights come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    /// A repository of the hub, or a file's name; `None` for random weights.
    pub name: Option<String>,
    /// What was chosen, removed and left aside at loading.
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
    /// Loads the weights of an architecture from a file: safetensors (one file, or the index of its shards) or a
    /// zip-format `.pth`, a state dict or a training checkpoint, with timm's, torchvision's or transformers' names.
    ///
    /// The architecture is an argument because most files do not say theirs. A predictor that this crate saved does:
    /// [`Source::file`] with [`Backbone::load`] needs none, and [`Predictor::from_file`](crate::Predictor::from_file)
    /// loads it with its head. What a classifier in the file is used for, and what else was left aside, is in
    /// [`Backbone::notes`].
    ///
    /// # Errors
    /// [`Error::Weights`] for a file that is damaged or not understood, or holds weights that are NaN or infinite;
    /// [`Error::WeightsMismatch`] lists names that are missing, names that the architecture does not own, and wrong
    /// shapes.
    pub fn from_file(arch: Arch, path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::load(Source::file(path).arch(arch), device)
    }

    /// Loads from the Hugging Face hub: `owner/name`, or `owner/name@revision`. See [`Source::hub`].
    ///
    /// ```no_run
    /// use candle_finetune::{Backbone, candle_core::Device};
    /// let backbone = Backbone::from_hub("timm/resnet18.a1_in1k", &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Hub`], whose [`kind`](crate::HubError) tells what to do; otherwise as [`Backbone::from_file`].
    #[cfg(feature = "hub")]
    pub fn from_hub(id: impl Into<String>, device: &Device) -> Result<Self> {
        Self::load(Source::hub(id), device)
    }

    /// Loads from a [`Source`], which carries the options.
    pub fn load(source: Source, device: &Device) -> Result<Self> {
        source.load(device)
    }

    /// The small default that the crate carries, for 32 x 32 pixels: no file, no network.
    ///
    /// A ResNet-20 for 32 x 32 pixels that this crate trained on CIFAR-10; see `assets/` for how.
    pub fn embedded(device: &Device) -> Result<Self> {
        Source::embedded().load(device)
    }

    /// Random weights, as one starts from scratch with: He's normal distribution for convolutions.
    pub fn random(arch: Arch, seed: u64, device: &Device) -> Result<Self> {
        let spec = arch.input_spec();
        let tensors = random_tensors(arch, spec.channels, seed, DType::F32, device)?;
        Self::assemble(arch, Naming::Timm, spec, device, tensors, BTreeMap::new(), None, None, Origin::default())
    }

    #[allow(clippy::too_many_arguments)] // the fields of one private struct
    pub(crate) fn assemble(
        arch: Arch,
        naming: Naming,
        spec: InputSpec,
        device: &Device,
        tensors: BTreeMap<String, Tensor>,
        counters: BTreeMap<String, Tensor>,
        classifier: Option<(Tensor, Tensor)>,
        labels: Option<Vec<String>>,
        origin: Origin,
    ) -> Result<Self> {
        if spec.size != arch.input_spec().size {
            check_size(arch, naming, spec.channels, spec.size)?;
        }
        let network = Network::build(arch, naming, spec.channels, &tensors)?;
        let dtype = tensors.values().next().map_or(DType::F32, Tensor::dtype);
        let device = device.clone();
        let inner = Inner { arch, naming, spec, device, dtype, tensors, counters, classifier, labels, origin, network };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Features (N, feature_dim) of images (N, C, H, W), normalised as [`Backbone::input_spec`] says. Always in
    /// evaluation mode, never with a graph.
    ///
    /// # Errors
    /// If the images have another number of channels, or are too small for the architecture.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        no_grad(|| self.inner.network.features(images))
    }

    /// What each stage makes of images (N, C, H, W), averaged over its pixels: the stages of [`Backbone::stages`] in
    /// order, each with features (N, channels). The last are those of [`Backbone::forward`]. In evaluation mode, without
    /// a graph.
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

    /// The architecture.
    pub fn arch(&self) -> Arch {
        self.inner.arch
    }

    /// How images must be prepared.
    pub fn input_spec(&self) -> &InputSpec {
        &self.inner.spec
    }

    /// How many numbers it makes of an image.
    pub fn feature_dim(&self) -> usize {
        self.inner.arch.feature_dim()
    }

    /// The blocks in order, the stem first: the units of freezing.
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.inner.network.blocks
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

    /// What the original classifier's classes are called, where the file says so.
    pub fn labels(&self) -> Option<&[String]> {
        self.inner.labels.as_deref()
    }

    /// The number of classes of the original classifier, if the file holds one.
    pub fn num_classes(&self) -> Option<usize> {
        self.inner.classifier.as_ref().and_then(|(weight, _)| weight.dims().first().copied())
    }

    /// What happened at loading that may surprise: averaged weights were taken, a prefix was removed from names, a
    /// classifier that is not one linear layer was left aside. Empty where a file holds just what was asked for.
    ///
    /// ```
    /// use candle_finetune::{Backbone, candle_core::Device};
    /// assert!(Backbone::embedded(&Device::Cpu)?.notes().is_empty());
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn notes(&self) -> &[String] {
        &self.inner.origin.notes
    }

    /// Why there is no original classifier to use, with the remedy.
    pub(crate) fn without_classifier(&self) -> String {
        match self.inner.origin.unused.as_slice() {
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
        &self.inner.device
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
    /// Every architecture here is convolutional and takes any size that leaves pixels for its last layers.
    ///
    /// # Errors
    /// If the size is too small; the message has the least one.
    pub fn for_input_size(&self, height: usize, width: usize) -> Result<Self> {
        self.for_input_spec(self.inner.spec.clone().size(height, width))
    }

    /// The same weights with images prepared in another way; [`Backbone::input_spec`] says how now.
    ///
    /// # Errors
    /// If the number of channels differs, which [`Source::channels`] changes at loading, or the images would be too
    /// small.
    pub fn for_input_spec(&self, spec: InputSpec) -> Result<Self> {
        if spec.channels != self.inner.spec.channels || spec.mean.len() != spec.channels {
            let problem = "the number of channels is fixed when weights are loaded (`Source::channels`)";
            return Err(Error::invalid("input specification", problem));
        }
        let i = &self.inner;
        let (tensors, counters) = (i.tensors.clone(), i.counters.clone());
        let (classifier, labels, origin) = (i.classifier.clone(), i.labels.clone(), i.origin.clone());
        Self::assemble(i.arch, i.naming, spec, &i.device, tensors, counters, classifier, labels, origin)
    }

    /// Everything but the weights: for a session, which has copies of its own.
    pub(crate) fn outline(&self) -> Self {
        let i = &self.inner;
        let inner = Inner {
            arch: i.arch,
            naming: i.naming,
            spec: i.spec.clone(),
            device: i.device.clone(),
            dtype: i.dtype,
            tensors: BTreeMap::new(),
            counters: i.counters.clone(),
            classifier: None,
            labels: None,
            origin: i.origin.clone(),
            network: i.network.outline(),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl std::fmt::Debug for Backbone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let blocks = self.blocks().len();
        let parameters: usize = self.blocks().iter().map(|b| b.parameters).sum();
        write!(f, "Backbone({}, {blocks} blocks, {parameters} parameters, {:?}", self.arch(), self.inner.device)?;
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
