//! Says what images show.
//!
//! ```text
//! cargo run --release --example predict -- --predictor tuned.safetensors bee.jpg ant.jpg
//! cargo run --release --example predict -- --arch resnet18 --weights resnet18.safetensors --top5 dog.jpg
//! cargo run --release --example predict -- --hub timm/resnet18.a1_in1k dog.jpg
//! cargo run --release --example predict
//! ```
//!
//! Prints a line per image: the file, the label, and its probability; with `--top5` also the five likeliest labels.
//! Without a predictor it first tunes a small one on the images that come with the crate, and without images it takes
//! one of each class of those.

#[path = "support/run.rs"]
mod run;
#[path = "support/small.rs"]
mod small;
#[path = "support/which.rs"]
mod which;

use candle_finetune::candle_core::Device;
use candle_finetune::{Dataset, FineTuner, Image, ImageFolder, Prediction, Predictor, Splits, Strategy, Target};
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Says what images show.
#[derive(Parser)]
struct Options {
    /// The images; without any, one of each class of those that come with the crate.
    images: Vec<PathBuf>,
    #[command(flatten)]
    which: which::Which,
    /// Prints the five likeliest labels of each image.
    #[arg(long)]
    top5: bool,
    /// cpu, cuda[:N] or metal[:N].
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// How many images are decoded and computed together.
const TOGETHER: usize = 32;

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| predict(&options))
}

fn predict(options: &Options) -> Result<(), Failure> {
    let device = run::device(&options.device)?;
    let predictor = match options.which.load(&device)? {
        Some(predictor) => predictor,
        None => tune(&device)?,
    };
    let paths = if options.images.is_empty() { one_of_each_class()? } else { options.images.clone() };
    for paths in paths.chunks(TOGETHER) {
        let images: Vec<Image> = paths.iter().map(Image::open).collect::<Result<_, _>>()?;
        for (path, prediction) in paths.iter().zip(predictor.predict_batch(&images)?) {
            println!("{} {} {:.4}", path.display(), prediction.label, prediction.probability);
            if options.top5 {
                for (label, probability) in likeliest(&prediction, predictor.labels(), 5) {
                    println!("  {label} {probability:.4}");
                }
            }
        }
    }
    Ok(())
}

/// The `count` likeliest labels, the likeliest first.
fn likeliest<'a>(prediction: &Prediction, labels: &'a [String], count: usize) -> Vec<(&'a str, f32)> {
    let mut all: Vec<_> = labels.iter().map(String::as_str).zip(prediction.probabilities.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(count);
    all
}

/// A predictor for the images that come with the crate.
fn tune(device: &Device) -> Result<Predictor, Failure> {
    let Splits { train, valid, .. } = ImageFolder::splits(small::images(), 0)?;
    let tuner = FineTuner::new(small::backbone(device)?).strategy(Strategy::SmallSimilar);
    Ok(tuner.on_event(run::progress()).fit(&train, &valid)?.predictor)
}

fn one_of_each_class() -> Result<Vec<PathBuf>, Failure> {
    let data = ImageFolder::eval_part(small::images())?;
    let first = |class: u32| (0..data.len()).find(|&i| data.target(i) == Target::Class(class));
    Ok((0..data.classes().len() as u32).filter_map(first).map(|i| data.path(i).to_path_buf()).collect())
}
