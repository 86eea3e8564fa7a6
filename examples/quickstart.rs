//! Fine-tunes a small network on images that come with the crate, and trains the same network from scratch to compare.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```
//!
//! Runs offline and shows every step: a pretrained backbone, a folder of images, the advised strategy, training, the
//! report, a saved predictor, predictions. The images are from Fashion-MNIST: 100 for training, 100 for validation, 500 for the
//! test (assets/fashion). The backbone is the crate's own, trained on CIFAR-10. The last two lines are the test
//! accuracies, from scratch and fine-tuned: `scratch top1 0.6120 306/500` and `top1 0.7220 361/500`.

#[path = "support/run.rs"]
mod run;

use candle_finetune::{Advisor, Backbone, Dataset, FineTuner, Fitted, Image, ImageFolder, Plan, Predictor, Strategy};
use candle_finetune::{Splits, candle_core::Device};
use clap::Parser;
use run::Failure;
use std::path::Path;
use std::process::ExitCode;

/// Fine-tunes a small network on images that come with the crate, and trains it from scratch to compare
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

    // The advisor sees that there is little data and that it does not resemble CIFAR-10. Its own plan varies the images
    // and takes longer (`advice.plan`); the strategy's plain plan is quick.
    let backbone = Backbone::embedded(&device)?;
    let advice = Advisor::new(&backbone).advise(&train)?;
    println!("advised for these images: {}", advice.strategy);
    let plan = advice.strategy.plan(&backbone, train.len());
    let run = |plan: Plan| -> Result<Fitted, Failure> {
        let tuner = FineTuner::new(backbone.clone()).plan(plan).seed(1);
        Ok(tuner.on_event(run::progress()).fit(&train, &valid)?)
    };
    let mut tuned = run(plan.clone())?;
    let top1 = tuned.test(&test)?;
    println!("{}", tuned.report);

    // The same network from scratch, with the same images, batch size and number of epochs.
    let mut scratch = Strategy::LargeDifferent.plan(&backbone, train.len());
    scratch = scratch.batch_size(plan.batch_size).augment(plan.augment.clone());
    if let Some(phase) = scratch.phases.first_mut() {
        phase.epochs = plan.total_epochs();
    }
    let mut from_scratch = run(scratch)?;
    let scratch_top1 = from_scratch.test(&test)?;

    // One file holds the weights, the labels and the preprocessing.
    let file = std::env::temp_dir().join(format!("quickstart-{}.safetensors", std::process::id()));
    tuned.predictor.save(&file)?;
    let predictor = Predictor::from_file(&file, &device)?;
    std::fs::remove_file(&file)?;
    for class in ["bag", "boot", "trouser"] {
        let Some(path) = std::fs::read_dir(folder.join("test").join(class))?.flatten().map(|f| f.path()).min() else {
            continue;
        };
        let prediction = predictor.predict(&Image::open(&path)?)?;
        println!("a {class} is classified as {} ({:.0} %)", prediction.label, 100.0 * prediction.probability);
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
