//! The description that a saved predictor carries inside its file.

use crate::arch::Naming;
use crate::blueprint::Pooling;
use crate::error::{Error, Result, shown};
use crate::head::{Head, HeadKind};
use crate::input_spec::InputSpec;
use crate::weights::{METADATA_KEY, Weights};
use std::path::Path;

/// The version of the description inside a saved predictor. It covers the input specification and the head; the plan in
/// the report has a version of its own.
///
/// 1: as 0.1 wrote it. 2: `pooling`, which a reader must know. 3: a head over all stages. 4: lists of labels. A file is
/// written as the oldest version that has all of it.
const DESCRIPTION_VERSION: u32 = 4;

/// The fields that every version of the description has.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// The description of a saved predictor.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Saved {
    /// [`Saved::version_for`] it.
    pub version: u32,
    /// The name of the architecture, or of the blueprint.
    pub arch: String,
    /// Whether it is a user's own blueprint, which no file holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub custom: bool,
    /// The pooling, if it is not the mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// A custom network's structure ([`Blueprint::structure`](crate::Blueprint)): of its layers and pooling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<u64>,
    #[serde(rename = "layout")]
    pub naming: Naming,
    pub input: InputSpec,
    pub labels: Vec<String>,
    pub head: Head,
    /// The report of the run that trained it.
    #[serde(rename = "story")]
    pub report: Option<serde_json::Value>,
    /// Whether it predicts lists of labels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multi_label: bool,
    /// The probability from which each label counts as predicted; a half, if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<f32>,
}

impl Saved {
    /// The description in a file of weights; `None` for one that is not a saved predictor.
    pub fn in_file(weights: &Weights) -> Result<Option<Self>> {
        weights.metadata.get(METADATA_KEY).map(|text| Self::parse(text, &weights.path)).transpose()
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        if text.contains("\"run_state\"") && !text.contains("\"labels\"") {
            let problem = "this is the state of a run; continue it with `RunState::from_file` and `FineTuner::resume`";
            return Err(Error::weights(path, problem));
        }
        let damaged = |error| Error::weights_from(path, "its description of the predictor is damaged", error);
        // The version is read first, since a newer description may have other fields.
        let Versioned { version } = serde_json::from_str(text).map_err(damaged)?;
        if version > DESCRIPTION_VERSION {
            let problem = format!("it was saved by a newer version of the crate (format {version})");
            return Err(Error::weights(path, problem));
        }
        serde_json::from_str(text).map_err(damaged)
    }

    /// The oldest version that has this pooling, this head and this task.
    pub fn version_for(pooling: Option<Pooling>, head: Head, multi_label: bool) -> u32 {
        match (head.kind, pooling) {
            _ if multi_label => 4,
            (HeadKind::Stages, _) => 3,
            (_, Some(_)) => 2,
            (_, None) => 1,
        }
    }

    /// The error for a file that should be a saved predictor and has no description.
    pub fn missing(path: &Path) -> Error {
        let problem = "this is not a saved predictor (it has no description of one); load weights with \
                       `Predictor::load` or `Backbone::from_file` (`--weights` and `--arch`)";
        Error::weights(path, problem)
    }

    /// The error for a file whose network the crate does not have.
    pub fn without_blueprint(path: &Path, name: &str) -> Error {
        let problem = format!(
            "holds the custom network {}, whose layers no file describes; load it with its blueprint: \
             `Predictor::from_file_as`, or `Source::blueprint` for a folder, the hub or the backbone alone",
            shown(name)
        );
        Error::weights(path, problem)
    }

    /// The head's kind, for a message.
    pub fn head_in_words(&self) -> String {
        match self.head.kind {
            HeadKind::Mlp(hidden) => format!("head of two layers with {hidden} hidden units"),
            HeadKind::Linear | HeadKind::Original => "linear head".into(),
            HeadKind::Stages => "head over all stages".into(),
        }
    }
}
