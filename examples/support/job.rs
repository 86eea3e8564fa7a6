//! Fine-tuning on a folder of images, as several examples do it: the options, the training, the results.

use crate::choice::Choice;
use crate::data::Data;
use crate::logs::{Log, logged};
use crate::regularise::Regularise;
use crate::run::{self, Failure};
#[cfg(feature = "plots")]
use candle_finetune::ReportPage;
use candle_finetune::candle_core;
use candle_finetune::{
    Advisor, Augment, Backbone, Dataset, FeatureCache, FineTuner, Fitted, FreezePolicy, Head, ImageFolder, LrRange,
    Metric, Plan, Recipe, RunState, Schedule, Source, Splits,
};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// The data, the training, and the outputs.
#[derive(Args)]
#[allow(clippy::struct_excessive_bools)] // each is an option of the command line
pub struct Job {
    #[command(flatten)]
    data: Data,
    /// Strategy: small-similar, small-different, large-similar, large-different, intermediate, probe-then-tune, or
    /// auto, which measures the images
    #[arg(long, default_value = "auto")]
    strategy: Choice,
    /// Follow a known recipe instead: fastai-fine-tune, keras-two-steps, lp-ft, timm-layer-decay or gradual-unfreezing
    #[arg(long, conflicts_with_all = ["strategy", "trial"])]
    recipe: Option<Recipe>,
    /// Follow the plan in this file (JSON, as a report has it) instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["strategy", "trial", "recipe"])]
    plan: Option<PathBuf>,
    /// Compare the advised strategy with its rivals in short trainings
    #[arg(long)]
    trial: bool,
    /// Blocks to freeze in the last phase: a count, or the last stage or block ("layer2")
    #[arg(long)]
    freeze: Option<String>,
    /// Epochs of the last phase
    #[arg(long)]
    epochs: Option<usize>,
    /// Samples per batch
    #[arg(long)]
    batch_size: Option<usize>,
    /// Learning rate of the head in the last phase; the backbone's rate scales with it
    #[arg(long)]
    lr: Option<f64>,
    /// Learning rate over the steps of the last phase: constant, cosine, linear, step, one-cycle or plateau
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Metric of the validation images that chooses the best epoch: top1, macro_f1, balanced_accuracy, loss ...
    #[arg(long)]
    metric: Option<Metric>,
    /// Divide the logits by the temperature that fits the validation images best, so that probabilities are calibrated
    #[arg(long, conflicts_with = "refit")]
    calibrate: bool,
    /// Print the loss by the learning rate of the last phase, with suggestions, and save nothing
    #[arg(long, conflicts_with_all = ["run_dir", "out", "report", "refit", "calibrate", "metric", "table", "log", "tensorboard"])]
    find_lr: bool,
    /// Height and width of the network's input in pixels
    #[arg(long)]
    image_size: Option<usize>,
    /// Augmentation of the training images
    #[arg(long)]
    augment: Option<Augmentation>,
    /// Hidden units of a two-layer head
    #[arg(long)]
    hidden: Option<usize>,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Train once more at the end, on training and validation images together
    #[arg(long)]
    refit: bool,
    /// Device: cpu, cuda[:N] or metal[:N]
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print parts, classes, plan and memory, and train nothing
    #[arg(long)]
    dry_run: bool,
    /// Print a row per epoch and the parameters of each stage at the end
    #[arg(long)]
    table: bool,
    /// File to save the predictor to
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder that keeps the run: the same command goes on there after an interruption (Ctrl-C ends it after a step)
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// File to log the run to: .csv gets a row per epoch, .jsonl or .ndjson a JSON object per event. A run that goes on
    /// (--run-dir) is appended
    #[arg(long, value_name = "FILE")]
    log: Option<Log>,
    /// Folder to write scalars for TensorBoard to
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// File to write the report to, as JSON
    #[arg(long)]
    report: Option<PathBuf>,
    /// File to write the report to, as a page with the most confident mistakes on test/ (without it, the validation
    /// images)
    #[cfg(feature = "plots")]
    #[arg(long, value_name = "FILE", conflicts_with = "find_lr")]
    html: Option<PathBuf>,
    /// File to draw the loss by the learning rate to, as PNG
    #[cfg(feature = "plots")]
    #[arg(long, value_name = "FILE", requires = "find_lr")]
    plot: Option<PathBuf>,
    // The last one, since its heading is that of all that follows.
    #[command(flatten)]
    regularise: Regularise,
}

