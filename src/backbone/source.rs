//! Where weights come from, with the options of loading.

use super::description::Saved;
use super::matching::{first_of, matched, of_unknown_arch};
use super::snapshot::Snapshot;
use super::{Backbone, Origin, Profile};
use crate::arch::{Arch, Naming};
use crate::error::{Error, Result};
#[cfg(feature = "hub")]
use crate::hub::Remote;
use crate::input_spec::InputSpec;
use crate::weights::{METADATA_KEY, Weights};
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where weights come from.
///
/// ```no_run
/// use candle_finetune::{Arch, Backbone, Source};
/// use candle_finetune::candle_core::Device;
///
/// // Weights for RGB images, made to take gray ones.
/// let source = Source::file("resnet18.safetensors").arch(Arch::RESNET18).channels(1);
/// let backbone = Backbone::load(source, &Device::Cpu)?;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Source {
    place: Place,
    arch: Option<Arch>,
    naming: Option<Naming>,
    prefix: Option<String>,
    spec: Option<InputSpec>,
    channels: Option<usize>,
    dtype: DType,
    /// Whether a predictor loads the file's head beside the backbone.
    with_head: bool,
    /// An option of the hub that was set for another place.
    #[cfg(feature = "hub")]
    misplaced: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum Place {
    File(PathBuf),
    Dir(PathBuf),
    Embedded,
    /// Weights already read, with what lay beside them.
    Read(Arc<Weights>, Option<Snapshot>),
    #[cfg(feature = "hub")]
    Hub(Remote),
}

