//! Repeats the step at which a run has become infinite or NaN, and tells what its samples do.
//!
//! ```text
//! cargo run --release --example replay_step -- --run-dir RUN --data DIR --embedded
//! ```
//!
//! A run with --run-dir that diverges keeps the state before the step in RUN/failed. Give the data and the weights of that
//! run. Prints the largest logit and the loss of each sample of the first batch, the largest gradients, and last the error
//! of the step, or `the step is finite` if it is not repeated.

#[path = "support/data.rs"]
mod data;
#[path = "support/folders.rs"]
mod folders;
#[path = "support/run.rs"]
mod run;

use candle_finetune::candle_core::{DType, Device, Tensor};
use candle_finetune::{
    Arch, Backbone, Batch, Dataset, Error, FineTuner, ImageFolder, RunState, Session, Source, Targets,
};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Repeats the step at which a run has become infinite or NaN
#[derive(Parser)]
struct Options {
    /// Folder of the run
    #[arg(long)]
    run_dir: PathBuf,
    /// The images that the run was trained on
    #[command(flatten)]
    data: data::Data,
    /// File of pretrained weights that the run began with
    #[arg(long, conflicts_with = "embedded", required_unless_present = "embedded")]
    weights: Option<PathBuf>,
    /// Architecture of the weights
    #[arg(long)]
    arch: Option<Arch>,
    /// Use the small backbone that comes with the crate
    #[arg(long)]
    embedded: bool,
}

/// How many gradients are listed.
const SHOWN: usize = 10;

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| replay(&options))
}

fn replay(options: &Options) -> Result<(), run::Failure> {
    let state = RunState::from_file(options.run_dir.join("failed/state.safetensors"))?;
    let source = options.weights.as_ref().map_or_else(Source::embedded, Source::file);
    let source = options.arch.into_iter().fold(source, Source::arch);
    let (height, width) = state.report().input_size;
    let backbone = Backbone::load(source, &Device::Cpu)?.for_input_size(height, width)?;
    let report = state.report().clone();
    let train = options.data.splits(report.seed)?.train;
    let tuner = FineTuner::new(backbone).plan(report.plan).head(state.head()).seed(report.seed).metric(report.metric);
    let tuner = tuner.resume(&state);
    let (mut session, batch) = at_the_step(&tuner, &train)?;
    println!("step {} at learning rate {:.2e}", state.steps() + 1, session.lr().unwrap_or(f64::NAN));

    // In evaluation mode nothing changes.
    let logits = session.logits(&batch)?.to_dtype(DType::F64)?;
    println!("{:>12} {:>12}  sample", "loss", "max logit");
    for (k, &i) in batch.indices.iter().enumerate() {
        let row = logits.narrow(0, k, 1)?;
        let most = row.abs()?.max(1)?.to_vec1::<f64>()?[0];
        let loss = session.loss(&row, &one(&batch.targets, k)?)?.to_scalar::<f64>()?;
        println!("{loss:>12.4e} {most:>12.4e}  {}", train.info(i));
    }

    let logits = session.forward(&batch)?;
    let loss = session.loss(&logits, &batch.targets)?;
    let mut norms: Vec<(f64, String)> = session
        .gradients(&loss.backward()?)?
        .into_iter()
        .map(|(name, gradient)| Ok((gradient.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt(), name)))
        .collect::<Result<_, Error>>()?;
    // What is no number comes first.
    norms.sort_by(|a, b| b.0.is_nan().cmp(&a.0.is_nan()).then(b.0.total_cmp(&a.0)));
    println!("{:>12}  gradient of (the {SHOWN} largest)", "norm");
    norms.iter().take(SHOWN).for_each(|(norm, name)| println!("{norm:>12.4e}  {name}"));

    // From the state again: the forward pass has moved running statistics. A step may have several batches.
    let (mut session, batch) = at_the_step(&tuner, &train)?;
    let mut next = Some(batch);
    while let Some(batch) = next {
        match session.step(&batch) {
            Ok(loss) => println!("a batch is finite, with the loss {loss:.4}"),
            Err(error) => {
                println!("{error}");
                return Ok(());
            }
        }
        next = if session.waits() { session.next_batch()? } else { None };
    }
    println!("the step is finite");
    Ok(())
}

/// A session before the step, and the step's batch.
fn at_the_step(tuner: &FineTuner, train: &ImageFolder) -> Result<(Session, Batch), run::Failure> {
    let mut session = tuner.clone().session(train)?;
    session.next_phase()?;
    session.next_epoch()?;
    let Some(batch) = session.next_batch()? else { return Err("the state is at the end of an epoch".into()) };
    Ok((session, batch))
}

/// The target of one sample.
fn one(targets: &Targets, k: usize) -> Result<Targets, Error> {
    let row = |rows: &Tensor| rows.narrow(0, k, 1);
    Ok(match targets {
        Targets::Classes(ids) => Targets::Classes(vec![ids[k]]),
        Targets::Soft(rows) => Targets::Soft(row(rows)?),
        Targets::Labels(rows) => Targets::Labels(row(rows)?),
        other => return Err(Error::from(candle_finetune::candle_core::Error::Msg(format!("targets {other:?}")))),
    })
}