/// How many mistakes are on the page.
#[cfg(feature = "plots")]
const MISTAKES_SHOWN: usize = 24;

/// How many skipped images are listed; all are counted.
const SKIPPED_SHOWN: usize = 10;

#[derive(Clone, Copy, ValueEnum)]
enum Augmentation {
    None,
    Light,
    Standard,
    Strong,
}

impl Job {
    /// The files that are asked for, each with what it is.
    fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let outputs = [
            ("predictor", self.out.as_ref()),
            ("report", self.report.as_ref()),
            ("log", self.log.as_ref().map(Log::path)),
            #[cfg(feature = "plots")]
            ("page", self.html.as_ref()),
            #[cfg(feature = "plots")]
            ("plot", self.plot.as_ref()),
        ];
        outputs.into_iter().filter_map(|(what, path)| Some((what, path?.as_path())))
    }
}

/// Trains by the options, prints the summary, saves the results and returns them with the last line to print: the
/// accuracy. Returns `None` after a dry run. `weights` is the file of weights, if they come from one. `before` is a
/// further check, after all others and before the training.
pub fn finetune(
    options: &Job,
    (source, weights): (Source, Option<&Path>),
    before: impl FnOnce() -> Result<(), Failure>,
) -> Result<Option<(Fitted, String)>, Failure> {
    let outputs: Vec<&Path> = options.outputs().map(|(_, path)| path).collect();
    let inputs: Vec<&Path> =
        weights.into_iter().chain(options.plan.as_deref()).chain(options.data.table_file()).collect();
    run::check_outputs(&outputs, &inputs)?;
    let mut backbone = Backbone::load(source, &run::device(&options.device)?)?;
    if let Some(size) = options.image_size {
        backbone = backbone.for_input_size(size, size)?;
    }
    if let Some(out) = &options.out {
        let size = |t: &candle_core::Tensor| t.elem_count() * t.dtype().size_in_bytes();
        run::check_writable(out, backbone.tensors().values().map(size).sum())?;
    }
    println!("{backbone:?}");
    if let Some(classes) = backbone.num_classes() {
        println!("a new head replaces its classifier of {classes} classes");
    }
    let splits = open(options)?;
    let Splits { train, valid, test, .. } = &splits;
    let head = options.hidden.map_or_else(Head::linear, Head::mlp);
    let head = options.regularise.dropout.into_iter().fold(head, Head::dropout);
    let cache = FeatureCache::new();
    let given = match given_plan(options, &backbone)? {
        // What was advised when the run began.
        None if matches!(options.strategy, Choice::Auto) => plan_of_run(options, train)?,
        given => given,
    };
    let advisor = Advisor::new(&backbone).head(head).seed(options.seed).cache(&cache).valid(valid.len());
    let advice = match (options.strategy, options.trial) {
        _ if given.is_some() => None,
        (Choice::Auto, false) => Some(advisor.advise(train)?),
        (Choice::Auto, true) => Some(advisor.trial(train, valid)?),
        (Choice::Named(strategy), true) => {
            return Err(format!("--trial has no effect: --strategy {strategy} is set").into());
        }
        (Choice::Named(_), false) => None,
    };
    drop(advisor);
    let (name, plan) = match (given, &advice, options.strategy) {
        (Some((name, plan)), ..) => (name, plan),
        (None, None, Choice::Named(strategy)) => (strategy.to_string(), strategy.plan(&backbone, train.len())),
        (None, Some(advice), _) => {
            println!("{advice}");
            (advice.strategy.to_string(), advice.plan.clone())
        }
        (None, None, Choice::Auto) => return Err("no advice".into()),
    };
    let plan = edited(options, plan)?;
    if options.dry_run {
        print!("{name}\n{plan}");
        for warning in plan.warnings(&backbone) {
            println!("warning: {warning}");
        }
        println!("peak memory of a step: {}", plan.forecast(&backbone, head, train.classes().len())?);
        return Ok(None);
    }
    before()?;
    if options.find_lr {
        let tuner = FineTuner::new(backbone).plan(plan).head(head).seed(options.seed).cache(&cache);
        let curve = tuner.find_lr(train, LrRange::default())?;
        print!("{curve}");
        #[cfg(feature = "plots")]
        if let Some(path) = &options.plot {
            curve.draw()?.save_png(path)?;
        }
        return Ok(None);
    }
    let tuner = FineTuner::new(backbone).plan(plan).head(head).seed(options.seed).cache(&cache).refit(options.refit);
    let tuner = advice.iter().fold(tuner, FineTuner::advice);
    drop(cache); // the tuner's is the last handle, so that it drops features when they have served
    let tuner = options.run_dir.iter().fold(tuner, FineTuner::run_dir);
    let tuner = options.metric.into_iter().fold(tuner, FineTuner::metric);
    let tuner = logged((options.log.as_ref(), options.tensorboard.as_deref()), options.run_dir.as_deref(), tuner)?;
    let cancel = run::cancelled_by_ctrl_c()?;
    let mut tuned = tuner.cancel(&cancel).on_event(run::progress()).fit(train, valid)?;
    if cancel.is_cancelled() {
        print!("{}", tuned.report);
        if let Some(folder) = &options.run_dir {
            return Err(format!("interrupted; the same command goes on with the run in {}", folder.display()).into());
        }
        if tuned.report.best_epoch.is_none() {
            return Err("interrupted before the first validation".into());
        }
    }

    if options.calibrate {
        match tuned.predictor.calibrated(valid) {
            Ok((predictor, temperature)) => {
                println!("logits divided by the temperature {temperature:.3}");
                tuned.report.thresholds = predictor.thresholds();
                tuned.predictor = predictor;
                if let (Some(folder), None) = (&options.run_dir, &options.out) {
                    println!("the predictor in {} is not calibrated; --out saves this one", folder.display());
                }
            }
            // The training is worth saving anyway.
            Err(error) => println!("not calibrated: {error}"),
        }
    }
    // Save the result before anything else can fail, and again with the accuracy on test data.
    save(options, &tuned)?;
    let accuracy = match test {
        Some(test) => {
            let evaluation = tuned.test(test)?;
            save(options, &tuned)?;
            evaluation.to_string()
        }
        None => tuned.report.valid.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    #[cfg(feature = "plots")]
    if let Some(path) = &options.html {
        page(&tuned, test.as_ref().unwrap_or(valid)).save(path)?;
    }
    println!();
    if options.table {
        println!("{}", tuned.report.table());
    }
    print!("{}", tuned.report);
    for (what, path) in options.outputs() {
        println!("  {what} saved: {}", path.display());
    }
    // The caller prints the accuracy last.
    let accuracy = format!("accuracy on {} data:\n{accuracy}", if test.is_some() { "test" } else { "validation" });
    Ok(Some((tuned, accuracy)))
}

fn save(options: &Job, tuned: &Fitted) -> Result<(), Failure> {
    if let Some(path) = &options.out {
        tuned.predictor.save(path)?;
    }
    if let Some(path) = &options.report {
        std::fs::write(path, tuned.report.to_json()?).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The page of the run, with the mistakes on this data.
#[cfg(feature = "plots")]
fn page(tuned: &Fitted, data: &ImageFolder) -> ReportPage {
    let page = ReportPage::new(&tuned.report);
    page.clone().mistakes(&tuned.predictor, data, MISTAKES_SHOWN).unwrap_or_else(|error| {
        // The figures are worth a page anyway.
        println!("no mistakes on the page: {error}");
        page
    })
}

/// Opens the parts, reads every image once, and prints what was found.
fn open(options: &Job) -> Result<Splits, Failure> {
    let splits = options.data.splits(options.seed)?;
    println!("{splits}");
    let parts = [Some(&splits.train), Some(&splits.valid), splits.test.as_ref()];
    let skipped = parts.into_iter().flatten().flat_map(ImageFolder::skipped);
    for (file, problem) in skipped.take(SKIPPED_SHOWN) {
        println!("skipped: {}: {problem}", file.display());
    }
    if !options.data.folders.skip_broken {
        for part in parts.into_iter().flatten() {
            part.check()?;
        }
    }
    let duplicates = splits.duplicates()?;
    if !duplicates.is_empty() {
        println!("warning: {duplicates}");
    }
    Ok(splits)
}

/// The epochs of a recipe's main phase, if --epochs does not set them.
const RECIPE_EPOCHS: usize = 10;

/// The plan of a recipe or a file, with its name.
fn given_plan(options: &Job, backbone: &Backbone) -> Result<Option<(String, Plan)>, Failure> {
    if let Some(recipe) = options.recipe {
        let plan = recipe.plan(backbone, options.epochs.unwrap_or(RECIPE_EPOCHS));
        return Ok(Some((recipe.to_string(), plan)));
    }
    let Some(file) = &options.plan else { return Ok(None) };
    let failed = |error: &dyn std::fmt::Display| -> Failure { format!("{}: {error}", file.display()).into() };
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let plan = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    Ok(Some((file.display().to_string(), plan)))
}

/// The plan of the run that goes on, with its name.
fn plan_of_run(options: &Job, train: &ImageFolder) -> Result<Option<(String, Plan)>, Failure> {
    let Some(folder) = &options.run_dir else { return Ok(None) };
    let Some(state) = RunState::newest(folder)? else { return Ok(None) };
    let report = state.report();
    if report.classes != train.classes() || report.samples.train != train.len() {
        let (samples, classes) = (report.samples.train, report.classes.len());
        let run = format!("a run on other data, {samples} samples of {classes} classes");
        return Err(format!("{}: it has {run}; choose another folder", folder.display()).into());
    }
    println!("the run in {} goes on with its own plan, changed by the options of now", folder.display());
    Ok(Some((format!("the plan of the run in {}", folder.display()), report.plan.clone())))
}

/// The plan, changed by the options.
fn edited(options: &Job, mut plan: Plan) -> Result<Plan, Failure> {
    let of_phases = [
        ("--freeze", options.freeze.is_some()),
        ("--epochs", options.epochs.is_some()),
        ("--batch-size", options.batch_size.is_some()),
        ("--lr", options.lr.is_some()),
        ("--schedule", options.schedule.is_some()),
        ("--augment", options.augment.is_some()),
    ];
    if let Some((option, _)) = of_phases.into_iter().find(|(_, given)| *given && plan.phases.is_empty()) {
        return Err(format!("{option} has no effect: this strategy fits a head and trains no phase").into());
    }
    if let Some(augment) = options.augment {
        plan = plan.augment(match augment {
            Augmentation::None => Augment::none(),
            Augmentation::Light => Augment::light(),
            Augmentation::Standard => Augment::standard(),
            Augmentation::Strong => Augment::strong(),
        });
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
        if let Some(schedule) = options.schedule {
            phase.schedule = schedule;
        }
    }
    if let Some(batch_size) = options.batch_size {
        plan.batch_size = batch_size;
    }
    options.regularise.apply(plan)
}
