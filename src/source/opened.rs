//! Loaded weights with their metadata.

use super::description::Saved;
use super::folder::Snapshot;
use super::matching::{first_of, matched, of_unknown_arch};
use super::wanted::Wanted;
use crate::arch::Naming;
use crate::backbone::{Backbone, Origin, Profile};
use crate::blueprint::{Blueprint, Pooling};
use crate::error::{Error, Result, shown};
use crate::input_spec::InputSpec;
use crate::params::Declared;
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The user's options for reading weights. `None`: detected.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub wanted: Option<Wanted>,
    /// The pooling of a blueprint that the user sets.
    pub pooling: Option<Pooling>,
    pub naming: Option<Naming>,
    pub prefix: Option<String>,
    pub spec: Option<InputSpec>,
    pub channels: Option<usize>,
    /// The network's element type.
    pub dtype: DType,
    /// Accepts nothing but a saved predictor, and keeps its element type in place of `dtype`.
    pub saved_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wanted: None,
            pooling: None,
            naming: None,
            prefix: None,
            spec: None,
            channels: None,
            dtype: DType::F32,
            saved_only: false,
        }
    }
}

/// Weights from any source: read once, described once, and matched to their architecture. Backbones and predictors are
/// assembled from it.
pub(crate) struct Opened {
    /// All tensors of the file under the file's names.
    pub weights: Weights,
    pub wanted: Wanted,
    pub pooling: Pooling,
    pub naming: Naming,
    pub spec: InputSpec,
    /// The names of the original classifier's classes.
    pub labels: Option<Vec<String>>,
    pub dtype: DType,
    /// The description of the predictor in the file, if it holds one of this architecture.
    pub saved: Option<Saved>,
    /// The backbone's tensors on the CPU, by canonical name. The first convolution has the file's channels.
    tensors: BTreeMap<String, Tensor>,
    counters: BTreeMap<String, Tensor>,
    classifier: Option<(Tensor, Tensor)>,
    /// The channels of the weights in the file.
    channels: usize,
    /// The repository of the hub, or the file's name.
    name: Option<String>,
    /// Notes of what was chosen, removed and skipped in the file.
    notes: Vec<String>,
    /// Settings that the files beside the weights lack.
    folder_notes: Vec<String>,
    /// Names and shapes of a classifier that is not one linear layer over the features.
    unused: Vec<String>,
}

impl Opened {
    /// Combines the settings of the user, of the file and of the files beside it (`beside`), in this order of
    /// precedence.
    pub(super) fn resolve(options: Options, weights: Weights, beside: Snapshot) -> Result<Self> {
        let path = &weights.path;
        let saved = Saved::in_file(&weights)?;
        if options.saved_only && saved.is_none() {
            return Err(Saved::missing(path));
        }
        let wanted = match (&options.wanted, &saved, beside.wanted) {
            (Some(wanted), _, _) => wanted.clone(),
            (None, Some(saved), _) if saved.custom => return Err(Saved::without_blueprint(path, &saved.arch)),
            (None, Some(saved), _) => Wanted::named(&saved.arch)?,
            (None, None, Some(wanted)) => wanted,
            (None, None, None) => return Err(beside.problem.unwrap_or_else(|| of_unknown_arch(&weights))),
        };
        if let (Wanted::Custom(blueprint), Some(channels)) = (&wanted, options.channels)
            && blueprint.input_spec().channels != channels
        {
            let problem = format!("{channels}, but the blueprint {wanted} takes {}", blueprint.input_spec().channels);
            return Err(Error::invalid("Source::channels", problem));
        }
        let same = |saved: &Saved| saved.arch == wanted.name() && saved.custom == wanted.is_users();
        if let Some(saved) = saved.as_ref().filter(|saved| options.saved_only && !same(saved)) {
            let whose = if saved.custom { "the custom network" } else { "the crate's network" };
            let problem = format!("holds weights of {whose} {}, but the blueprint is {wanted}'s", shown(&saved.arch));
            return Err(Error::weights(path, problem));
        }
        let saved = saved.filter(same);
        if let (None, Some(problem)) = (&saved, beside.problem) {
            return Err(problem);
        }
        let is_f64 = || weights.tensors.values().any(|t| t.dtype() == DType::F64);
        let dtype = match options.saved_only {
            true if is_f64() => DType::F64,
            true => DType::F32,
            false => options.dtype,
        };
        let found = matched(&wanted, &weights, options.prefix.as_deref(), dtype)?;
        // Tensors that differ say more about another network than this does.
        let pooling = pooling(&options, &wanted, saved.as_ref(), path)?;
        let detected = saved.as_ref().map_or(found.naming, |s| s.naming);
        let naming = match options.naming {
            Some(naming) => agreed(&wanted, naming, detected, saved.is_some(), path)?,
            None => detected,
        };
        let spec = input_spec(&options, &wanted, naming, saved.as_ref(), beside.spec, found.channels, path)?;
        let labels = match (&saved, beside.labels, &found.classifier) {
            (Some(saved), _, _) => Some(saved.labels.clone()),
            (None, Some(labels), Some((weight, _))) if labels.len() != weight.dim(0)? => {
                let (named, classes) = (labels.len(), weight.dim(0)?);
                let problem = format!("config.json lists {named} classes, but the classifier has {classes}");
                return Err(Error::weights(path, problem));
            }
            (None, labels, classifier) => labels.filter(|_| classifier.is_some()),
        };
        let file_name = || Some(path.file_name()?.to_string_lossy().into_owned());
        Ok(Self {
            name: beside.repository.or_else(file_name),
            wanted,
            pooling,
            naming,
            spec,
            labels,
            dtype,
            saved,
            tensors: found.tensors,
            counters: found.counters,
            classifier: found.classifier,
            channels: found.channels,
            notes: found.notes,
            folder_notes: beside.notes,
            unused: found.unused,
            weights,
        })
    }