impl Source {
    /// A file of weights: safetensors, the index of its shards, or a zip-format `.pth`.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self::new(Place::File(path.as_ref().to_path_buf()))
    }

    /// A folder as the hub has it, a snapshot in its cache for one: `model.safetensors` (or an index with its shards, or
    /// `pytorch_model.bin`) beside a `config.json` of timm's or transformers' that says which architecture it is, how it
    /// wants its images and what its classes are called. No network is used.
    ///
    /// ```no_run
    /// use candle_finetune::{Predictor, Source, candle_core::Device};
    /// let predictor = Predictor::pretrained(Source::dir("models/resnet18.a1_in1k"), &Device::Cpu)?;
    /// println!("{} classes", predictor.labels().len());
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn dir(path: impl AsRef<Path>) -> Self {
        Self::new(Place::Dir(path.as_ref().to_path_buf()))
    }

    /// The weights that the crate carries.
    pub fn embedded() -> Self {
        Self::new(Place::Embedded)
    }

    /// Weights already read.
    pub(crate) fn weights(weights: Arc<Weights>) -> Self {
        Self::new(Place::Read(weights, None))
    }

    fn new(place: Place) -> Self {
        Self {
            place,
            arch: None,
            naming: None,
            prefix: None,
            spec: None,
            channels: None,
            dtype: DType::F32,
            with_head: false,
            #[cfg(feature = "hub")]
            misplaced: None,
        }
    }

    /// Sets the architecture. A file that this crate saved knows its own.
    pub fn arch(mut self, arch: Arch) -> Self {
        self.arch = Some(arch);
        self
    }

    /// Sets whose weights they are, where the names do not tell: a ResNet's are the same in timm and torchvision, and
    /// so it is taken for timm's, whose images are cropped otherwise.
    ///
    /// Loading fails if the names say otherwise, or torchvision has no such architecture.
    ///
    /// ```no_run
    /// use candle_finetune::{Arch, Backbone, Naming, Source, candle_core::Device};
    /// let source = Source::file("resnet18-f37072fd.pth").arch(Arch::RESNET18).naming(Naming::Torchvision);
    /// let backbone = Backbone::load(source, &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = Some(naming);
        self
    }

    /// Sets what stands before the names of the network's tensors in the file, where that is not found by itself: a file
    /// with two networks has the weights of each behind a prefix of its own. Tensors without it are left aside.
    ///
    /// Nothing need be said for a single network: what DataParallel, `torch.compile` and the like add to names is
    /// removed, and so is any prefix behind which the architecture's tensors are found (`model.` in files of Lightning).
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
        self.prefix = Some(prefix.into());
        self
    }

    /// Sets how images are prepared, where it is not as the architecture's default weights want them.
    pub fn input_spec(mut self, spec: InputSpec) -> Self {
        self.spec = Some(spec);
        self
    }

    /// Sets the channels of the images. The first convolution is adapted: summed over its inputs for one channel,
    /// repeated and scaled for others, so that the sums keep their size.
    pub fn channels(mut self, channels: usize) -> Self {
        self.channels = Some(channels);
        self
    }

    /// Sets the number type: f32 (the default) or f64, for tests and references.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Reads the file, which is fetched first if it is on the hub. The source that comes back has it in memory.
    pub(crate) fn read(mut self) -> Result<(Self, Arc<Weights>, Option<Snapshot>)> {
        #[cfg(feature = "hub")]
        if let Some(option) = self.misplaced {
            return Err(Error::invalid(
                format!("Source::{option}"),
                "is for weights on the hub (`Source::hub`, `--hub`)",
            ));
        }
        let snapshot = match &self.place {
            Place::Dir(path) => Some(Snapshot::open(path, self.arch, self.spec.is_none())?),
            #[cfg(feature = "hub")]
            Place::Hub(remote) => Some(remote.fetch(self.arch, self.spec.is_none())?),
            Place::Read(_, snapshot) => snapshot.clone(),
            Place::File(_) | Place::Embedded => None,
        };
        let weights = match (&self.place, &snapshot) {
            (Place::Read(weights, _), _) => weights.clone(),
            (Place::File(path), _) => Arc::new(Weights::read(path)?),
            (_, Some(snapshot)) => Arc::new(Weights::read(&snapshot.weights)?),
            _ => Arc::new(crate::embedded::weights()?),
        };
        self.place = Place::Read(weights.clone(), snapshot.clone());
        Ok((self, weights, snapshot))
    }

    /// For the backbone of a predictor, which loads the head from the same file.
    pub(crate) fn with_head(mut self) -> Self {
        self.with_head = true;
        self
    }

    /// The type that numbers will have.
    pub(crate) fn number_type(&self) -> DType {
        self.dtype
    }

    /// Whether nobody says that it is something else than this.
    pub(crate) fn may_be(&self, arch: Arch) -> bool {
        self.arch.is_none_or(|said| said == arch)
    }

    pub(super) fn load(self, device: &Device) -> Result<Backbone> {
        if !matches!(self.dtype, DType::F32 | DType::F64) {
            return Err(Error::invalid("dtype", format!("{:?}; networks run in F32 or F64", self.dtype)));
        }
        let (this, weights, snapshot) = self.read()?;
        this.assemble(&weights, snapshot, device)
    }

    fn assemble(self, weights: &Weights, snapshot: Option<Snapshot>, device: &Device) -> Result<Backbone> {
        let saved = weights.metadata.get(METADATA_KEY).map(|text| Saved::parse(text, &weights.path)).transpose()?;
        let arch = match (self.arch, &saved, snapshot.as_ref().and_then(|s| s.arch)) {
            (Some(arch), _, _) | (None, None, Some(arch)) => arch,
            (None, Some(saved), _) => saved.arch.parse()?,
            (None, None, None) => return Err(of_unknown_arch(weights)),
        };
        let saved = saved.filter(|s| s.arch == arch.name());
        let mut found = matched(arch, weights, self.prefix.as_deref(), self.dtype)?;
        let told = saved.as_ref().map_or(found.naming, |s| s.naming);
        let naming = self.naming.map_or(Ok(told), |said| agreed(arch, said, told, saved.is_some(), &weights.path))?;
        let channels = self.channels.unwrap_or(found.channels);
        let mut spec = match (&self.spec, &saved) {
            (Some(spec), _) if spec.channels != channels => {
                let remedy = match self.channels {
                    Some(_) => "give it a mean and a deviation for each (`InputSpec::normalize`)",
                    None => "adapt the weights to it (`Source::channels`)",
                };
                let problem = format!("is for {} channels, and the network has {channels}; {remedy}", spec.channels);
                return Err(Error::invalid("input spec", problem));
            }
            (Some(spec), _) => spec.clone(),
            (None, Some(saved)) => saved.input.clone(),
            (None, None) => match snapshot.as_ref().and_then(|s| s.spec.clone()) {
                Some(spec) if spec.channels != found.channels => {
                    let (said, had) = (spec.channels, found.channels);
                    let problem = format!("the description beside it speaks of {said} channels, and it has {had}");
                    return Err(Error::weights(&weights.path, problem));
                }
                Some(spec) => spec,
                None => arch.input_spec_in(naming),
            },
        };
        if spec.channels != channels || channels == 0 {
            spec = spec.for_channels(channels)?;
        }
        if self.with_head {
            found.unused.clear();
        } else if !found.unused.is_empty() {
            let head = saved.as_ref().map_or(String::new(), |saved| format!(" (the saved {})", saved.head_in_words()));
            found.notes.push(format!("classifier not used{head}: {}", first_of(&found.unused)));
        }
        let file = || Some(weights.path.file_name()?.to_string_lossy().into_owned());
        let name = snapshot.as_ref().and_then(|s| s.repository.clone()).or_else(file);
        found.notes.extend(snapshot.iter().flat_map(|s| s.notes.iter().cloned()));
        if !found.notes.is_empty() {
            tracing::info!(file = %weights.path.display(), "{}", found.notes.join("; "));
        }
        let blueprint = arch.blueprint(naming, channels)?;
        let move_to = |t: &Tensor| -> Result<Tensor> { Ok(t.to_dtype(self.dtype)?.to_device(device)?) };
        let mut tensors = std::collections::BTreeMap::new();
        for (name, tensor) in &found.tensors {
            tensors.insert(name.clone(), move_to(tensor)?);
        }
        if found.channels != channels
            && let Some((name, dim)) = blueprint.over_images()
            && let Some(tensor) = tensors.get_mut(name)
        {
            *tensor = adapted(tensor, dim, channels)?;
        }
        let classifier =
            found.classifier.as_ref().map(|(w, b)| Ok::<_, Error>((move_to(w)?, move_to(b)?))).transpose()?;
        let labels = match (saved, snapshot.and_then(|s| s.labels), &classifier) {
            (Some(saved), _, _) => Some(saved.labels),
            (None, Some(labels), Some((weight, _))) if labels.len() != weight.dim(0)? => {
                let (said, had) = (labels.len(), weight.dim(0)?);
                let problem = format!("the description beside it names {said} classes, and its classifier has {had}");
                return Err(Error::weights(&weights.path, problem));
            }
            (None, labels, classifier) => labels.filter(|_| classifier.is_some()),
        };
        if let Some((weight, _)) = &classifier {
            let classes = weight.dim(0)?;
            tracing::info!(file = %weights.path.display(), classes, "its classifier is kept beside the backbone");
        }
        let origin = Origin { name, notes: found.notes, unused: found.unused };
        let (device, counters) = (device.clone(), Arc::new(found.counters));
        let profile = Profile { blueprint, naming, spec, device, dtype: self.dtype, counters, origin };
        Backbone::assemble(profile, tensors, classifier, labels)
    }
}

