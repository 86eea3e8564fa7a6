//! What a saved predictor says of itself, inside its file.

use crate::arch::{InputSpec, Naming};
use crate::error::{Error, Result};
use crate::head::{Head, HeadKind};
use std::path::Path;

/// The version of the description inside a saved predictor. It covers the input specification and the head; the plan in
/// the report has a version of its own.
pub(crate) const DESCRIPTION_VERSION: u32 = 1;

/// What every version of the description has.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// What a saved predictor says of itself, inside the file.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Saved {
    /// [`DESCRIPTION_VERSION`].
    pub version: u32,
    pub arch: String,
    #[serde(rename = "layout")]
    pub naming: Naming,
    pub input: InputSpec,
    pub labels: Vec<String>,
    pub head: Head,
    /// The report of the run that made it.
    pub story: Option<serde_json::Value>,
}

impl Saved {
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let damaged = |error| Error::weights_from(path, "its description of the predictor is damaged", error);
        // First the version alone: a newer description may look different.
        let Versioned { version } = serde_json::from_str(text).map_err(damaged)?;
        if version > DESCRIPTION_VERSION {
            let problem = format!("it was saved by a newer version of the crate (format {version})");
            return Err(Error::weights(path, problem));
        }
        serde_json::from_str(text).map_err(damaged)
    }

    /// Its head, for a message.
    pub fn head_in_words(&self) -> String {
        match self.head.kind {
            HeadKind::Mlp(hidden) => format!("head of two layers with {hidden} hidden units"),
            HeadKind::Linear | HeadKind::Original => "linear head".into(),
        }
    }
}
