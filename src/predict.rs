//! What comes out of training: labels for images.

mod folder;
mod inference;
mod saved;

pub(crate) use inference::{BATCH, Inference};

use crate::backbone::{Backbone, Source};
use crate::data::{Dataset, Image, largest};
use crate::embedded::imagenet_labels;
use crate::error::{Error, Result};
use crate::head::Head;
use crate::metrics::Evaluation;
use crate::ops::softmax;
use crate::params::{Slot, Slots};
use crate::train::Report;
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// A network with its classifier, its labels, and the way images are prepared for it.
///
/// ```no_run
/// use candle_finetune::{Image, Predictor};
/// use candle_finetune::candle_core::Device;
///
/// let predictor = Predictor::from_file("ants-bees.safetensors", &Device::Cpu)?;
/// let prediction = predictor.predict(&Image::open("bee.jpg")?)?;
/// println!("{} ({:.1} %)", prediction.label, 100.0 * prediction.probability);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct Predictor {
    pub(crate) backbone: Backbone,
    pub(crate) inference: Arc<Inference>,
    /// The JSON that is saved with it: how it was made.
    pub(crate) story: Option<serde_json::Value>,
}

/// What a network says of one image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// The likeliest class.
    pub class: u32,
    /// Its label.
    pub label: String,
    /// Its probability, in [0, 1].
    pub probability: f32,
    /// The probability of every class, in the order of [`Predictor::labels`].
    pub probabilities: Vec<f32>,
}

impl Predictor {
    /// Loads what [`Predictor::save`] wrote, which says itself what architecture it is. For weights with the classifier
    /// that they were published with, see [`Predictor::pretrained`].
    ///
    /// # Errors
    /// [`Error::Weights`] for a file that is damaged or was not saved by this crate.
    pub fn from_file(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        saved::read(path.as_ref(), device)
    }

