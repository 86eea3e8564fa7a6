//! Where weights come from: a file, a folder, the network in the crate or the Hugging Face hub, with the options of
//! loading.

mod description;
mod embedded;
mod finite;
mod folder;
#[cfg(feature = "hub")]
mod hub;
mod matching;
mod names;
mod opened;
mod wanted;

pub(crate) use description::Saved;
pub(crate) use embedded::imagenet_labels;
pub(crate) use finite::check_finite;
pub(crate) use folder::Snapshot;
#[cfg(feature = "hub")]
pub use hub::{HubDownload, HubUpload};
pub(crate) use opened::Opened;
pub(crate) use wanted::Wanted;

use crate::arch::{Arch, Naming};
use crate::backbone::Backbone;
use crate::blueprint::Blueprint;
use crate::error::{Error, Result};
use crate::input_spec::InputSpec;
use crate::weights::Weights;
use candle_core::{DType, Device};
#[cfg(feature = "hub")]
use hub::{Files, Remote};
use opened::Options;
use std::path::{Path, PathBuf};
#[cfg(feature = "hub")]
use std::sync::Arc;

/// A source of weights.
///
/// ```no_run
/// use candle_finetune::{Arch, Backbone, Source};
/// use candle_finetune::candle_core::Device;
///
/// // Weights for RGB images, adapted to gray ones.
/// let source = Source::file("resnet18.safetensors").arch(Arch::RESNET18).channels(1);
/// let backbone = Backbone::load(source, &Device::Cpu)?;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Source {
    location: Location,
    options: Options,
    /// An option of the hub that was set for another location.
    #[cfg(feature = "hub")]
    misplaced: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum Location {
    File(PathBuf),
    Folder(PathBuf),
    Embedded,
    #[cfg(feature = "hub")]
    Hub(Remote),
}

