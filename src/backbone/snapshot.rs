//! A folder as the hub has it: weights, and files beside them that say what they are.

use crate::arch::{Arch, Fit, InputSpec, Interpolation};
use crate::error::{Error, Result, shown};
use crate::weights::shard_names;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What the files of such a folder say.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// The file of weights, or the index of its shards.
    pub weights: PathBuf,
    pub arch: Option<Arch>,
    pub spec: Option<InputSpec>,
    pub labels: Option<Vec<String>>,
    /// The repository of the hub that it came from.
    pub repository: Option<String>,
}

/// Gives the path of a file of the folder, if it is there; from the hub it is fetched first.
pub(crate) type Get<'a> = &'a mut dyn FnMut(&str) -> Result<Option<PathBuf>>;

const CONFIG: &str = "config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
/// Files of weights, the best first.
pub(crate) const WEIGHTS: [&str; 3] = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];

/// More bytes than this are no description; the longest real ones list 21 000 classes in under two million. As JSON in
/// memory they can take thirty times as much.
const MAX_CONFIG: u64 = 4_000_000;
/// Images are not larger than this many pixels on a side.
const MAX_SIZE: usize = 16_384;

impl Snapshot {
    /// Reads a folder on this machine. `arch`: what the user says it is.
    pub fn open(folder: &Path, arch: Option<Arch>) -> Result<Self> {
        if !folder.is_dir() {
            let problem = "is no folder; name the one that holds config.json and model.safetensors";
            return Err(Error::weights(folder, problem));
        }
        Self::gather(folder, arch, &mut |name| {
            let path = folder.join(name);
            Ok(path.exists().then_some(path))
        })
    }

