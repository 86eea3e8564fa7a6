//! Predictors: trained networks that classify images.

mod calibrate;
mod folder;
mod grad_cam;
mod mistakes;
mod saved;

pub use grad_cam::GradCam;
pub use mistakes::Mistake;

use crate::backbone::Backbone;
use crate::blueprint::Blueprint;
use crate::data::{Dataset, Image, largest};
use crate::error::{Error, Result};
use crate::head::Head;
use crate::inference::{BATCH, Inference};
use crate::metrics::{Evaluation, Task};
use crate::params::{Slot, Slots};
use crate::report::Report;
use crate::source::{Source, imagenet_labels};
use crate::weights::{Disk, Os};
use candle_core::{DType, Device, Tensor};
use std::path::Path;
use std::sync::Arc;

/// A network with its classifier, its labels, and the preparation of its input.
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
    /// The report of its training, as the JSON that is saved with it.
    pub(crate) report: Option<serde_json::Value>,
}

/// The prediction for one image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Prediction {
    /// The most probable class.
    pub class: u32,
    /// Its label.
    pub label: String,
    /// Its probability, in [0, 1].
    pub probability: f32,
    /// The probability of every class, in the order of [`Predictor::labels`]. They add up to 1, unless the network
    /// predicts lists of labels.
    pub probabilities: Vec<f32>,
    /// The predicted classes: the most probable one, or every label whose probability reaches its threshold, maybe none,
    /// if the network predicts lists of labels.
    pub classes: Vec<u32>,
}

impl Predictor {
    /// Loads a file that [`Predictor::save`] wrote; the file names its architecture. For published weights with their
    /// original classifier, see [`Predictor::load`].
    ///
    /// # Errors
    /// [`Error::Weights`] for a file that is damaged or was not saved by this crate.
    pub fn from_file(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        saved::read(path.as_ref(), None, device)
    }

    /// Loads a predictor of your own network, whose layers no file describes: `blueprint` is that of the backbone that
    /// was trained, by the same name.
    ///
    /// ```
    /// use candle_finetune::{Backbone, Block, Blueprint, Conv2d, FineTuner, InputSpec, Optimizer, Phase, Plan, Predictor};
    /// use candle_finetune::candle_core::Device;
    /// # use candle_finetune::TensorDataset;
    /// # use candle_finetune::candle_core::Tensor;
    ///
    /// # let images = (Tensor::arange(0f32, 3072.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((4, 3, 16, 16))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let file = tempfile::NamedTempFile::new().unwrap();
    /// # let path = file.path();
    /// let blocks = vec![Block::new("stem", Conv2d::new(3, 8, 3).batch_norm().relu())];
    /// let blueprint = Blueprint::from_blocks("small_cnn", InputSpec::new(16), 8, blocks)?;
    /// let backbone = Backbone::random(&blueprint, 1, &Device::Cpu)?;
    /// let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]);
    /// let tuned = FineTuner::new(backbone).plan(plan).fit(&train, &train.clone())?;
    /// tuned.predictor.save(path)?;
    /// let predictor = Predictor::from_file_as(path, &blueprint, &Device::Cpu)?;
    /// assert_eq!(predictor.labels(), ["a", "b"]);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Predictor::from_file`]; [`Error::Weights`] too for the predictor of another network.
    pub fn from_file_as(path: impl AsRef<Path>, blueprint: &Blueprint, device: &Device) -> Result<Self> {
        saved::read(path.as_ref(), Some(blueprint), device)
    }