impl Source {
    /// A file of weights: safetensors, the index of its shards, or a zip-format `.pth`.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self::new(Location::File(path.as_ref().to_path_buf()))
    }

    /// A folder in the hub's format, for example a snapshot in its cache: `model.safetensors` (or an index with its
    /// shards, or `pytorch_model.bin`) beside a `config.json` of timm or transformers, which gives the architecture,
    /// the preprocessing of images and the labels. Uses no network.
    ///
    /// ```no_run
    /// use candle_finetune::{Predictor, Source, candle_core::Device};
    /// let predictor = Predictor::load(Source::dir("models/resnet18.a1_in1k"), &Device::Cpu)?;
    /// println!("{} classes", predictor.labels().len());
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn dir(path: impl AsRef<Path>) -> Self {
        Self::new(Location::Folder(path.as_ref().to_path_buf()))
    }

    /// The network in the crate, see [`Backbone::embedded`].
    pub fn embedded() -> Self {
        Self::new(Location::Embedded)
    }

    /// A predictor that this crate saved, and nothing else, in its own element type.
    pub(crate) fn saved_predictor(path: &Path, blueprint: Option<&Blueprint>) -> Self {
        let source = Self::file(path);
        let mut source = blueprint.into_iter().fold(source, Self::blueprint);
        source.options.saved_only = true;
        source
    }

    fn new(location: Location) -> Self {
        Self {
            location,
            options: Options::default(),
            #[cfg(feature = "hub")]
            misplaced: None,
        }
    }

    /// Sets the architecture. A file that this crate saved names its own.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.options.wanted = Some(Wanted::Arch(arch));
        self
    }

    /// Sets the network: an architecture's blueprint, or your own. The names in the file are its own then; prefixes and
    /// wrappers are removed as from others.
    ///
    /// ```no_run
    /// # use candle_finetune::{Block, Blueprint, Conv2d, InputSpec};
    /// use candle_finetune::{Backbone, Source, candle_core::Device};
    /// # let blocks = vec![Block::new("stem", Conv2d::new(3, 16, 3).relu())];
    /// # let blueprint = Blueprint::from_blocks("small_cnn", InputSpec::new(32), 16, blocks)?;
    /// let backbone = Backbone::load(Source::file("small_cnn.safetensors").blueprint(&blueprint), &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn blueprint(mut self, blueprint: &Blueprint) -> Self {
        let wanted = Wanted::of(blueprint);
        if let Some(arch) = wanted.arch() {
            // What it was made for, where that is not the default.
            let (naming, channels) = (Arch::naming_of(blueprint), blueprint.input_spec().channels);
            self.options.naming = Some(naming).filter(|naming| *naming != Naming::Timm).or(self.options.naming);
            let other = Some(channels).filter(|&channels| channels != arch.input_spec().channels);
            self.options.channels = other.or(self.options.channels);
        }
        self.options.pooling = Some(blueprint.pooling());
        self.options.wanted = Some(wanted);
        self
    }

    /// Sets the library of the weights, if the names do not show it. A ResNet has the same names in timm and
    /// torchvision; it is taken for timm's, which crops images differently.
    ///
    /// Loading fails if the names contradict it, or if torchvision has no such architecture.
    ///
    /// ```no_run
    /// use candle_finetune::{Arch, Backbone, Naming, Source, candle_core::Device};
    /// let source = Source::file("resnet18-f37072fd.pth").arch(Arch::RESNET18).naming(Naming::Torchvision);
    /// let backbone = Backbone::load(source, &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn naming(mut self, naming: Naming) -> Self {
        self.options.naming = Some(naming);
        self
    }

    /// Sets the prefix of the network's tensor names, where it is not found automatically: a file with two networks has
    /// the weights of each under a prefix. Tensors without the prefix are skipped.
    ///
    /// A single network needs no prefix: what DataParallel, `torch.compile` and other wrappers add to names is removed,
    /// and so is any prefix under which the architecture's tensors are found (`model.` in files of Lightning).
    ///
    /// ```no_run
    /// use candle_finetune::{Arch, Backbone, Source, candle_core::Device};
    /// let source = Source::file("distilled.ckpt").arch(Arch::RESNET18).prefix("student.");
    /// let backbone = Backbone::load(source, &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// Loading fails if no name begins with it.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.options.prefix = Some(prefix.into());
        self
    }

    /// Sets how images are prepared, where it differs from the architecture's default weights.
    pub fn input_spec(mut self, spec: InputSpec) -> Self {
        self.options.spec = Some(spec);
        self
    }

    /// Sets the number of image channels. The first convolution is adapted: its kernel is summed over the input
    /// channels for one channel, and repeated and scaled for others, so that the sums keep their size.
    pub fn channels(mut self, channels: usize) -> Self {
        self.options.channels = Some(channels);
        self
    }

    /// Sets the element type: f32 (the default) or f64, for tests and references.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.options.dtype = dtype;
        self
    }

    /// Reads the weights, once, from the hub if need be, and matches them to their architecture.
    pub(crate) fn open(self) -> Result<Opened> {
        let options = self.options;
        if !matches!(options.dtype, DType::F32 | DType::F64) {
            return Err(Error::invalid("dtype", format!("{:?}; networks run in F32 or F64", options.dtype)));
        }
        #[cfg(feature = "hub")]
        if let Some(option) = self.misplaced {
            let problem = "is for weights on the hub (`Source::hub`, `--hub`)";
            return Err(Error::invalid(format!("Source::{option}"), problem));
        }
        // A description of the preprocessing is only needed if the user gives none.
        let wanted = options.wanted.as_ref();
        let wants_spec = options.spec.is_none();
        let snapshot = match self.location {
            Location::File(path) => return Opened::resolve(options, Weights::read(&path)?, Snapshot::default()),
            Location::Embedded => return Opened::resolve(options, embedded::weights()?, Snapshot::default()),
            Location::Folder(path) => Snapshot::open(&path, wanted, wants_spec)?,
            #[cfg(feature = "hub")]
            Location::Hub(remote) => remote.with_files(|files| gathered(files, wanted, wants_spec))?,
        };
        Opened::resolve(options, Weights::read(&snapshot.weights)?, snapshot)
    }
}

/// The snapshot of a repository of the hub. `wanted` and `wants_spec` as for [`Snapshot::open`].
#[cfg(feature = "hub")]
fn gathered(files: &mut Files<'_>, wanted: Option<&Wanted>, wants_spec: bool) -> Result<Snapshot> {
    let label = files.label();
    let snapshot = Snapshot::gather(Path::new(&label), wanted, wants_spec, &mut |name| files.get(name))?;
    Ok(Snapshot { repository: Some(files.id()), ..snapshot })
}