    /// Reads what `get` gives; `place` is what messages call the whole.
    pub fn gather(place: &Path, arch: Option<Arch>, get: Get<'_>) -> Result<Self> {
        let mut found = Self { weights: PathBuf::new(), arch, spec: None, labels: None, repository: None };
        if let Some(path) = get(CONFIG)? {
            let config = Object::read(&path)?;
            if config.has("architecture") {
                found.timm(&config)?;
            } else if config.has("model_type") {
                let preprocessor = get(PREPROCESSOR)?.map(|path| Object::read(&path)).transpose()?;
                found.transformers(&config, preprocessor.as_ref())?;
            } else if arch.is_none() {
                let problem = "has neither timm's \"architecture\" nor transformers' \"model_type\"; \
                               name the architecture with Source::arch";
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
                            format!("names the shard {}, which is not there", shown(&shard)),
                        ));
                    }
                }
            }
            found.weights = path;
            return Ok(found);
        }
        Err(Error::weights(place, format!("holds no weights: there is none of {}", WEIGHTS.join(", "))))
    }

    /// timm's config.json. What older versions wrote has the fields of `pretrained_cfg` at the top.
    fn timm(&mut self, config: &Object) -> Result<()> {
        if self.arch.is_none() {
            let name = config.text("architecture")?.unwrap_or_default();
            // The tag of the weights may stand behind the name.
            self.arch = Some(name.split('.').next().unwrap_or_default().parse()?);
        }
        let input = config.object("pretrained_cfg")?;
        let input = input.as_ref().unwrap_or(config);
        let arguments = config.object("model_args")?;
        let mut spec = self.arch.map_or_else(|| InputSpec::new(224), |arch| arch.input_spec());
        if let Some(size) = input.sizes("input_size", 3)? {
            spec = spec.size(size[1], size[2]);
            spec.channels = size[0];
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
        if let Some(crop) = input.share("crop_pct")? {
            spec = spec.crop_pct(crop);
        }
        if let Some(mode) = input.text("crop_mode")? {
            spec = spec.fit(match mode.as_str() {
                "center" => Fit::Crop,
                "squash" => Fit::Squash,
                "border" => Fit::Pad,
                _ => return Err(input.wrong("crop_mode", "center, squash or border")),
            });
        }
        let channels = spec.channels;
        spec = input.normalized(spec, "mean", "std")?;
        if let Some(arguments) = &arguments
            && let Some(channels) = arguments.count("in_chans")?
            && channels != spec.channels
        {
            return Err(arguments.wrong("in_chans", "the number of means"));
        }
        if channels != spec.channels && input.has("input_size") {
            return Err(input.wrong("input_size", "as many channels as there are means"));
        }
        self.spec = Some(spec);
        self.labels = match config.texts("label_names")? {
            Some(labels) => Some(labels),
            None => match input.texts("label_names")? {
                Some(labels) => Some(labels),
                None => input.texts("labels")?,
            },
        };
        Ok(())
    }

    /// transformers' config.json and preprocessor_config.json.
    fn transformers(&mut self, config: &Object, preprocessor: Option<&Object>) -> Result<()> {
        if self.arch.is_none() {
            self.arch = Some(transformers_arch(config)?);
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
        // The parser of names knows what is like it.
        return match kind.parse::<Arch>() {
            Err(Error::UnknownArch { nearest, .. }) => {
                Err(Error::UnknownArch { name: format!("{} (transformers' model_type)", shown(&kind)), nearest })
            }
            other => other,
        };
    }
    for (field, wanted) in [("downsample_in_first_stage", false), ("downsample_in_bottleneck", false)] {
        if config.flag(field)?.unwrap_or(wanted) != wanted {
            return Err(config.wrong(field, "false: no architecture here has its strides there"));
        }
    }
    if config.text("hidden_act")?.is_some_and(|act| act != "relu") {
        return Err(config.wrong("hidden_act", "relu"));
    }
    if config.count("embedding_size")?.is_some_and(|size| size != 64) {
        return Err(config.wrong("embedding_size", "64"));
    }
    // The library leaves out what is its default.
    let bottleneck = config.text("layer_type")?.is_none_or(|layer| layer == "bottleneck");
    let depths = config.sizes("depths", 4)?.unwrap_or_else(|| vec![3, 4, 6, 3]);
    let widths = config.sizes("hidden_sizes", 4)?.unwrap_or_else(|| vec![256, 512, 1024, 2048]);
    Arch::of_transformers_resnet(bottleneck, &depths, &widths).ok_or_else(|| {
        let kind = if bottleneck { "bottlenecks" } else { "basic blocks" };
        let name = format!("resnet of {kind}, depths {depths:?}, widths {widths:?}");
        let nearest = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"].map(String::from).to_vec();
        Error::UnknownArch { name, nearest }
    })
}

/// What a preprocessor_config.json does to an image.
fn preprocessed(p: &Object) -> Result<InputSpec> {
    let kind = p.text("image_processor_type")?.or(p.text("feature_extractor_type")?).unwrap_or_default();
    let mut spec = InputSpec::new(224).interpolation(Interpolation::Bilinear);
    if let Some(filter) = p.count("resample")? {
        spec = spec.interpolation(match filter {
            0 => Interpolation::Nearest,
            1 => Interpolation::Lanczos,
            2 => Interpolation::Bilinear,
            3 => Interpolation::Bicubic,
            _ => return Err(p.wrong("resample", "0 (nearest), 1 (lanczos), 2 (bilinear) or 3 (bicubic)")),
        });
    }
    let short = match p.get("size") {
        Some(Value::Object(_)) => p.object("size")?.map_or(Ok(None), |size| size.size("shortest_edge"))?,
        _ => p.size("size")?,
    };
    let sides = |field: &str| -> Result<Option<(usize, usize)>> {
        let Some(Value::Object(_)) = p.get(field) else { return Ok(p.size(field)?.map(|n| (n, n))) };
        let Some(size) = p.object(field)? else { return Ok(None) };
        Ok(size.size("height")?.zip(size.size("width")?))
    };
    // Without being told so, the processors with a crop's size crop.
    let crops = p.flag("do_center_crop")?.unwrap_or_else(|| p.has("crop_size"));
    let crop = if crops { sides("crop_size")? } else { None };
    spec = match (short, crop) {
        (Some(short), None) if kind.contains("ConvNext") || p.has("crop_pct") => {
            // From 384 pixels on nothing is cropped away.
            let pct = if short < 384 { p.share("crop_pct")?.unwrap_or(224.0 / 256.0) } else { 1.0 };
            spec.size(short, short).fit(if short < 384 { Fit::Crop } else { Fit::Squash }).crop_pct(pct)
        }
        (Some(short), Some((h, w))) if h.max(w) <= short => spec.size(h, w).crop_pct(h.min(w) as f64 / short as f64),
        (_, Some(_)) => {
            let remedy = "no larger than a size that is a shortest_edge; or set Source::input_spec";
            return Err(p.wrong("crop_size", remedy));
        }
        // A bare number is both sides.
        (Some(short), None) if !matches!(p.get("size"), Some(Value::Object(_))) => {
            spec.size(short, short).fit(Fit::Squash).crop_pct(1.0)
        }
        (Some(short), None) => spec.size(short, short).crop_pct(1.0),
        (None, None) => match sides("size")? {
            Some((h, w)) => spec.size(h, w).fit(Fit::Squash).crop_pct(1.0),
            None => spec,
        },
    };
    if p.number("rescale_factor")?.is_some_and(|factor| (factor * 255.0 - 1.0).abs() > 1e-6) {
        return Err(p.wrong("rescale_factor", "1/255"));
    }
    if p.flag("do_normalize")? == Some(false) {
        return Ok(spec.normalize(&[0.0; 3], &[1.0; 3]));
    }
    p.normalized(spec, "image_mean", "image_std")
}

/// A JSON object of a file, read with suspicion.
struct Object {
    path: PathBuf,
    /// Where in the file it lies: "" or "pretrained_cfg.".
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    fn read(path: &Path) -> Result<Self> {
        // A link to a device has no length and no end.
        if !std::fs::metadata(path).map_err(Error::io("read", path))?.is_file() {
            return Err(Error::weights(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(Error::io("read", path))?;
        let mut text = Vec::new();
        file.take(MAX_CONFIG + 1).read_to_end(&mut text).map_err(Error::io("read", path))?;
        if text.len() as u64 > MAX_CONFIG {
            return Err(Error::weights(
                path,
                format!("is too long for a description; at most {MAX_CONFIG} bytes are read"),
            ));
        }
        let map = serde_json::from_slice(&text)
            .map_err(|error| Error::weights_from(path, "is no JSON object that describes a network", error))?;
        Ok(Self { path: path.to_path_buf(), prefix: String::new(), map })
    }

    /// A field, unless it is absent or null.
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    fn wrong(&self, field: &str, wanted: &str) -> Error {
        let mut value = self.map.get(field).map_or_else(|| "absent".into(), Value::to_string);
        if value.len() > 100 {
            value = value.chars().take(100).chain("...".chars()).collect();
        }
        let value = shown(&value);
        Error::weights(&self.path, format!("{}{field} is {value} and should be {wanted}", self.prefix))
    }

    /// The field as `take` reads it; an error if it is there and cannot be read.
    fn field<T>(&self, field: &str, wanted: &str, take: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(field).map(|value| take(value).ok_or_else(|| self.wrong(field, wanted))).transpose()
    }

    fn text(&self, field: &str) -> Result<Option<String>> {
        self.field(field, "a text", |value| value.as_str().map(String::from))
    }

    fn texts(&self, field: &str) -> Result<Option<Vec<String>>> {
        self.field(field, "a list of texts", |value| {
            value.as_array()?.iter().map(|text| text.as_str().map(String::from)).collect()
        })
    }

    fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.field(field, "true or false", Value::as_bool)
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        self.field(field, "a number", Value::as_f64)
    }

    fn share(&self, field: &str) -> Result<Option<f64>> {
        self.field(field, "above 0 and at most 1", |value| value.as_f64().filter(|&share| share > 0.0 && share <= 1.0))
    }

    fn count(&self, field: &str) -> Result<Option<usize>> {
        self.field(field, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    fn size(&self, field: &str) -> Result<Option<usize>> {
        self.field(field, &format!("a size of 1 to {MAX_SIZE}"), size)
    }

    fn sizes(&self, field: &str, n: usize) -> Result<Option<Vec<usize>>> {
        self.field(field, &format!("a list of {n} sizes of 1 to {MAX_SIZE}"), |value| {
            let sizes: Vec<usize> = value.as_array()?.iter().map(size).collect::<Option<_>>()?;
            (sizes.len() == n).then_some(sizes)
        })
    }

    fn object(&self, field: &str) -> Result<Option<Self>> {
        self.field(field, "an object", |value| {
            let prefix = format!("{}{field}.", self.prefix);
            Some(Self { path: self.path.clone(), prefix, map: value.as_object()?.clone() })
        })
    }

    /// Texts under the numbers 0, 1, 2 ...
    fn numbered(&self, field: &str) -> Result<Option<Vec<String>>> {
        self.field(field, "an object of texts under the numbers from 0 on", |value| {
            let map = value.as_object()?;
            (0..map.len()).map(|i| map.get(&i.to_string())?.as_str().map(String::from)).collect()
        })
    }

    /// The specification with these fields' means and deviations, if they are there.
    fn normalized(&self, spec: InputSpec, mean: &str, std: &str) -> Result<InputSpec> {
        let numbers = |field: &str, least: f64| {
            let wanted = if least < 0.0 { "a list of numbers" } else { "a list of numbers above 0" };
            self.field(field, wanted, |value| {
                let numbers = value.as_array()?.iter().map(|v| v.as_f64().filter(|&v| v > least && v < 1e6));
                let numbers = numbers.map(|v| v.map(|v| v as f32)).collect::<Option<Vec<f32>>>()?;
                (!numbers.is_empty()).then_some(numbers)
            })
        };
        let mean_of = numbers(mean, -1e6)?;
        let std_of = numbers(std, 0.0)?;
        match (mean_of, std_of) {
            (Some(mean), Some(std)) if mean.len() == std.len() => Ok(spec.normalize(&mean, &std)),
            (None, None) => Ok(spec),
            _ => Err(self.wrong(std, &format!("a list like that of {mean}"))),
        }
    }
}

fn size(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|n| (1..=MAX_SIZE).contains(n))
}