#[cfg(feature = "hub")]
impl Source {
    /// A repository of the Hugging Face hub: `owner/name`, or `owner/name@revision` for a branch, tag or commit.
    ///
    /// It is fetched once into the cache that Python's libraries use too, and every file's size and checksum (SHA-256 of
    /// weights, git's of small files) is held against what the hub says before it is used. Later starts ask the hub
    /// whether the revision has moved (a commit's 40 digits need not be asked about), and work without network from the
    /// cache. These environment variables are honoured: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`, `HF_HUB_ETAG_TIMEOUT`; the setters here win over them. After a download from its store
    /// of large files, the hub is sent how long that took, without names, by the client that Python uses too;
    /// `HF_HUB_DISABLE_TELEMETRY` ends that. Files that Python left where there are no links (Windows) can only be held
    /// against the hub; without network they are used with a warning.
    ///
    /// `config.json` tells the architecture, how images are prepared and what the classes are called, as for
    /// [`Source::dir`].
    ///
    /// ```no_run
    /// use candle_finetune::{Backbone, Source, candle_core::Device};
    /// let source = Source::hub("timm/resnet18.a1_in1k").on_download(|d| println!("{d}"));
    /// let backbone = Backbone::load(source, &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn hub(id: impl Into<String>) -> Self {
        Self::new(Place::Hub(Remote::new(id.into())))
    }

    /// Sets the branch, tag or commit; `main` by default.
    pub fn revision(self, revision: impl Into<String>) -> Self {
        let revision = revision.into();
        self.remote("revision", |remote| remote.revision = Some(revision))
    }

    /// Sets the folder of the cache.
    pub fn cache_dir(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_path_buf();
        self.remote("cache_dir", |remote| remote.cache = Some(path))
    }

    /// Sets the token for repositories that are private or gated. It is never part of a message. An empty one asks
    /// without any, whatever the environment has.
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.remote("token", |remote| remote.token = Some(token))
    }

    /// Sets the hub's address, for a mirror or a hub of one's own.
    pub fn endpoint(self, url: impl Into<String>) -> Self {
        let url = url.into();
        self.remote("endpoint", |remote| remote.endpoint = Some(url))
    }

    /// Uses what is in the cache and no network.
    pub fn offline(self) -> Self {
        self.remote("offline", |remote| remote.offline = true)
    }

    /// Sets who hears how far a download is.
    pub fn on_download(self, listener: impl Fn(&crate::HubDownload) + Send + Sync + 'static) -> Self {
        self.remote("on_download", |remote| remote.listener = Some(Arc::new(listener)))
    }

    fn remote(mut self, option: &'static str, set: impl FnOnce(&mut Remote)) -> Self {
        match &mut self.place {
            Place::Hub(remote) => set(remote),
            _ => self.misplaced = Some(option),
        }
        self
    }
}

