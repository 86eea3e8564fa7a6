//! Cross-validates a fine-tuning: trains once per fold without it, and predicts the fold.
//!
//! ```text
//! cargo run --release --example cross_validate -- --data DIR --arch resnet18 --weights resnet18.safetensors --folds 5
//! ```
//!
//! DIR holds CLASS/*.jpg, or train/, valid/ and test/ with such folders, or is a table (CSV) as for `finetune`; the
//! training and validation images together are split into folds, which split no group of a table. Without --strategy each
//! fold measures its images and chooses one. Prints each fold, the accuracy over all predictions with its 95 % interval, and
//! how many features were computed and reused; with --json the same as JSON. With --out it then trains on all of the
//! images, for as many steps as were best, and saves the predictor.

#[path = "support/choice.rs"]
mod choice;
#[path = "support/data.rs"]
mod data;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/pretrained.rs"]
mod pretrained;
#[path = "support/run.rs"]
mod run;

use candle_finetune::{Dataset, Event, FineTuner, Folds, Joined, progress_lines};
use choice::Choice;
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Cross-validates a fine-tuning
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    data: data::Data,
    #[command(flatten)]
    backbone: pretrained::Pretrained,
    /// Strategy by name, or auto, which lets each fold choose
    #[arg(long, default_value = "auto")]
    strategy: Choice,
    /// Number of folds
    #[arg(long, default_value_t = 5)]
    folds: usize,
    /// How often the images are split into folds
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    /// Epochs of the last phase
    #[arg(long)]
    epochs: Option<usize>,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to save a predictor to, trained on all images
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| cross_validate(&options))
}

fn cross_validate(options: &Options) -> Result<(), Failure> {
    if let Some(out) = &options.out {
        run::check_outputs(&[out], options.backbone.file().as_slice())?;
    }
    let backbone = options.backbone.load()?;
    let splits = options.data.splits(options.seed)?;
    let data = Joined::new(&splits.train, &splits.valid)?;
    let mut tuner = FineTuner::new(backbone.clone()).seed(options.seed);
    if let Choice::Named(strategy) = options.strategy {
        tuner = tuner.strategy(strategy);
        if let Some(epochs) = options.epochs {
            let mut plan = strategy.plan(&backbone, data.len());
            plan.phases.iter_mut().last().into_iter().for_each(|phase| phase.epochs = epochs);
            tuner = tuner.plan(plan);
        }
    } else if options.epochs.is_some() {
        return Err("--epochs needs a --strategy: each fold chooses its own plan".into());
    }
    if !options.json {
        println!("{backbone:?}\n{splits}\n");
        // The epochs of every fold would be pages.
        let mut lines = progress_lines(std::io::stderr());
        tuner = tuner.on_event(move |event| {
            if matches!(event, Event::Fold { .. }) {
                lines(event);
            }
        });
    }
    let validation = tuner.clone().cross_validate(&data, Folds::new(options.folds).repeats(options.repeats))?;
    println!("{}", if options.json { validation.to_json()? } else { validation.to_string() });
    if let Some(out) = &options.out {
        let tuned = validation.refit(tuner, &data)?;
        tuned.predictor.save(out)?;
        if !options.json {
            println!("\n{}  predictor saved: {}", tuned.report, out.display());
        }
    }
    Ok(())
}
