//! Measures a folder of images against a backbone, and advises a strategy with its reasons.
//!
//! ```text
//! cargo run --release --example advise -- --data DIR
//! cargo run --release --example advise -- --data DIR --arch resnet18 --weights resnet18.safetensors --json
//! cargo run --release --example advise -- --data DIR --budget 5 --memory 500
//! ```
//!
//! DIR holds CLASS/*.jpg, or train/, valid/ and test/ with such folders; the training images alone are looked at. Without
//! --weights or --hub it takes the backbone that comes with the crate. Prints the accuracy of linear classifiers after
//! each stage of the frozen network, the strategy, why, the minutes and the memory of each strategy, and the plan; with
//! --json the same as JSON. --budget and --memory exclude strategies that take more. It trains nothing.

#[path = "support/folders.rs"]
mod folders;
#[path = "support/run.rs"]
mod run;

use candle_finetune::{Advisor, Arch, Backbone, Dataset, Source};
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures a folder of images against a backbone, and advises a strategy
#[derive(Parser)]
struct Options {
    /// Folder of images: CLASS/*, or {train,valid,test}/CLASS/*
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    folders: folders::Folders,
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
    /// Random seed: of the split, and of the sample that is looked at
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device: cpu, cuda[:N] or metal[:N]
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Minutes that the training may take
    #[arg(long, value_name = "MINUTES")]
    budget: Option<f64>,
    /// Megabytes of memory that a training step may take
    #[arg(long, value_name = "MB")]
    memory: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| advise(&options))
}

fn advise(options: &Options) -> Result<(), Failure> {
    let source = options.weights.as_ref().map_or_else(Source::embedded, Source::file);
    #[cfg(feature = "hub")]
    let source = options.hub.as_ref().map_or(source, Source::hub);
    let source = options.arch.into_iter().fold(source, Source::arch);
    let mut backbone = Backbone::load(source, &run::device(&options.device)?)?;
    if let Some(size) = options.image_size {
        backbone = backbone.for_input_size(size, size)?;
    }
    let splits = options.folders.options().splits(&options.data, options.seed)?;
    let mut advisor = Advisor::new(&backbone).seed(options.seed).valid(splits.valid.len());
    if let Some(minutes) = options.budget {
        advisor = advisor.budget(minutes);
    }
    if let Some(mb) = options.memory {
        advisor = advisor.memory(mb.saturating_mul(1_000_000));
    }
    let advice = advisor.advise(&splits.train)?;
    if options.json {
        println!("{}", advice.to_json()?);
    } else {
        println!("{backbone:?}\n{splits}\n\n{advice}");
    }
    Ok(())
}
