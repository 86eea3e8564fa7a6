//! Runs a network over a folder of labelled images: pretrained weights with their original classifier, or what this
//! crate saved.
//!
//! ```text
//! cargo run --release --example evaluate -- --data DIR --arch resnet18 --weights resnet18.safetensors
//! cargo run --release --example evaluate -- --data DIR --predictor tuned.safetensors
//! cargo run --release --example evaluate -- --data DIR --hub timm/resnet18.a1_in1k
//! ```
//!
//! DIR holds CLASS/*.jpg, or test/ (else valid/) with those. A saved predictor knows its labels; the folders of
//! original classes are called by their labels, or by their numbers ("7", "0007_tench"). Prints the accuracy last:
//! `top1 0.9412 144/153`.

#[path = "support/run.rs"]
mod run;
#[path = "support/which.rs"]
mod which;

use candle_finetune::{Dataset, ImageFolder};
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs a network over a folder of labelled images.
#[derive(Parser)]
struct Options {
    /// The folder of images.
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    which: which::Which,
    /// Prints how often each class is taken for which.
    #[arg(long)]
    confusion: bool,
    /// cpu, cuda[:N] or metal[:N].
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| evaluate(&options))
}

fn evaluate(options: &Options) -> Result<(), Failure> {
    let device = run::device(&options.device)?;
    let Some(predictor) = options.which.load(&device)? else {
        return Err("name a --predictor, --weights with --arch, a --dir, or a repository of the --hub".into());
    };
    let data = ImageFolder::eval_part(&options.data)?;
    // Folders called by numbers are indices, unless the labels are such numbers themselves.
    let known = data.classes().iter().all(|class| predictor.labels().contains(class));
    let numbered = data.classes().iter().all(|class| class.starts_with(|first: char| first.is_ascii_digit()));
    let data =
        if numbered && !known { data.class_indices(predictor.labels())? } else { data.labels(predictor.labels())? };
    let evaluation = predictor.evaluate(&data)?;
    if options.confusion {
        for (i, row) in evaluation.confusion.iter().enumerate().filter(|(_, row)| row.iter().any(|&n| n > 0)) {
            println!("{}: {row:?}", predictor.labels()[i]);
        }
    }
    println!("loss {:.4}", evaluation.loss);
    println!("{evaluation}");
    Ok(())
}