    /// The network without weights.
    pub fn blueprint(&self) -> Result<Blueprint> {
        self.wanted.blueprint(self.naming, self.spec.channels)?.pooled_by(self.pooling)
    }

    /// The backbone with the classifier that it was published with. A classifier of another kind is noted as not used.
    pub fn backbone(&self, device: &Device) -> Result<Backbone> {
        let mut notes = self.notes.clone();
        if !self.unused.is_empty() {
            let head =
                self.saved.as_ref().map_or(String::new(), |saved| format!(" (the saved {})", saved.head_in_words()));
            notes.push(format!("classifier not used{head}: {}", first_of(&self.unused)));
        }
        self.assemble(notes, self.unused.clone(), device)
    }

    /// The backbone of a predictor that loads the file's head beside it.
    pub fn backbone_beside_head(&self, device: &Device) -> Result<Backbone> {
        self.assemble(self.notes.clone(), vec![], device)
    }

    fn assemble(&self, mut notes: Vec<String>, unused: Vec<String>, device: &Device) -> Result<Backbone> {
        let file = self.weights.path.display();
        notes.extend(self.folder_notes.iter().cloned());
        if !notes.is_empty() {
            tracing::info!(%file, "{}", notes.join("; "));
        }
        let move_to = |t: &Tensor| -> Result<Tensor> { Ok(t.to_dtype(self.dtype)?.to_device(device)?) };
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            tensors.insert(name.clone(), move_to(tensor)?);
        }
        let (channels, blueprint) = (self.spec.channels, self.blueprint()?);
        if self.channels != channels
            && let Some((name, dim)) = blueprint.over_images()
            && let Some(tensor) = tensors.get_mut(name)
        {
            *tensor = adapted(tensor, dim, channels)?;
        }
        let classifier =
            self.classifier.as_ref().map(|(w, b)| Ok::<_, Error>((move_to(w)?, move_to(b)?))).transpose()?;
        if let Some((weight, _)) = &classifier {
            tracing::info!(%file, classes = weight.dim(0)?, "the original classifier is kept beside the backbone");
        }
        let origin = Origin { name: self.name.clone(), notes, unused };
        let profile = Profile {
            blueprint,
            naming: self.naming,
            spec: self.spec.clone(),
            device: device.clone(),
            dtype: self.dtype,
            counters: Arc::new(self.counters.clone()),
            origin,
        };
        Backbone::assemble(profile, tensors, classifier, self.labels.clone())
    }
}

/// The pooling that the user or the saved predictor says; a saved predictor's layers and pooling must be the blueprint's.
fn pooling(options: &Options, wanted: &Wanted, saved: Option<&Saved>, path: &Path) -> Result<Pooling> {
    let of_user = options.pooling.unwrap_or(match wanted {
        Wanted::Arch(_) => Pooling::Mean,
        Wanted::Custom(blueprint) => blueprint.pooling(),
    });
    let Some(saved) = saved else { return Ok(of_user) };
    let stored = saved.pooling.unwrap_or_default();
    // Without an explicit one, the predictor's own.
    let pooling = if of_user == Pooling::Mean && !wanted.is_users() { stored } else { of_user };
    let layers = match (saved.structure, wanted) {
        (Some(structure), Wanted::Custom(blueprint)) => structure == blueprint.structure(),
        _ => true,
    };
    if pooling == stored && layers {
        return Ok(pooling);
    }
    let what = if pooling == stored { "layers differ" } else { "pooling differs" };
    let problem = format!(
        "the {what} between its predictor and the blueprint {wanted}; use the blueprint that it was trained with"
    );
    Err(Error::weights(path, problem))
}

/// The preprocessing, with the network's number of channels. `beside`: that of the files beside the weights;
/// `stored`: the channels of the weights in the file.
fn input_spec(
    options: &Options,
    wanted: &Wanted,
    naming: Naming,
    saved: Option<&Saved>,
    beside: Option<InputSpec>,
    stored: usize,
    path: &Path,
) -> Result<InputSpec> {
    let channels = options.channels.unwrap_or(stored);
    let spec = match (&options.spec, saved, beside) {
        (Some(spec), _, _) if spec.channels != channels => {
            let remedy = match options.channels {
                Some(_) => "set a mean and standard deviation per channel (`InputSpec::normalize`)",
                None => "adapt the weights to it (`Source::channels`)",
            };
            let problem = format!("is for {} channels, but the network has {channels}; {remedy}", spec.channels);
            return Err(Error::invalid("input spec", problem));
        }
        (Some(spec), _, _) => spec.clone(),
        (None, Some(saved), _) => saved.input.clone(),
        (None, None, Some(spec)) if spec.channels != stored => {
            let problem = format!("config.json describes {} channels, but the weights have {stored}", spec.channels);
            return Err(Error::weights(path, problem));
        }
        (None, None, Some(spec)) => spec,
        (None, None, None) => wanted.input_spec_in(naming),
    };
    if spec.channels != channels || channels == 0 { spec.for_channels(channels) } else { Ok(spec) }
}

