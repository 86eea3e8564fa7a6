//! Trains with a custom training loop and a custom loss: the focal loss, built from Candle operations.
//!
//! ```text
//! cargo run --release --example custom_loop
//! cargo run --release --example custom_loop -- --data DIR --gamma 2 --epochs 8
//! ```
//!
//! The session handles the error-prone parts: which tensors are trained, the optimizer, the order of samples, phases,
//! the best epoch. The loop has the loss, the log and the decision when to stop. Prints a line per epoch and, last, the
//! accuracy on the test images: `top1 0.5320 266/500`.

#[path = "support/folders.rs"]
mod folders;
#[path = "support/run.rs"]
mod run;
#[path = "support/small.rs"]
mod small;

use candle_finetune::candle_core::{self, Device, Tensor};
use candle_finetune::{Augment, BatchNormMode, FineTuner, FreezePolicy, Optimizer, Phase, Plan, Schedule, Splits};
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Trains with a custom training loop and the focal loss
#[derive(Parser)]
struct Options {
    /// Folder of images: {train,valid,test}/CLASS/*; by default the images that come with the crate
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    folders: folders::Folders,
    /// How strongly easy samples are down-weighted; 0 is plain cross entropy
    #[arg(long, default_value_t = 2.0)]
    gamma: f64,
    /// Epochs of the second phase
    #[arg(long, default_value_t = 8)]
    epochs: usize,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| train(&options))
}

fn train(options: &Options) -> Result<(), Failure> {
    let folder = options.data.clone().unwrap_or_else(small::images);
    let splits = options.folders.options().splits(folder, options.seed)?;
    println!("{splits}");
    let Splits { train, valid, test, .. } = splits;
    let tuner = FineTuner::new(small::backbone(&Device::Cpu)?).plan(plan(options.epochs)).seed(options.seed);
    let mut session = tuner.session(&train)?;

    while session.next_phase()? {
        while session.next_epoch()? {
            let (mut sum, mut steps) = (0.0, 0);
            while let Some(batch) = session.next_batch()? {
                let logits = session.forward(&batch)?; // a Candle tensor with a graph
                let loss = focal_loss(&logits, &batch.targets.classes()?, options.gamma)?;
                sum += session.backward_step(&loss)?;
                steps += 1;
            }
            let valid = session.evaluate(&valid)?;
            println!("steps {steps:3}  loss {:.4}  valid top1 {:.4}", sum / f64::from(steps), valid.top1());
            session.end_epoch(&valid)?; // keeps the weights of the best epoch
        }
    }
    session.restore_best()?;
    let tuned = session.finish()?;
    let evaluation = tuned.predictor.evaluate(&test.unwrap_or(valid))?;
    println!("{}\n{evaluation}", run::interval(&evaluation));
    Ok(())
}

/// Trains the head alone, then the head and the last five blocks, at a tenth of the head's rate.
fn plan(epochs: usize) -> Plan {
    let mut head = Phase::new(20, Optimizer::adamw(1e-2));
    head.freeze = FreezePolicy::Backbone;
    let mut later = Phase::new(epochs, Optimizer::adamw(2e-3));
    later.freeze = FreezePolicy::AllBut(5);
    later.batch_norm = BatchNormMode::FrozenStats;
    later.backbone_lr_scale = 0.1;
    later.schedule = Schedule::cosine().warmup(0.1);
    let mut plan = Plan::new(vec![head, later]);
    plan.augment = Augment::none().pad_crop(2);
    plan.views = Some(4); // the frozen part is computed for four views, not in every epoch
    plan
}

/// The mean of -(1 - p)^gamma log p, where p is the probability of the right class (Lin et al. 2017, arXiv 1708.02002).
///
/// Takes logits (N, classes) and N class ids, and returns a scalar.
fn focal_loss(logits: &Tensor, classes: &[u32], gamma: f64) -> candle_core::Result<Tensor> {
    let classes = Tensor::new(classes, logits.device())?.unsqueeze(1)?;
    let log_p = candle_nn::ops::log_softmax(logits, 1)?.gather(&classes, 1)?;
    if gamma == 0.0 {
        return log_p.mean_all()?.neg();
    }
    // Rounding must not make it negative: the power would be NaN.
    let missing = log_p.exp()?.affine(-1.0, 1.0)?.clamp(1e-6, 1.0)?;
    (missing.powf(gamma)? * log_p)?.mean_all()?.neg()
}
