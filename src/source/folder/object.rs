//! An untrusted JSON file, read field by field.

use crate::error::{Error, Result, shown};
use crate::input_spec::InputSpec;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(super) const PREPROCESSOR: &str = "preprocessor_config.json";
/// The greatest length in bytes. The longest real files list 21 000 classes in under two million bytes. Parsed JSON can
/// take thirty times as much memory.
const MAX_CONFIG: u64 = 4_000_000;
/// The greatest side of an image in pixels.
const MAX_SIZE: usize = 16_384;

/// A JSON object from an untrusted file.
pub(super) struct Object {
    pub path: PathBuf,
    /// The object's path in the file: "" or "pretrained_cfg.".
    prefix: String,
    pub map: Map<String, Value>,
}

impl Object {
    pub fn read(path: &Path) -> Result<Self> {
        // A device, or a link to one, may never end.
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
            .map_err(|error| Error::weights_from(path, "is not a JSON object that describes a network", error))?;
        Ok(Self { path: path.to_path_buf(), prefix: String::new(), map })
    }

    /// The field, unless it is absent or null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    pub fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// The error for a field with a wrong value.
    pub fn wrong(&self, field: &str, wanted: &str) -> Error {
        let mut value = self.map.get(field).map_or_else(|| "absent".into(), Value::to_string);
        if value.len() > 100 {
            value = value.chars().take(100).chain("...".chars()).collect();
        }
        let value = shown(&value);
        let remedy =
            if self.describes_input(field) { "; or set how images are prepared with `Source::input_spec`" } else { "" };
        Error::weights(&self.path, format!("{}{field} is {value} and should be {wanted}{remedy}", self.prefix))
    }

    /// Whether the field is about the preprocessing of images.
    pub fn describes_input(&self, field: &str) -> bool {
        self.path.ends_with(PREPROCESSOR) || (self.prefix == "pretrained_cfg." && !field.contains("label"))
    }

    /// The field converted by `take`; an error if it is present and `take` rejects it.
    pub fn field<T>(&self, field: &str, wanted: &str, take: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(field).map(|value| take(value).ok_or_else(|| self.wrong(field, wanted))).transpose()
    }

    pub fn text(&self, field: &str) -> Result<Option<String>> {
        self.field(field, "a text", |value| value.as_str().map(String::from))
    }

    pub fn texts(&self, field: &str) -> Result<Option<Vec<String>>> {
        self.field(field, "a list of texts", |value| {
            value.as_array()?.iter().map(|text| text.as_str().map(String::from)).collect()
        })
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        self.field(field, "true or false", Value::as_bool)
    }

    pub fn number(&self, field: &str) -> Result<Option<f64>> {
        self.field(field, "a number", Value::as_f64)
    }

    pub fn fraction(&self, field: &str) -> Result<Option<f64>> {
        self.field(field, "above 0 and at most 1", |value| value.as_f64().filter(|&value| value > 0.0 && value <= 1.0))
    }

    pub fn count(&self, field: &str) -> Result<Option<usize>> {
        self.field(field, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub fn size(&self, field: &str) -> Result<Option<usize>> {
        self.field(field, &format!("a size of 1 to {MAX_SIZE}"), size)
    }

    pub fn sizes(&self, field: &str, n: usize) -> Result<Option<Vec<usize>>> {
        self.field(field, &format!("a list of {n} sizes of 1 to {MAX_SIZE}"), |value| {
            let sizes: Vec<usize> = value.as_array()?.iter().map(size).collect::<Option<_>>()?;
            (sizes.len() == n).then_some(sizes)
        })
    }

    pub fn object(&self, field: &str) -> Result<Option<Self>> {
        self.field(field, "an object", |value| {
            let prefix = format!("{}{field}.", self.prefix);
            Some(Self { path: self.path.clone(), prefix, map: value.as_object()?.clone() })
        })
    }

    /// An object's texts with the keys 0, 1, 2 ...
    pub fn numbered(&self, field: &str) -> Result<Option<Vec<String>>> {
        self.field(field, "an object of texts with the keys 0, 1, 2 ...", |value| {
            let map = value.as_object()?;
            (0..map.len()).map(|i| map.get(&i.to_string())?.as_str().map(String::from)).collect()
        })
    }

    /// The specification with the means and deviations of these fields, if they are present.
    pub fn normalized(&self, spec: InputSpec, mean: &str, std: &str) -> Result<InputSpec> {
        let list = |field: &str, least: f64| {
            let wanted = if least < 0.0 { "a list of numbers" } else { "a list of numbers above 0" };
            self.field(field, wanted, |value| {
                let numbers = value.as_array()?.iter().map(|v| v.as_f64().filter(|&v| v > least && v < 1e6));
                let numbers = numbers.map(|v| v.map(|v| v as f32)).collect::<Option<Vec<f32>>>()?;
                (!numbers.is_empty()).then_some(numbers)
            })
        };
        let mean_of = list(mean, -1e6)?;
        let std_of = list(std, 0.0)?;
        match (mean_of, std_of) {
            (Some(mean), Some(std)) if mean.len() == std.len() => Ok(spec.normalize(&mean, &std)),
            (None, None) => Ok(spec),
            _ => Err(self.wrong(std, &format!("a list as long as {mean}"))),
        }
    }
}

fn size(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok().filter(|n| (1..=MAX_SIZE).contains(n))
}
