//! Evaluates a network on a folder of labelled images: a saved predictor, or pretrained weights with their classifier.
//!
//! ```text
//! cargo run --release --example evaluate -- --data DIR --predictor tuned.safetensors
//! cargo run --release --example evaluate -- --data DIR --arch resnet18 --weights resnet18.safetensors
//! cargo run --release --example evaluate -- --data DIR --hub timm/resnet18.a1_in1k
//! ```
//!
//! DIR holds CLASS/*.jpg, or test/ (else valid/) with such folders; or it is a table (CSV), as for `finetune`. The classes
//! are named after the network's labels. For a pretrained classifier they may be class indices instead ("7",
//! "0007_tench"). Prints the accuracy last: `top1 0.9412 144/153`, or of several labels per image the exact matches.

#[path = "support/data.rs"]
mod data;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/run.rs"]
mod run;
#[path = "support/which.rs"]
mod which;

use candle_finetune::{Dataset, Task};
use clap::Parser;
use run::Failure;
use std::process::ExitCode;

/// Evaluates a network on a folder of labelled images
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    data: data::Data,
    #[command(flatten)]
    which: which::Which,
    /// Print the confusion matrix: how often each class is predicted as which
    #[arg(long)]
    confusion: bool,
    /// Print precision, recall and F1 of each class
    #[arg(long)]
    per_class: bool,
    /// Print the N wrong predictions with the highest probabilities: images with wrong labels are often among them
    #[arg(long, value_name = "N")]
    mistakes: Option<usize>,
    /// Device: cpu, cuda[:N] or metal[:N]
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
        return Err("no network is given; use --predictor, --weights with --arch, --dir or --hub".into());
    };
    let data = options.data.eval_part()?;
    // The labels of a predictor that this crate trained may be numbers, so its folders are always matched by name.
    let original = !options.which.is_predictor() && predictor.report()?.is_none();
    let known = data.classes().iter().all(|class| predictor.labels().contains(class));
    let number = |name: &String| name.starts_with(|first: char| first.is_ascii_digit());
    let numbered = data.classes().iter().all(number);
    // Numeric labels other than 0, 1, 2 ... are names too.
    let in_order = predictor.labels().iter().enumerate().all(|(i, label)| *label == i.to_string());
    let named = !in_order && predictor.labels().iter().any(number);
    let data = if original && numbered && !known && !named {
        data.class_indices(predictor.labels())?
    } else {
        data.labels(predictor.labels())?
    };
    println!("{} images of {}", data.len(), data.root().display());
    let skipped = data.skipped().len();
    if skipped > 0 {
        println!("{skipped} broken images skipped");
    }
    let evaluation = predictor.evaluate(&data)?;
    if options.confusion {
        let label = |class: u32| predictor.labels().get(class as usize).map_or("", String::as_str);
        println!("true class, predicted class, count:");
        for (truth, predicted, count) in evaluation.confusion.iter() {
            println!("{}, {}, {count}", label(truth), label(predicted));
        }
    }
    if options.per_class {
        println!("class, images, precision, recall, F1:");
        for of in evaluation.per_class() {
            let label = predictor.labels().get(of.class as usize).map_or("", String::as_str);
            println!("{label}, {}, {:.4}, {:.4}, {:.4}", of.samples, of.precision, of.recall, of.f1);
        }
    }
    if let Some(most) = options.mistakes {
        let several = predictor.task() == Task::Labels;
        println!("file, true class, predicted class, probability{}:", if several { ", wrong" } else { "" });
        for mistake in predictor.mistakes(&data, most)? {
            let [truth, predicted, wrong] = mistake.words(predictor.labels());
            let wrong = if several { format!(", {wrong}") } else { String::new() };
            println!("{}, {truth}, {predicted}, {:.4}{wrong}", mistake.name, mistake.probability);
        }
    }
    if evaluation.not_finite > 0 {
        println!("warning: the network's output is not finite for {} images", evaluation.not_finite);
    }
    let (loss, f1) = (evaluation.loss, evaluation.macro_f1());
    match evaluation.task() {
        // Its macro F1 is in the last line.
        Task::Labels => {
            let figure = |value: Option<f64>| value.map_or("unknown".into(), |value| format!("{value:.4}"));
            println!("loss {loss:.4}, average precision {}", figure(evaluation.average_precision()));
        }
        _ => println!(
            "loss {loss:.4}, balanced accuracy {:.4}, macro F1 {f1:.4}, calibration error {:.4}",
            evaluation.balanced_accuracy(),
            evaluation.calibration_error()
        ),
    }
    println!("{}", run::interval(&evaluation));
    println!("{evaluation}");
    Ok(())
}
