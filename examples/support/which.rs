//! The options that choose a network, and the predictor that they load.

use crate::run::Failure;
use candle_finetune::candle_core::Device;
use candle_finetune::{Arch, Predictor, Source};
use clap::Args;
use std::path::{Path, PathBuf};

/// A network from one of several sources.
#[derive(Args)]
pub struct Which {
    /// Predictor that this crate saved
    #[arg(long, group = "place")]
    predictor: Option<PathBuf>,
    /// File of weights with a classifier; needs --arch
    #[arg(long, group = "place", requires = "arch")]
    weights: Option<PathBuf>,
    /// Folder with weights and a config.json, as on the hub
    #[arg(long, group = "place")]
    dir: Option<PathBuf>,
    /// Repository of the Hugging Face hub: OWNER/NAME, or OWNER/NAME@REVISION
    #[cfg(feature = "hub")]
    #[arg(long, group = "place")]
    hub: Option<String>,
    /// Prefix of the network's tensor names, if the file holds several networks: "model."
    #[arg(long, requires = "place")]
    prefix: Option<String>,
    /// Architecture, if the source does not name it
    #[arg(long, requires = "place")]
    arch: Option<Arch>,
}

#[allow(dead_code)] // each example uses its part
impl Which {
    /// Whether it is a predictor that this crate saved.
    pub fn is_predictor(&self) -> bool {
        self.predictor.is_some()
    }

    /// Whether the options name a network.
    pub fn is_given(&self) -> bool {
        let places = [&self.predictor, &self.weights, &self.dir];
        #[cfg(feature = "hub")]
        if self.hub.is_some() {
            return true;
        }
        places.into_iter().any(Option::is_some)
    }

    /// The file that it is loaded from, if any.
    pub fn file(&self) -> Option<&Path> {
        self.predictor.as_deref().or(self.weights.as_deref())
    }

    /// Loads it. `None` if the options name none.
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