    /// A predictor of the Hugging Face hub, `owner/name` or `owner/name@revision`: one that [`Predictor::push_to_hub`]
    /// put there, or a pretrained network with its original classifier. See [`Source::hub`].
    ///
    /// ```no_run
    /// use candle_finetune::{Predictor, candle_core::Device};
    /// let predictor = Predictor::from_hub("timm/resnet18.a1_in1k", &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn from_hub(id: impl Into<String>, device: &Device) -> Result<Self> {
        Self::pretrained(Source::hub(id), device)
    }

    /// A pretrained network with its original classifier, and its labels where the file has them. Without, the 1000
    /// classes of an architecture whose default weights are ImageNet's get ImageNet's labels; other classes are called
    /// by their numbers. A predictor that this crate saved comes back as it was.
    ///
    /// # Errors
    /// As [`Backbone::load`], and if the file has no classifier.
    pub fn pretrained(source: Source, device: &Device) -> Result<Self> {
        let (source, weights, _) = source.read()?;
        if let Some(saved) = saved::description(&weights)?
            && source.may_be(saved.arch.parse()?)
        {
            return saved::assemble(&weights, saved, source, device);
        }
        let backbone = Backbone::load(source, device)?;
        let Some(classes) = backbone.num_classes() else {
            let remedy = "fine-tune a new one on the backbone (`Backbone::load`)";
            return Err(Error::invalid("predictor", format!("{}; {remedy}", backbone.without_classifier())));
        };
        let labels = match backbone.labels() {
            Some(labels) => labels.to_vec(),
            None if classes == 1000 && backbone.arch().hub_id().is_some() => imagenet_labels(),
            None => (0..classes).map(|i| i.to_string()).collect(),
        };
        let head = Head::original();
        let tensors = head.start(&backbone, classes, 0)?;
        Self::assemble(backbone, head, tensors, labels, None)
    }

    pub(crate) fn assemble(
        backbone: Backbone,
        head: Head,
        tensors: Vec<(String, Tensor)>,
        labels: Vec<String>,
        story: Option<serde_json::Value>,
    ) -> Result<Self> {
        let slots: Slots = tensors.into_iter().map(|(name, t)| (name, Slot::Frozen(t))).collect();
        let inference = Inference::new(&backbone, head, slots, labels)?;
        Ok(Self { backbone, inference: Arc::new(inference), story })
    }

    /// How it was made: the plan, the figures of every epoch, the final accuracy. `None` for one that was not trained
    /// here. Seconds are not kept, so that equal seeds save equal files.
    ///
    /// # Errors
    /// If the file was saved by a version of the crate whose reports look different.
    pub fn report(&self) -> Result<Option<Report>> {
        let Some(story) = &self.story else { return Ok(None) };
        let report = serde_json::from_value(story.clone());
        report.map(Some).map_err(|error| Error::invalid("report", format!("of the predictor cannot be read: {error}")))
    }

    /// Saves everything in one safetensors file: weights under timm's names, labels, how images are prepared, and how
    /// it was made. The file appears whole or not at all.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        saved::write(self, path.as_ref())
    }

    /// Saves a folder as timm has it on the hub: `model.safetensors` with all that [`Predictor::save`] writes, a
    /// `config.json` from which `timm.create_model("local-dir:FOLDER", pretrained=True)` makes the same network, and a
    /// `README.md`, the model card. [`Source::dir`](crate::Source::dir) opens it. The folder is made if it is not there.
    ///
    /// ```
    /// use candle_finetune::{Predictor, Source, candle_core::Device};
    /// # let dir = tempfile::tempdir()?;
    /// # let folder = dir.path().join("cifar10");
    /// let predictor = Predictor::pretrained(Source::embedded(), &Device::Cpu)?;
    /// predictor.save_folder(&folder)?;
    /// let again = Predictor::pretrained(Source::dir(&folder), &Device::Cpu)?;
    /// assert_eq!(again.labels(), predictor.labels());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// timm knows linear heads, and architectures of its own; the card says so where it cannot load the network. A
    /// `README.md` that is there and was not written by this crate stays as it is.
    pub fn save_folder(&self, path: impl AsRef<Path>) -> Result<()> {
        folder::write(self, path.as_ref(), None)
    }

    /// Puts the folder of [`Predictor::save_folder`] on the Hugging Face hub as one commit. Returns its address.
    ///
    /// ```no_run
    /// use candle_finetune::{Predictor, HubUpload, candle_core::Device};
    /// let predictor = Predictor::from_file("ants-bees.safetensors", &Device::Cpu)?;
    /// // The token is HF_TOKEN's, or that of `hf auth login`.
    /// predictor.push_to_hub(&HubUpload::to("me/ants-bees").create().private())?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Hub`]: where it must be created first, where the token may not write, where nothing can be reached.
    #[cfg(feature = "hub")]
    pub fn push_to_hub(&self, to: &crate::HubUpload) -> Result<String> {
        let folder = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        folder::write(self, folder.path(), Some(to.id()))?;
        to.push(folder.path(), &folder::FILES, folder::is_ours)
    }

    /// Classifies one image.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the network's output is not finite.
    pub fn predict(&self, image: &Image) -> Result<Prediction> {
        let mut all = self.predict_batch(std::slice::from_ref(image))?;
        all.pop().ok_or_else(|| Error::invalid("images", "there are none"))
    }

    /// Classifies images, 32 at a time.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the network's output for an image is not finite.
    pub fn predict_batch(&self, images: &[Image]) -> Result<Vec<Prediction>> {
        let mut predictions = Vec::with_capacity(images.len());
        for images in images.chunks(BATCH) {
            let done = predictions.len();
            let tensors: Vec<Tensor> = images.iter().map(|i| self.inference.prepare(i)).collect::<Result<_>>()?;
            let logits = self.inference.logits(&Tensor::stack(&tensors, 0)?.to_device(self.backbone.device())?)?;
            let probabilities = softmax(&logits)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let finite = |row: &Vec<f32>| row.iter().all(|p| p.is_finite());
            if let Some(k) = probabilities.iter().position(|row| !finite(row)) {
                return Err(Error::NotFinite { what: format!("the outputs of the network for image {}", done + k) });
            }
            predictions.extend(probabilities.into_iter().map(|p| self.prediction(p)));
        }
        Ok(predictions)
    }

    /// Logits (N, classes) of images (N, C, H, W) that are prepared already, in the network's number type: what stands
    /// before the softmax of [`Predictor::predict_batch`]. No graph.
    ///
    /// # Errors
    /// If the images have another number of channels, or are too small for the architecture.
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.inference.logits(images)
    }

    fn prediction(&self, probabilities: Vec<f32>) -> Prediction {
        let class = largest(&probabilities);
        let label = self.labels().get(class).cloned().unwrap_or_default();
        let probability = probabilities.get(class).copied().unwrap_or(0.0);
        Prediction { class: class as u32, label, probability, probabilities }
    }

    /// Runs over labelled data. The data's classes must be the predictor's, in its order.
    ///
    /// # Errors
    /// If the data holds no samples, its classes are not the predictor's, a sample has a list of labels, or an image is
    /// broken.
    pub fn evaluate<D: Dataset + Clone + 'static>(&self, data: &D) -> Result<Evaluation> {
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let evaluation = self.inference.evaluate(&data, None);
        // The memory of large batches is not needed by what comes next.
        crate::ops::release_pool();
        evaluation
    }

    /// The classes' labels, in their order.
    pub fn labels(&self) -> &[String] {
        &self.inference.labels
    }

    /// The backbone, fine-tuned.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Predictor({:?}, {} labels)", self.backbone, self.labels().len())
    }
}
