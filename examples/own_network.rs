//! A network of your own: a small CNN made of the crate's layers, pretrained on some classes and fine-tuned on others.
//!
//! ```text
//! cargo run --release --example own_network
//! ```
//!
//! The images are those of assets/fashion. Five classes, with all their images, pretrain the network; the other five
//! have 5 images each for training, 10 for validation and 50 for the test. So few images are not enough for a network
//! with random weights; pretraining on similar images makes up for some of them. Prints all reports, and last the test
//! accuracies from scratch and fine-tuned, after equally many epochs: `scratch top1 0.5960 149/250` and `top1 0.6840 171/250`.

#[path = "support/run.rs"]
mod run;

use candle_finetune::candle_core::Device;
use candle_finetune::{
    Augment, Backbone, Block, Blueprint, Conv2d, Dataset, FineTuner, Fitted, FreezePolicy, ImageFolder, Init,
    InputSpec, Layer, Optimizer, Phase, Plan, Predictor, Sample, Schedule, Splits, Subset, Target, VecDataset,
};
use clap::Parser;
use run::Failure;
use std::path::Path;
use std::process::ExitCode;

/// Pretrains a small CNN of your own on five classes of the crate's images and fine-tunes it on the other five.
#[derive(Parser)]
struct Options {
    /// Random seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Passes over the images that pretrain the network
    #[arg(long, default_value_t = 40)]
    pretrain_epochs: usize,
}

/// The classes that the network is fine-tuned on; the others pretrain it.
const NEW: [&str; 5] = ["bag", "boot", "coat", "dress", "shirt"];

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| own_network(&options))
}

/// Five convolutions for gray images of 28 x 28 pixels; two of them halve the size.
fn small_cnn() -> candle_finetune::Result<Blueprint> {
    let spec = InputSpec::new(28).crop_pct(1.0).normalize(&[0.5], &[0.5]);
    let conv = |inputs, outputs| Conv2d::new(inputs, outputs, 3).relu();
    let pair =
        |inputs, outputs| Layer::sequential([conv(inputs, outputs).stride(2).into(), conv(outputs, outputs).into()]);
    let blocks =
        vec![Block::new("stem", conv(1, 16)), Block::new("block1", pair(16, 32)), Block::new("block2", pair(32, 64))];
    Blueprint::from_blocks("small_cnn", spec, 64, blocks)
}

fn own_network(options: &Options) -> Result<(), Failure> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/fashion");
    let Splits { train, valid, test, .. } = ImageFolder::splits(&folder, 0)?;
    let test = test.ok_or("assets/fashion has no test folder")?;
    let (device, blueprint) = (Device::Cpu, small_cnn()?);

    // Pretraining: every image of the classes that are not new.
    let old = |class: &str| !NEW.contains(&class);
    let pretraining = of_classes(&[&train, &test], old)?;
    let backbone = Backbone::random(&blueprint, options.seed, &device)?;
    let plan = from_scratch(options.pretrain_epochs);
    let pretrained = fit(options, backbone.clone(), plan, &pretraining, &of_classes(&[&valid], old)?)?;
    let file = std::env::temp_dir().join(format!("own-network-{}.safetensors", std::process::id()));
    pretrained.predictor.save(&file)?;
    println!("{}", pretrained.report);

    // The file holds weights and the head; the network itself is this program's.
    let predictor = Predictor::from_file_as(&file, &blueprint, &device);
    std::fs::remove_file(&file)?;
    let pretrained = predictor?.backbone().clone();

    let new = |class: &str| NEW.contains(&class);
    let (train, valid, test) = (of_classes(&[&train], new)?, of_classes(&[&valid], new)?, of_classes(&[&test], new)?);
    let train = Subset::new(&train, (0..train.len()).filter(|i| i % 10 < 5).collect())?; // 5 of each class's 10
    let head = Phase::new(20, Optimizer::adamw(1e-2)).freeze(FreezePolicy::Backbone).augmented(false);
    let rest = Phase::new(40, Optimizer::adamw(3e-3).weight_decay(0.05))
        .freeze(FreezePolicy::UpTo("block1".into()))
        .backbone_lr_scale(0.3)
        .schedule(Schedule::cosine());
    let tuned = Plan::new(vec![head, rest]).batch_size(10).augment(augment());
    let mut tuned = fit(options, pretrained, tuned, &train, &valid)?;
    let top1 = tuned.test(&test)?;
    println!("{}", tuned.report);

    // The same network with random weights, on the same images.
    let mut scratch = fit(options, backbone, from_scratch(60).batch_size(10), &train, &valid)?;
    let scratch_top1 = scratch.test(&test)?;
    println!("from scratch: {}", run::interval(&scratch_top1));
    println!("fine-tuned: {}", run::interval(&top1));
    println!("scratch {scratch_top1}");
    println!("{top1}");
    Ok(())
}

/// Everything is trained.
fn from_scratch(epochs: usize) -> Plan {
    let phase = Phase::new(epochs, Optimizer::adamw(1e-3).weight_decay(0.05)).schedule(Schedule::cosine());
    Plan::new(vec![phase]).init(Init::Random).batch_size(25).augment(augment())
}

fn augment() -> Augment {
    Augment::none().pad_crop(2).flip(0.5)
}

fn fit(
    options: &Options,
    backbone: Backbone,
    plan: Plan,
    train: &(impl Dataset + Clone + 'static),
    valid: &VecDataset,
) -> Result<Fitted, Failure> {
    let tuner = FineTuner::new(backbone).plan(plan).seed(options.seed).on_event(run::progress());
    Ok(tuner.fit(train, valid)?)
}

/// The images of some classes of several folders.
fn of_classes(parts: &[&ImageFolder], wanted: impl Fn(&str) -> bool) -> Result<VecDataset, Failure> {
    let all = parts.first().map(Dataset::classes).unwrap_or_default();
    let classes: Vec<String> = all.iter().filter(|class| wanted(class)).cloned().collect();
    let mut images = vec![];
    for part in parts {
        for i in 0..part.len() {
            let Target::Class(class) = part.info(i).target else { continue };
            let name = &part.classes()[class as usize];
            let Some(class) = classes.iter().position(|known| known == name) else { continue };
            if let Sample::Image(image) = part.sample(i)? {
                images.push((image, class as u32));
            }
        }
    }
    Ok(VecDataset::new(images, classes)?)
}
