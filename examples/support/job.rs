//! Fine-tuning on a folder of images, as several examples do it: the options, and what comes of them.

use crate::run::{self, Failure};
use candle_finetune::{
    Augment, Backbone, Dataset, Error, FineTuner, Fitted, FreezePolicy, Head, ImageFolder, Source, Splits, Strategy,
};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What to train on, how, and where to put it.
#[derive(Args)]
pub struct Job {
    /// The folder of images: CLASS/*, or {train,valid,test}/CLASS/*.
    #[arg(long)]
    data: PathBuf,
    /// small-similar, small-different, large-similar or large-different.
    #[arg(long)]
    strategy: Option<Strategy>,
    /// Freezes so many blocks, or up to this stage or block ("layer2"), in the last phase.
    #[arg(long)]
    freeze: Option<String>,
    /// Epochs of the last phase.
    #[arg(long)]
    epochs: Option<usize>,
    /// Samples per step.
    #[arg(long)]
    batch_size: Option<usize>,
    /// The head's learning rate in the last phase; the backbone keeps its share of it.
    #[arg(long)]
    lr: Option<f64>,
    /// Height and width of the network's input in pixels.
    #[arg(long)]
    image_size: Option<usize>,
    /// How training images are varied.
    #[arg(long)]
    augment: Option<Variation>,
    /// Hidden numbers of a head of two layers.
    #[arg(long)]
    hidden: Option<usize>,
    /// The seed of all chance.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// cpu, cuda[:N] or metal[:N].
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Leaves out images that cannot be read instead of stopping; the report counts those of train and valid.
    #[arg(long)]
    skip_broken: bool,
    /// Where to save the predictor.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Variation {
    None,
    Light,
    Standard,
    Strong,
}

/// Trains by the options, prints the report and, last, the accuracy. `default`: the strategy where none is named.
pub fn finetune(options: &Job, source: Source, default: Option<Strategy>) -> Result<Fitted, Failure> {
    // What cannot be written is better known before the training than after.
    for file in [&options.out, &options.report].into_iter().flatten() {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(format!("{}: there is no folder {}", file.display(), folder.display()).into());
        }
    }
    let mut backbone = Backbone::load(source, &run::device(&options.device)?)?;
    if let Some(size) = options.image_size {
        backbone = backbone.input_size(size, size)?;
    }
    let Splits { mut train, mut valid, mut test, .. } = ImageFolder::splits(&options.data, options.seed)?;
    if options.skip_broken {
        train = train.skip_broken()?;
        valid = valid.skip_broken()?;
        test = test.map(ImageFolder::skip_broken).transpose()?;
        if let Some(left_out) = test.as_ref().map(|test| test.skipped().len()).filter(|&n| n > 0) {
            eprintln!("{left_out} broken images of test are left out");
        }
    } else {
        train.check()?;
        valid.check()?;
        if let Some(test) = &test {
            test.check()?;
        }
    }

    let strategy = options.strategy.or(default).ok_or(Error::NoStrategy)?;
    let mut plan = strategy.plan(&backbone, train.len());
    if let Some(augment) = options.augment {
        plan.augment = match augment {
            Variation::None => Augment::none(),
            Variation::Light => Augment::light(),
            Variation::Standard => Augment::standard(),
            Variation::Strong => Augment::strong(),
        };
        plan.phases.iter_mut().for_each(|phase| phase.augment = true);
    }
    if let Some(phase) = plan.phases.last_mut() {
        if let Some(freeze) = &options.freeze {
            phase.freeze = freeze.parse().map_or_else(|_| FreezePolicy::UpTo(freeze.clone()), FreezePolicy::First);
        }
        if let Some(epochs) = options.epochs {
            phase.epochs = epochs;
        }
        if let Some(lr) = options.lr {
            phase.optimizer.lr = lr;
        }
    }
    if let Some(batch_size) = options.batch_size {
        plan.batch_size = batch_size;
    }
    let head = options.hidden.map_or_else(Head::linear, Head::mlp);
    let tuner = FineTuner::new(backbone).strategy(strategy).plan(plan).head(head).seed(options.seed);
    let mut tuned = tuner.on_event(run::progress()).fit(&train, &valid)?;

    let evaluation = tuned.test(test.as_ref().unwrap_or(&valid))?;
    print!("{}", tuned.report);
    if let Some(path) = &options.out {
        tuned.predictor.save(path)?;
    }
    if let Some(path) = &options.report {
        std::fs::write(path, tuned.report.to_json()?).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    println!("{evaluation}");
    Ok(tuned)
}