#[cfg(feature = "hub")]
impl Source {
    /// A repository of the Hugging Face hub: `owner/name`, or `owner/name@revision` for a branch, tag or commit.
    ///
    /// Files are downloaded once into the cache that Python's libraries use too. Before a file is used, its size and
    /// checksum (SHA-256 of weights, git's of small files) are compared with the hub's. Later starts ask the hub
    /// whether the revision has moved (not for a commit's 40 digits), and work offline from the cache. These
    /// environment variables are honoured: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT`,
    /// `HF_HUB_ETAG_TIMEOUT`; the setters here take precedence. After a download from the hub's store of large files,
    /// the store's client, which Python uses too, reports the duration to the hub, without names;
    /// `HF_HUB_DISABLE_TELEMETRY` turns that off. Files that Python cached without links (Windows) can only be verified
    /// by the hub; offline they are used with a warning.
    ///
    /// `config.json` gives the architecture, the preprocessing and the labels, as for [`Source::dir`].
    ///
    /// ```no_run
    /// use candle_finetune::{Backbone, Source, candle_core::Device};
    /// let source = Source::hub("timm/resnet18.a1_in1k").on_download(|d| println!("{d}"));
    /// let backbone = Backbone::load(source, &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn hub(id: impl Into<String>) -> Self {
        Self::new(Location::Hub(Remote::new(id.into())))
    }

    /// Sets the branch, tag or commit; `main` by default.
    pub fn revision(self, revision: impl Into<String>) -> Self {
        let revision = revision.into();
        self.remote("revision", |remote| remote.revision = Some(revision))
    }

    /// Sets the cache's folder.
    pub fn cache_dir(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_path_buf();
        self.remote("cache_dir", |remote| remote.cache = Some(path))
    }

    /// Sets the token for private or gated repositories. It never appears in messages. An empty one sends none, even if
    /// the environment has one.
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.remote("token", |remote| remote.token = Some(token))
    }

    /// Sets the hub's address, for a mirror or another hub.
    pub fn endpoint(self, url: impl Into<String>) -> Self {
        let url = url.into();
        self.remote("endpoint", |remote| remote.endpoint = Some(url))
    }

    /// Uses only the cache, without network.
    pub fn offline(self) -> Self {
        self.remote("offline", |remote| remote.offline = true)
    }

    /// Sets a function that is called with the progress of downloads.
    pub fn on_download(self, listener: impl Fn(&HubDownload) + Send + Sync + 'static) -> Self {
        self.remote("on_download", |remote| remote.listener = Some(Arc::new(listener)))
    }

    fn remote(mut self, option: &'static str, set: impl FnOnce(&mut Remote)) -> Self {
        match &mut self.location {
            Location::Hub(remote) => set(remote),
            _ => self.misplaced = Some(option),
        }
        self
    }
}

impl Backbone {
    /// Loads the weights of an [`Arch`], or of your own [`Blueprint`], from a file: safetensors (one file, or the index
    /// of its shards) or a zip-format `.pth` (a state dict or a training checkpoint), with timm's, torchvision's or
    /// transformers' names.
    ///
    /// The network is an argument because most files do not name theirs. A predictor that this crate saved does:
    /// [`Source::file`] with [`Backbone::load`] needs none, and [`Predictor::from_file`](crate::Predictor::from_file)
    /// loads it with its head. [`Backbone::notes`] lists what was done with a classifier in the file, and what was
    /// skipped.
    ///
    /// # Errors
    /// [`Error::Weights`] for a file that is damaged or of an unsupported format, or holds weights that are NaN or
    /// infinite; [`Error::WeightsMismatch`] lists names that are missing, names that the architecture does not have,
    /// and wrong shapes.
    pub fn from_file<N>(network: N, path: impl AsRef<Path>, device: &Device) -> Result<Self>
    where
        N: TryInto<Blueprint>,
        Error: From<N::Error>,
    {
        Self::load(Source::file(path).blueprint(&network.try_into()?), device)
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
    /// [`Error::Hub`], whose [`kind`](crate::HubErrorKind) shows the remedy; otherwise as [`Backbone::from_file`].
    #[cfg(feature = "hub")]
    pub fn from_hub(id: impl Into<String>, device: &Device) -> Result<Self> {
        Self::load(Source::hub(id), device)
    }

    /// Loads from a [`Source`], which carries the options.
    ///
    /// # Errors
    /// As [`Backbone::from_file`] and, for a repository of the hub, [`Error::Hub`]; [`Error::Invalid`] for options that
    /// do not fit together.
    pub fn load(source: Source, device: &Device) -> Result<Self> {
        source.open()?.backbone(device)
    }

    /// The small default network in the crate, for 32 x 32 pixels: no file, no network access.
    ///
    /// A ResNet-20 that this crate trained on CIFAR-10; see `assets/` for how.
    pub fn embedded(device: &Device) -> Result<Self> {
        Self::load(Source::embedded(), device)
    }
}
