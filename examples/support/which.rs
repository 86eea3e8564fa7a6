//! Which network an example runs: the options, and the predictor that they name.

use crate::run::Failure;
use candle_finetune::candle_core::Device;
use candle_finetune::{Arch, Predictor, Source};
use clap::Args;
use std::path::{Path, PathBuf};

/// The network, in one of several places.
#[derive(Args)]
pub struct Which {
    /// A predictor that this crate saved.
    #[arg(long, group = "place")]
    predictor: Option<PathBuf>,
    /// A file of weights with its classifier; needs --arch.
    #[arg(long, group = "place", requires = "arch")]
    weights: Option<PathBuf>,
    /// A folder with weights and a config.json, as on the hub.
    #[arg(long, group = "place")]
    dir: Option<PathBuf>,
    /// A repository of the Hugging Face hub: OWNER/NAME, or OWNER/NAME@REVISION.
    #[cfg(feature = "hub")]
    #[arg(long, group = "place")]
    hub: Option<String>,
    /// The prefix of the network's tensor names, where the file holds several networks: "model."
    #[arg(long, requires = "place")]
    prefix: Option<String>,
    /// The architecture, where the weights do not say it.
    #[arg(long, requires = "place")]
    arch: Option<Arch>,
}

#[allow(dead_code)] // each example uses its part
impl Which {
    /// Whether it is a predictor that this crate saved.
    pub fn is_predictor(&self) -> bool {
        self.predictor.is_some()
    }

    /// The file that it is loaded from, if it is one.
    pub fn file(&self) -> Option<&Path> {
        self.predictor.as_deref().or(self.weights.as_deref())
    }

    /// Loads it; `None` if none is named.
    pub fn load(&self, device: &Device) -> Result<Option<Predictor>, Failure> {
        if let Some(path) = &self.predictor {
            return Ok(Some(Predictor::from_file(path, device)?));
        }
        let source = self.weights.as_ref().map(Source::file).or_else(|| self.dir.as_ref().map(Source::dir));
        #[cfg(feature = "hub")]
        let source =
            source.or_else(|| self.hub.as_ref().map(|id| Source::hub(id).on_download(crate::run::downloads())));
        let source = source.map(|source| self.arch.into_iter().fold(source, Source::arch));
        let source = source.map(|source| self.prefix.iter().fold(source, Source::prefix));
        Ok(source.map(|source| Predictor::load(source, device)).transpose()?)
    }
}
