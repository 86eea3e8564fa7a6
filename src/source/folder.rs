//! A folder in the hub's format: weights, beside files of timm or transformers that describe them.

mod object;
mod processor;

use super::wanted::Wanted;
use crate::arch::{Arch, Naming};
use crate::error::{Error, Result, shown};
use crate::input_spec::{CropMode, InputSpec, Interpolation};
use crate::weights::shard_names;
use object::{Object, PREPROCESSOR};
use processor::preprocessed;
use std::path::{Path, PathBuf};

/// The weights in such a folder, and their description by the other files.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// The file of weights, or the index of its shards.
    pub weights: PathBuf,
    pub wanted: Option<Wanted>,
    pub spec: Option<InputSpec>,
    pub labels: Option<Vec<String>>,
    /// The repository of the hub that the folder came from.
    pub repository: Option<String>,
    /// Settings that the files lack and that were assumed.
    pub notes: Vec<String>,
    /// What the config says and only a saved predictor's own description can explain: a network that the crate does not
    /// have, or another pooling.
    pub problem: Option<Error>,
}

/// Returns the path of a file of the folder, if the folder has it. On the hub, it is downloaded first.
pub(super) type Get<'a> = &'a mut dyn FnMut(&str) -> Result<Option<PathBuf>>;

const CONFIG: &str = "config.json";
/// Files of weights, in order of preference.
const WEIGHTS: [&str; 3] = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];

impl Snapshot {
    /// Reads a local folder. `wanted`: the network, if the user sets it; `wants_spec`: whether to read the
    /// preprocessing of images, which the user does not set.
    pub fn open(folder: &Path, wanted: Option<&Wanted>, wants_spec: bool) -> Result<Self> {
        if !folder.is_dir() {
            let problem = "is not a folder; name the one that holds config.json and model.safetensors";
            return Err(Error::weights(folder, problem));
        }
        Self::gather(folder, wanted, wants_spec, &mut |name| {
            let path = folder.join(name);
            Ok(path.exists().then_some(path))
        })
    }

    /// Reads the files that `get` returns. Messages call the folder `label`.
    pub(super) fn gather(label: &Path, wanted: Option<&Wanted>, wants_spec: bool, get: Get<'_>) -> Result<Self> {
        let mut found = Self { wanted: wanted.cloned(), ..Self::default() };
        if let Some(path) = get(CONFIG)? {
            let config = Object::read(&path)?;
            if config.has("architecture") {
                found.timm(&config, wants_spec)?;
            } else if config.has("model_type") {
                let preprocessor = if wants_spec { get(PREPROCESSOR)? } else { None };
                let preprocessor = preprocessor.map(|path| Object::read(&path)).transpose()?;
                if wants_spec && preprocessor.is_none() {
                    let assumed = "images are prepared as for the architecture's default weights";
                    found.notes.push(format!("no {PREPROCESSOR}; {assumed}"));
                }
                found.transformers(&config, preprocessor.as_ref())?;
            } else if wanted.is_none() {
                let problem = "has neither timm's \"architecture\" nor transformers' \"model_type\"; \
                               set the architecture (`Source::arch`, `--arch`)";
                return Err(Error::weights(path, problem));
            }
        }
        for name in WEIGHTS {
            let Some(path) = get(name)? else { continue };
            if name.ends_with(".index.json") {
                for shard in shard_names(&path)? {
                    if get(&shard)?.is_none() {
                        return Err(Error::weights(
                            path,
                            format!("names the shard {}, which is missing", shown(&shard)),
                        ));
                    }
                }
            }
            found.weights = path;
            return Ok(found);
        }
        Err(Error::weights(label, format!("holds no weights; it has none of {}", WEIGHTS.join(", "))))
    }

    /// Reads timm's config.json. Older versions write the fields of `pretrained_cfg` at the top level.
    fn timm(&mut self, config: &Object, wants_spec: bool) -> Result<()> {
        if self.wanted.is_none() {
            let name = config.text("architecture")?.unwrap_or_default();
            // A tag of the weights may follow the name.
            match Wanted::named(name.split('.').next().unwrap_or_default()) {
                Ok(wanted) => self.wanted = Some(wanted),
                Err(error) => self.problem = Some(error),
            }
        }
        let input = config.object("pretrained_cfg")?;
        let input = input.as_ref().unwrap_or(config);
        let arguments = config.object("model_args")?;
        // A blueprint has a pooling of its own.
        let averages = !matches!(self.wanted, Some(Wanted::Custom(_)));
        for object in arguments.iter().chain([config]).filter(|_| averages) {
            if object.text("global_pool")?.is_some_and(|pool| pool != "avg" && !pool.is_empty()) {
                self.problem.get_or_insert(object.wrong("global_pool", "avg, since this crate averages features"));
            }
        }
        // Any other argument could change the network's results silently.
        if let Some(field) = arguments.iter().flat_map(|a| a.map.keys()).find(|&key| !is_harmless(key)) {
            return Err(Error::weights(
                &config.path,
                format!("model_args.{} changes the network in a way that this crate does not know", shown(field)),
            ));
        }
        if wants_spec {
            self.spec = Some(self.timm_input(input, arguments.as_ref())?);
        }
        self.labels = match config.texts("label_names")? {
            Some(labels) => Some(labels),
            None => match input.texts("label_names")? {
                Some(labels) => Some(labels),
                None => input.texts("labels")?,
            },
        };
        Ok(())
    }