    /// A predictor from the Hugging Face hub, `owner/name` or `owner/name@revision`: one that
    /// [`Predictor::push_to_hub`] uploaded, or a pretrained network with its original classifier. See [`Source::hub`].
    ///
    /// ```no_run
    /// use candle_finetune::{Predictor, candle_core::Device};
    /// let predictor = Predictor::from_hub("timm/resnet18.a1_in1k", &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn from_hub(id: impl Into<String>, device: &Device) -> Result<Self> {
        Self::load(Source::hub(id), device)
    }

    /// Loads a pretrained network with its original classifier from a [`Source`], with its labels if the source has
    /// them. Otherwise the 1000 classes of an architecture whose default weights are ImageNet's get ImageNet's labels,
    /// and other classes are named by their indices. A predictor that this crate saved is loaded as it was.
    ///
    /// ```
    /// use candle_finetune::{Predictor, Source, candle_core::Device};
    /// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
    /// assert_eq!(predictor.labels().len(), 10); // those of CIFAR-10
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Backbone::load`], and if there is no classifier.
    pub fn load(source: Source, device: &Device) -> Result<Self> {
        let mut opened = source.open()?;
        if let Some(saved) = opened.saved.take() {
            return saved::assemble(&opened, saved, device);
        }
        let backbone = opened.backbone(device)?;
        let Some(classes) = backbone.num_classes() else {
            let remedy = "fine-tune a new one on the backbone (`Backbone::load`)";
            return Err(Error::invalid("predictor", format!("{}; {remedy}", backbone.without_classifier())));
        };
        let labels = match backbone.labels() {
            Some(labels) => labels.to_vec(),
            None if classes == 1000 && is_for_imagenet(&backbone) => imagenet_labels(),
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
        report: Option<serde_json::Value>,
    ) -> Result<Self> {
        let slots: Slots = tensors.into_iter().map(|(name, t)| (name, Slot::Frozen(t))).collect();
        let inference = Inference::new(&backbone, head, slots, labels)?;
        Ok(Self { backbone, inference: Arc::new(inference), report })
    }

    /// The same for another task. The predictor is new: nobody else holds its network.
    pub(crate) fn for_task(mut self, task: Task, thresholds: Vec<f32>) -> Self {
        if let Some(inference) = Arc::get_mut(&mut self.inference) {
            (inference.task, inference.thresholds) = (task, thresholds);
        }
        self
    }

    /// The report of its training: the plan, the figures of every epoch, the final accuracy. `None` if it was not
    /// trained by this crate. Times are left out, so that equal seeds save equal files.
    ///
    /// # Errors
    /// If the file was saved by a version of the crate with another format of reports.
    pub fn report(&self) -> Result<Option<Report>> {
        let Some(report) = &self.report else { return Ok(None) };
        let report = serde_json::from_value(report.clone());
        report.map(Some).map_err(|error| Error::invalid("report", format!("of the predictor cannot be read: {error}")))
    }

    /// Saves everything in one safetensors file: weights under timm's names, labels, the preparation of images, and the
    /// report. The file is replaced atomically.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_through(&mut Os, path.as_ref())
    }

    /// As [`Predictor::save`], with every system call going through `disk`.
    pub(crate) fn save_through(&self, disk: &mut impl Disk, path: &Path) -> Result<()> {
        saved::write(self, path, disk)
    }

    /// Saves a folder in the layout of timm's repositories on the hub: `model.safetensors` with all that
    /// [`Predictor::save`] writes, a `config.json` from which `timm.create_model("local-dir:FOLDER", pretrained=True)`
    /// makes the same network, and a `README.md`, the model card. [`Source::dir`](crate::Source::dir) opens it. The
    /// folder is created if it does not exist.
    ///
    /// ```
    /// use candle_finetune::{Predictor, Source, candle_core::Device};
    /// # let dir = tempfile::tempdir()?;
    /// # let folder = dir.path().join("cifar10");
    /// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
    /// predictor.save_folder(&folder)?;
    /// let again = Predictor::load(Source::dir(&folder), &Device::Cpu)?;
    /// assert_eq!(again.labels(), predictor.labels());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// timm supports linear heads and its own architectures; the card mentions if it cannot load the network. An
    /// existing `README.md` that this crate did not write is left unchanged.
    pub fn save_folder(&self, path: impl AsRef<Path>) -> Result<()> {
        folder::write(self, path.as_ref(), None)
    }

    /// Uploads the folder of [`Predictor::save_folder`] to the Hugging Face hub as one commit. Returns its address.
    ///
    /// ```no_run
    /// use candle_finetune::{Predictor, HubUpload, candle_core::Device};
    /// let predictor = Predictor::from_file("ants-bees.safetensors", &Device::Cpu)?;
    /// // The token comes from HF_TOKEN or `hf auth login`.
    /// predictor.push_to_hub(&HubUpload::to("me/ants-bees").create().private())?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Hub`] if the repository does not exist, the token may not write, or the hub cannot be reached.
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
        all.pop().ok_or_else(|| Error::invalid("images", "are empty"))
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
            let probabilities = self.task().probabilities(&logits)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let finite = |row: &Vec<f32>| row.iter().all(|p| p.is_finite());
            if let Some(k) = probabilities.iter().position(|row| !finite(row)) {
                return Err(Error::NotFinite { what: format!("the outputs of the network for image {}", done + k) });
            }
            predictions.extend(probabilities.into_iter().map(|p| self.prediction(p)));
        }
        Ok(predictions)
    }

    /// Logits (N, classes) of prepared images (N, C, H, W), in the network's element type: the input of the softmax in
    /// [`Predictor::predict_batch`]. Without a graph.
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
        let classes = match self.task() {
            Task::Classes => vec![class as u32],
            Task::Labels => self.inference.labels_of(&probabilities),
        };
        Prediction { class: class as u32, label, probability, probabilities, classes }
    }

    /// Whether it predicts one class or lists of labels.
    pub fn task(&self) -> Task {
        self.inference.task
    }

    /// The probability from which each label counts as predicted, in the order of [`Predictor::labels`];
    /// `None` unless it predicts lists of labels. [`FineTuner::fit`](crate::FineTuner::fit) chooses them on the validation
    /// data, by the highest F1 of each.
    pub fn thresholds(&self) -> Option<Vec<f32>> {
        (self.task() == Task::Labels).then(|| self.inference.thresholds().collect())
    }

    /// Evaluates on labelled data, whose classes must be the predictor's, in its order.
    ///
    /// # Errors
    /// If the data holds no samples, its classes are not the predictor's, its targets are of another [`Task`] than the
    /// predictor's, or an image cannot be read.
    pub fn evaluate<D: Dataset + Clone + 'static>(&self, data: &D) -> Result<Evaluation> {
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let evaluation = self.inference.evaluate(&data, None);
        // Later work does not need the memory of large batches.
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

/// Whether the network's default weights are ImageNet's: of an architecture with weights on the hub, or one of the zoo.
fn is_for_imagenet(backbone: &Backbone) -> bool {
    backbone.arch().map_or(backbone.blueprint().is_built_in(), |arch| arch.hub_id().is_some())
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Predictor({:?}, {} labels)", self.backbone, self.labels().len())
    }
}
