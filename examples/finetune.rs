//! Fine-tunes a backbone on a folder of images, and saves the predictor and a report.
//!
//! ```text
//! cargo run --release --example finetune -- --data DIR --arch resnet18 --weights resnet18.safetensors \
//!     --strategy small-similar --out tuned.safetensors --report report.json
//! cargo run --release --example finetune -- --data DIR --embedded --strategy intermediate
//! cargo run --release --example finetune -- --data labels.csv --images DIR --label-column breed --group-column dog \
//!     --embedded
//! ```
//!
//! DIR holds CLASS/*.jpg, or train/, valid/ and test/ with such folders. Without valid/, 15 % of train/ are split off.
//! Without --strategy it measures the images and chooses one.
//!
//! A table (CSV) has a row per image with its file and its label, and may have the part and a group. Usual names of
//! columns are found (`image_id`, `label`, `split`, `patient_id` ...), others are named by options.
//!
//! Prints the data, the plan, a line per epoch, a summary and, last, the accuracy on test/ (without test/, on the
//! validation images): `top1 0.9412 144/153`. With --dry-run it trains nothing.

#[path = "support/choice.rs"]
mod choice;
#[path = "support/data.rs"]
mod data;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/job.rs"]
mod job;
#[path = "support/logs.rs"]
mod logs;
#[path = "support/regularise.rs"]
mod regularise;
#[path = "support/run.rs"]
mod run;

use candle_finetune::{Arch, Source};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Fine-tunes a backbone on a folder of images; without --strategy, the images are measured to choose one
#[derive(Parser)]
struct Options {
    /// File of pretrained weights (safetensors or .pth); needs --arch unless this crate saved it
    #[arg(long, conflicts_with = "embedded", required_unless_present = "embedded")]
    weights: Option<PathBuf>,
    /// Architecture of the weights: resnet18, efficientnet_b0, ...
    #[arg(long)]
    arch: Option<Arch>,
    /// Prefix of the network's tensor names, if the file holds several networks: "model."
    #[arg(long)]
    prefix: Option<String>,
    /// Use the small backbone that comes with the crate
    #[arg(long)]
    embedded: bool,
    #[command(flatten)]
    job: job::Job,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let source = options.weights.as_ref().map_or_else(Source::embedded, Source::file);
    let source = options.arch.into_iter().fold(source, Source::arch);
    let source = options.prefix.iter().fold(source, Source::prefix);
    run::run(|| {
        if let Some((_, accuracy)) = job::finetune(&options.job, (source, options.weights.as_deref()), || Ok(()))? {
            println!("{accuracy}");
        }
        Ok(())
    })
}
