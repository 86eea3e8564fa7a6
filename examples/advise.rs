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

#[path = "support/data.rs"]
mod data;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/pretrained.rs"]
mod pretrained;
#[path = "support/run.rs"]
mod run;

use candle_finetune::{Advisor, Dataset};
use clap::Parser;
use run::Failure;
use std::process::ExitCode;

/// Measures a folder of images against a backbone, and advises a strategy
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    data: data::Data,
    #[command(flatten)]
    backbone: pretrained::Pretrained,
    /// Random seed: of the split, and of the sample that is looked at
    #[arg(long, default_value_t = 0)]
    seed: u64,
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
    let backbone = options.backbone.load()?;
    let splits = options.data.splits(options.seed)?;
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