    /// The preprocessing of images in timm's `pretrained_cfg`.
    fn timm_input(&self, input: &Object, arguments: Option<&Object>) -> Result<InputSpec> {
        let mut spec = match &self.wanted {
            Some(wanted) => wanted.input_spec_in(Naming::Timm),
            None => InputSpec::new(224),
        };
        let mut channels = arguments.map_or(Ok(None), |arguments| arguments.size("in_chans"))?;
        if let Some(size) = input.sizes("input_size", 3)? {
            spec = spec.size(size[1], size[2]);
            // timm's older exports keep the input size of the original weights. The arguments describe this network.
            channels = channels.or(Some(size[0]));
        }
        if let Some(filter) = input.text("interpolation")? {
            spec = spec.interpolation(match filter.as_str() {
                "nearest" => Interpolation::Nearest,
                "bilinear" => Interpolation::Bilinear,
                "bicubic" => Interpolation::Bicubic,
                "lanczos" => Interpolation::Lanczos,
                _ => return Err(input.wrong("interpolation", "nearest, bilinear, bicubic or lanczos")),
            });
        }
        if let Some(crop) = input.fraction("crop_pct")? {
            spec = spec.crop_pct(crop);
        }
        if let Some(mode) = input.text("crop_mode")? {
            spec = spec.crop_mode(match mode.as_str() {
                "center" => CropMode::Center,
                "squash" => CropMode::Squash,
                "border" => CropMode::Border,
                _ => return Err(input.wrong("crop_mode", "center, squash or border")),
            });
            if spec.crop_mode != CropMode::Center && input.fraction("crop_pct")?.is_some_and(|crop| crop < 1.0) {
                return Err(input.wrong("crop_pct", "1 where crop_mode is squash or border"));
            }
        }
        spec = input.normalized(spec, "mean", "std")?;
        match channels {
            // For other channels, timm keeps the three means of colour images.
            Some(channels) if channels != spec.channels => spec.for_channels(channels).map_err(|_| match arguments {
                Some(arguments) if arguments.has("in_chans") => arguments.wrong("in_chans", "fewer"),
                _ => input.wrong("input_size", "of fewer channels"),
            }),
            _ => Ok(spec),
        }
    }

    /// Reads transformers' config.json and preprocessor_config.json.
    fn transformers(&mut self, config: &Object, preprocessor: Option<&Object>) -> Result<()> {
        if self.wanted.is_none() {
            self.wanted = Some(Wanted::Arch(transformers_arch(config)?));
        }
        self.labels = config.numbered("id2label")?;
        if let Some(preprocessor) = preprocessor {
            self.spec = Some(preprocessed(preprocessor)?);
        }
        Ok(())
    }
}

/// The architecture that a config.json of transformers describes.
fn transformers_arch(config: &Object) -> Result<Arch> {
    let kind = config.text("model_type")?.unwrap_or_default();
    if kind != "resnet" {
        // Parsing suggests similar names.
        return match kind.parse::<Arch>() {
            Err(Error::UnknownArch { name, nearest, families }) => {
                Err(Error::UnknownArch { name: format!("{name} (transformers' model_type)"), nearest, families })
            }
            other => other,
        };
    }
    for (field, wanted) in [("downsample_in_first_stage", false), ("downsample_in_bottleneck", false)] {
        if config.flag(field)?.unwrap_or(wanted) != wanted {
            return Err(config.wrong(field, "false, since no architecture of this crate has its strides there"));
        }
    }
    if config.text("hidden_act")?.is_some_and(|act| act != "relu") {
        return Err(config.wrong("hidden_act", "relu"));
    }
    if config.count("embedding_size")?.is_some_and(|size| size != 64) {
        return Err(config.wrong("embedding_size", "64"));
    }
    // transformers leaves out default values.
    let bottleneck = config.text("layer_type")?.is_none_or(|layer| layer == "bottleneck");
    let depths = config.sizes("depths", 4)?.unwrap_or_else(|| vec![3, 4, 6, 3]);
    let widths = config.sizes("hidden_sizes", 4)?.unwrap_or_else(|| vec![256, 512, 1024, 2048]);
    Arch::of_transformers_resnet(bottleneck, &depths, &widths).ok_or_else(|| {
        let kind = if bottleneck { "bottlenecks" } else { "basic blocks" };
        let name = format!("resnet of {kind}, depths {depths:?}, widths {widths:?}");
        let nearest = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"].map(String::from).to_vec();
        Error::UnknownArch { name, nearest, families: &[] }
    })
}

/// Arguments of timm that repeat other fields, or only affect training.
fn is_harmless(argument: &str) -> bool {
    matches!(argument, "num_classes" | "in_chans" | "global_pool" | "img_size" | "drop_rate" | "drop_path_rate")
}
