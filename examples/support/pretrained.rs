//! The options that choose a pretrained backbone, and the backbone that they load.

use crate::run::{self, Failure};
use candle_finetune::{Arch, Backbone, Source};
use clap::Args;
use std::path::{Path, PathBuf};

/// A backbone: the crate's own, or one from a file or the hub.
#[derive(Args)]
pub struct Pretrained {
    /// File of pretrained weights (safetensors or .pth); needs --arch unless this crate saved it
    #[arg(long, conflicts_with = "embedded")]
    weights: Option<PathBuf>,
    /// Architecture of the weights: resnet18, efficientnet_b0, ...
    #[arg(long)]
    arch: Option<Arch>,
    /// Repository of the Hugging Face hub: owner/name
    #[cfg(feature = "hub")]
    #[arg(long, conflicts_with_all = ["weights", "embedded"])]
    hub: Option<String>,
    /// Use the small backbone that comes with the crate, as without --weights
    #[arg(long)]
    embedded: bool,
    /// Height and width of the network's input in pixels
    #[arg(long)]
    image_size: Option<usize>,
    /// Device: cpu, cuda[:N] or metal[:N]
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[allow(dead_code)] // each example uses its part
impl Pretrained {
    /// The file of weights, if they come from one.
    pub fn file(&self) -> Option<&Path> {
        self.weights.as_deref()
    }

    /// Loads it.
    pub fn load(&self) -> Result<Backbone, Failure> {
        let source = self.weights.as_ref().map_or_else(Source::embedded, Source::file);
        #[cfg(feature = "hub")]
        let source = self.hub.as_ref().map_or(source, Source::hub);
        let source = self.arch.into_iter().fold(source, Source::arch);
        let backbone = Backbone::load(source, &run::device(&self.device)?)?;
        Ok(match self.image_size {
            Some(size) => backbone.for_input_size(size, size)?,
            None => backbone,
        })
    }
}