/// The naming that the user sets, if it suits the file. `detected`: the naming of the file's names, or of its
/// description if it is `described`.
fn agreed(wanted: &Wanted, set: Naming, detected: Naming, described: bool, path: &Path) -> Result<Naming> {
    if let Some(library) = wanted.lacking(set) {
        return Err(Error::weights(path, format!("{library} has no {wanted}; do not set `Source::naming`")));
    }
    let same_name = |d: &Declared| wanted.name_in(set, &d.name) == wanted.name_in(detected, &d.name);
    if set != detected && (described || !wanted.declared(wanted.usual_channels())?.iter().all(same_name)) {
        let problem = format!("tensor names are {detected:?}'s, but `Source::naming` is {set:?}; do not set it");
        return Err(Error::weights(path, problem));
    }
    Ok(set)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;
    use crate::source::embedded;

    fn resolve(options: Options, weights: Weights, beside: Snapshot) -> Result<Opened> {
        Opened::resolve(options, weights, beside)
    }

    /// The content of a config.json that describes another network.
    fn config() -> Snapshot {
        let spec = InputSpec::new(64);
        Snapshot {
            wanted: Some(Wanted::Arch(Arch::RESNET18)),
            spec: Some(spec),
            labels: Some(vec!["a".into()]),
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_user_wins_over_the_description_inside_and_that_over_the_config_beside() {
        let opened = resolve(Options::default(), embedded::weights().unwrap(), config()).unwrap();
        assert_eq!((opened.wanted.arch().unwrap(), opened.spec.size), (Arch::CIFAR_RESNET20, (32, 32)));
        assert_eq!(opened.labels.unwrap().len(), 10);
        let options = Options { spec: Some(InputSpec::new(40)), ..Options::default() };
        let opened = resolve(options, embedded::weights().unwrap(), config()).unwrap();
        assert_eq!(opened.spec, InputSpec::new(40));
        let options = Options { wanted: Some(Wanted::Arch(Arch::RESNET18)), ..Options::default() };
        let error = resolve(options, embedded::weights().unwrap(), config()).err().unwrap();
        assert!(matches!(error, Error::WeightsMismatch { .. }), "{error}");
    }

    #[test]
    fn a_description_that_names_a_network_of_the_zoo_asks_for_the_feature() {
        let mut weights = embedded::weights().unwrap();
        let text = weights.metadata.values_mut().find(|text| text.contains("cifar_resnet20")).unwrap();
        *text = text.replace("cifar_resnet20", "zoo/convnext_atto");
        let error = resolve(Options::default(), weights, Snapshot::default()).err().unwrap();
        let text = error.to_string();
        if cfg!(feature = "zoo") {
            assert!(matches!(error, Error::WeightsMismatch(_)) && text.contains("zoo/convnext_atto"), "{text}");
        } else {
            assert!(matches!(error, Error::Unsupported { .. }) && text.contains("feature `zoo`"), "{text}");
        }
    }

    #[test]
    fn a_description_of_another_architecture_is_not_used() {
        let mut weights = embedded::weights().unwrap();
        let text = weights.metadata.values_mut().find(|text| text.contains("cifar_resnet20")).unwrap();
        *text = text.replace("cifar_resnet20", "resnet_of_tomorrow");
        let options = Options { wanted: Some(Wanted::Arch(Arch::CIFAR_RESNET20)), ..Options::default() };
        let opened = resolve(options, weights, Snapshot::default()).unwrap();
        assert!(opened.saved.is_none() && opened.labels.is_none());
        assert_eq!(opened.spec, Arch::CIFAR_RESNET20.input_spec());
    }

    #[test]
    fn only_a_saved_predictor_will_do_where_one_is_asked_for() {
        let only =
            || Options { wanted: Some(Wanted::Arch(Arch::CIFAR_RESNET20)), saved_only: true, ..Options::default() };
        assert!(resolve(only(), embedded::weights().unwrap(), Snapshot::default()).is_ok());
        let mut plain = embedded::weights().unwrap();
        plain.metadata.clear();
        let error = resolve(only(), plain, Snapshot::default()).err().unwrap().to_string();
        assert!(error.contains("not a saved predictor"), "{error}");
        let mut double = embedded::weights().unwrap();
        for tensor in double.tensors.values_mut() {
            *tensor = tensor.to_dtype(DType::F64).unwrap();
        }
        assert_eq!(resolve(only(), double, Snapshot::default()).unwrap().dtype, DType::F64);
    }
}
