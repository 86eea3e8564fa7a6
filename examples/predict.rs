//! Classifies images, or all images in folders, and prints labels and probabilities, also as CSV.
//!
//! ```text
//! cargo run --release --example predict -- --predictor tuned.safetensors bee.jpg ant.jpg
//! cargo run --release --example predict -- --predictor tuned.safetensors PHOTOS/ --csv predictions.csv
//! cargo run --release --example predict -- --arch resnet18 --weights resnet18.safetensors --top5 dog.jpg
//! cargo run --release --example predict -- --hub timm/resnet18.a1_in1k dog.jpg
//! ```
//!
//! Prints a line per image: the file, the label and its probability; of a predictor of several labels per image, every label
//! that reaches its threshold. `--top5` adds the five most likely labels. `--csv`
//! writes a table with the probability of every label.

#[path = "support/run.rs"]
mod run;
#[path = "support/which.rs"]
mod which;

use candle_finetune::{Image, ImageFolder, Prediction, Predictor, Task};
use clap::Parser;
use run::Failure;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Classifies images
#[derive(Parser)]
struct Options {
    /// Image files, or folders of them
    #[arg(required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    which: which::Which,
    /// Print the five most likely labels of each image
    #[arg(long)]
    top5: bool,
    /// Write file, label, probability, and the probability of every label to this CSV file
    #[arg(long)]
    csv: Option<PathBuf>,
    /// Maximum number of pixels of an image
    #[arg(long)]
    max_pixels: Option<u64>,
    /// Skip and list images that cannot be read, instead of stopping
    #[arg(long)]
    skip_broken: bool,
    /// Device: cpu, cuda[:N] or metal[:N]
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Images per batch.
const TOGETHER: usize = 32;

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| predict(&options))
}

fn predict(options: &Options) -> Result<(), Failure> {
    let device = run::device(&options.device)?;
    let Some(predictor) = options.which.load(&device)? else {
        return Err("no network is given; use --predictor, --weights with --arch, --dir or --hub".into());
    };
    let mut paths = vec![];
    for path in &options.images {
        if path.is_dir() { paths.extend(ImageFolder::find_images(path)?) } else { paths.push(path.clone()) }
    }
    if let Some(csv) = &options.csv {
        let inputs: Vec<&Path> = paths.iter().map(PathBuf::as_path).chain(options.which.file()).collect();
        run::check_outputs(&[csv], &inputs)?;
    }
    let mut predicted = 0;
    let mut table = options.csv.as_deref().map(|path| Table::create(path, &predictor)).transpose()?;
    for paths in paths.chunks(TOGETHER) {
        let mut read: Vec<(&PathBuf, Image)> = vec![];
        for path in paths {
            let image = options.max_pixels.map_or_else(|| Image::open(path), |most| Image::open_limited(path, most));
            match image {
                Ok(image) => read.push((path, image)),
                Err(error) if options.skip_broken => eprintln!("skipped: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
        let (paths, images): (Vec<&PathBuf>, Vec<Image>) = read.into_iter().unzip();
        let predictions = predictor.predict_batch(&images).map_err(|error| {
            // Predict one by one, to find the file that fails.
            let fails = |(_, image): &(&&PathBuf, &Image)| predictor.predict(image).is_err();
            let file = paths.iter().zip(&images).find(fails).map_or("", |(path, _)| path.to_str().unwrap_or_default());
            format!("{file}: {error}")
        })?;
        predicted += predictions.len();
        for (path, prediction) in paths.iter().zip(predictions) {
            match predictor.task() {
                Task::Labels => println!("{} {}", path.display(), reached(&prediction, predictor.labels())),
                _ => println!("{} {} {:.4}", path.display(), prediction.label, prediction.probability),
            }
            if options.top5 {
                for (label, probability) in likeliest(&prediction, predictor.labels(), 5) {
                    println!("  {label} {probability:.4}");
                }
            }
            if let Some(table) = &mut table {
                table.row(path, &prediction)?;
            }
        }
    }
    if predicted == 0 {
        return Err("no image could be read".into());
    }
    table.map_or(Ok(()), Table::finish)
}

/// The `count` most likely labels, the most likely first.
fn likeliest<'a>(prediction: &Prediction, labels: &'a [String], count: usize) -> Vec<(&'a str, f32)> {
    let mut all: Vec<_> = labels.iter().map(String::as_str).zip(prediction.probabilities.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.truncate(count);
    all
}

/// A file of comma-separated values (RFC 4180).
struct Table {
    file: std::io::BufWriter<std::fs::File>,
    path: PathBuf,
}

impl Table {
    fn create(path: &Path, predictor: &Predictor) -> Result<Self, Failure> {
        let file = std::fs::File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut table = Self { file: std::io::BufWriter::new(file), path: path.into() };
        let labels = predictor.labels().iter().map(|label| field(label));
        table.line(["file", "label", "probability"].map(String::from).into_iter().chain(labels))?;
        Ok(table)
    }

    fn row(&mut self, path: &Path, prediction: &Prediction) -> Result<(), Failure> {
        let first = [field(&path.display().to_string()), field(&prediction.label), prediction.probability.to_string()];
        self.line(first.into_iter().chain(prediction.probabilities.iter().map(ToString::to_string)))
    }

    fn line(&mut self, fields: impl Iterator<Item = String>) -> Result<(), Failure> {
        let line = fields.collect::<Vec<_>>().join(",");
        writeln!(self.file, "{line}").map_err(|error| format!("{}: {error}", self.path.display()).into())
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| format!("{}: {error}", self.path.display()).into())
    }
}

/// Quotes a field if it contains a separator of fields or lines.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

/// The labels of an image that may have several, each with its probability.
fn reached(prediction: &Prediction, labels: &[String]) -> String {
    let of = |&class: &u32| format!("{} {:.4}", labels[class as usize], prediction.probabilities[class as usize]);
    let all: Vec<String> = prediction.classes.iter().map(of).collect();
    if all.is_empty() { "no label".into() } else { all.join(" ") }
}