/// The naming that was asked for, if the file can have it: `told` is what its names, or its description, say.
fn agreed(arch: Arch, said: Naming, told: Naming, described: bool, path: &Path) -> Result<Naming> {
    let absent = match said {
        Naming::Torchvision => (!arch.in_torchvision()).then_some("torchvision"),
        Naming::Transformers => (!arch.in_transformers()).then_some("transformers"),
        Naming::Timm => None,
    };
    if let Some(library) = absent {
        return Err(Error::weights(path, format!("{library} has no {arch}; leave the naming out (`Source::naming`)")));
    }
    let same_name = |d: &crate::params::Declared| arch.name_in(said, &d.name) == arch.name_in(told, &d.name);
    if said != told && (described || !arch.declared(3)?.iter().all(same_name)) {
        let problem =
            format!("its names are {told:?}'s, and the naming was set to {said:?}; leave it out (`Source::naming`)");
        return Err(Error::weights(path, problem));
    }
    Ok(said)
}

/// A kernel that has the images' channels along `dim`, for another number of them.
fn adapted(kernel: &Tensor, dim: usize, channels: usize) -> Result<Tensor> {
    let have = kernel.dim(dim)?;
    if channels == 1 {
        return Ok(kernel.sum_keepdim(dim)?);
    }
    let repeated = Tensor::cat(&vec![kernel; channels.div_ceil(have)], dim)?.narrow(dim, 0, channels)?;
    Ok((repeated.contiguous()? * (have as f64 / channels as f64))?)
}
