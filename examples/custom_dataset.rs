//! Trains on a custom dataset: a type that implements `Dataset` and draws its images in code.
//!
//! ```text
//! cargo run --release --example custom_dataset
//! cargo run --release --example custom_dataset -- --samples 2000 --epochs 10
//! ```
//!
//! A dataset names its classes and returns sample i with its target. The samples may come from anywhere: files, a
//! database, or code, as here. Several threads read samples at once, so a sample should depend on its index alone.
//! Prints the report as a table and, last, the accuracy on shapes that were not in training: `top1 0.9950 199/200`.

#[path = "support/run.rs"]
mod run;
#[path = "support/small.rs"]
mod small;

use candle_finetune::candle_core::Device;
use candle_finetune::{Dataset, FineTuner, Image, Result, Sample, SampleInfo, Strategy, Target, split};
use clap::Parser;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use run::Failure;
use std::process::ExitCode;
use std::sync::Arc;

/// Trains on shapes that are drawn in code
#[derive(Parser)]
struct Options {
    /// Shapes to train and validate on
    #[arg(long, default_value_t = 400)]
    samples: usize,
    /// Epochs of training from scratch, which suits shapes: they do not resemble photos
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

const SIDE: usize = 32;
const SHAPES: [&str; 4] = ["circle", "cross", "square", "triangle"];

/// Shapes of random place, size and colour on noise. Nothing is stored: sample i is drawn on request.
#[derive(Clone)]
struct Shapes {
    count: usize,
    seed: u64,
    classes: Arc<[String]>,
}

impl Shapes {
    fn new(count: usize, seed: u64) -> Self {
        Self { count, seed, classes: SHAPES.map(String::from).into() }
    }
}

impl Dataset for Shapes {
    fn len(&self) -> usize {
        self.count
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, Target::Class((i % SHAPES.len()) as u32))
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(i as u64);
        let mut bytes: Vec<u8> = (0..SIDE * SIDE * 3).map(|_| rng.random_range(0..96)).collect();
        let colour = [0; 3].map(|_: u8| rng.random_range(128..=255));
        let radius = rng.random_range(5.0..11.0);
        let mut place = || rng.random_range(radius..SIDE as f32 - radius);
        let (x, y) = (place(), place());
        for (pixel, rgb) in bytes.chunks_exact_mut(3).enumerate() {
            // Distance from the shape's centre, in radii.
            let across = ((pixel % SIDE) as f32 - x) / radius;
            let down = ((pixel / SIDE) as f32 - y) / radius;
            if covers(SHAPES[i % SHAPES.len()], across, down) {
                rgb.copy_from_slice(&colour);
            }
        }
        Ok(Sample::Image(Image::from_rgb8(SIDE, SIDE, bytes)?))
    }
}

/// Whether the shape of radius 1 around (0, 0) covers the point.
fn covers(shape: &str, x: f32, y: f32) -> bool {
    match shape {
        "circle" => x.hypot(y) <= 1.0,
        "cross" => x.abs().max(y.abs()) <= 1.0 && x.abs().min(y.abs()) <= 0.3,
        "square" => x.abs().max(y.abs()) <= 0.85,
        _ => (-1.0..=1.0).contains(&y) && 2.0 * x.abs() <= y + 1.0,
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| train(&options))
}

fn train(options: &Options) -> std::result::Result<(), Failure> {
    let backbone = small::backbone(&Device::Cpu)?;
    // The split is stratified: the validation part has every class in proportion.
    let (train, valid) = split(&Shapes::new(options.samples, options.seed), 0.15, options.seed)?;
    let test = Shapes::new(200, options.seed.wrapping_add(1));

    let mut plan = Strategy::LargeDifferent.plan(&backbone, train.len());
    plan.phases[0].epochs = options.epochs;
    let tuned = FineTuner::new(backbone).plan(plan).seed(options.seed).on_event(run::progress()).fit(&train, &valid)?;
    print!("{}", tuned.report);
    let evaluation = tuned.predictor.evaluate(&test)?;
    println!("{}\n{evaluation}", run::interval(&evaluation));
    Ok(())
}
