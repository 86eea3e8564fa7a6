//! The whole way in one command, offline: a pretrained backbone, a folder of images, a strategy, training, a report,
//! a saved predictor, and a prediction; and what fine-tuning saves against training from scratch.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! The images are 100 of Fashion-MNIST's for training, 100 for validation and 500 for the test (assets/fashion); the
//! backbone is the small one that the crate carries, trained on CIFAR-10. Prints the report, what a few test images
//! are taken for, the times, and last the two test accuracies:
//! `scratch top1 0.6120 306/500` and `top1 0.7220 361/500`.

#[path = "support/run.rs"]
mod run;

use candle_finetune::{Backbone, Dataset, FineTuner, Fitted, Image, ImageFolder, Plan, Predictor, Strategy};
use candle_finetune::{Splits, candle_core::Device};
use clap::Parser;
use run::Failure;
use std::path::Path;
use std::process::ExitCode;

/// Trains a small network on the images that come with the crate, fine-tuned and from scratch.
#[derive(Parser)]
struct Options {}

fn main() -> ExitCode {
    let Options {} = Options::parse();
    run::run(quickstart)
}

fn quickstart() -> Result<(), Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion");
    let splits = ImageFolder::splits(&folder, 0)?;
    println!("{splits}");
    let Splits { train, valid, test, .. } = splits;
    let test = test.ok_or("assets/fashion has no test folder")?;
    let device = Device::Cpu;

    // Little data that does not resemble CIFAR-10: the first blocks stay, the others learn.
    let backbone = Backbone::embedded(&device)?;
    let plan = Strategy::SmallDifferent.plan(&backbone, train.len());
    let run = |plan: Plan| -> Result<Fitted, Failure> {
        let tuner = FineTuner::new(backbone.clone()).plan(plan).seed(1);
        Ok(tuner.on_event(run::progress()).fit(&train, &valid)?)
    };
    let mut tuned = run(plan.clone())?;
    let top1 = tuned.test(&test)?;
    println!("{}", tuned.report);

    // The same network from scratch, on the same images in the same batches, for as many epochs.
    let mut scratch = Strategy::LargeDifferent.plan(&backbone, train.len());
    scratch = scratch.batch_size(plan.batch_size).augment(plan.augment.clone());
    if let Some(phase) = scratch.phases.first_mut() {
        phase.epochs = plan.total_epochs();
    }
    let mut from_scratch = run(scratch)?;
    let scratch_top1 = from_scratch.test(&test)?;

    // One file holds the weights, the labels and how images are prepared.
    let file = std::env::temp_dir().join(format!("quickstart-{}.safetensors", std::process::id()));
    tuned.predictor.save(&file)?;
    let predictor = Predictor::from_file(&file, &device)?;
    std::fs::remove_file(&file)?;
    for class in ["bag", "boot", "trouser"] {
        let Some(path) = std::fs::read_dir(folder.join("test").join(class))?.flatten().map(|f| f.path()).min() else {
            continue;
        };
        let prediction = predictor.predict(&Image::open(&path)?)?;
        println!("a {class} is taken for a {} ({:.0} %)", prediction.label, 100.0 * prediction.probability);
    }
    println!(
        "fine-tuned in {:.1} s, from scratch in {:.1} s, over {} epochs each",
        tuned.report.seconds.total,
        from_scratch.report.seconds.total,
        plan.total_epochs()
    );
    println!("from scratch: {}", run::interval(&scratch_top1));
    println!("fine-tuned: {}", run::interval(&top1));
    println!("scratch {scratch_top1}");
    println!("{top1}");
    Ok(())
}
