//! Runs all strategies, and the advisor's choice, over a grid of tasks, and writes what came out as a page and a picture.
//!
//! ```text
//! cargo run --release --example four_quadrants -- --tasks docs/evidence/tasks.json --rows docs/evidence/rows.jsonl \
//!     --sets DIR --weights cifar_resnet20=FILE --weights tf_efficientnet_lite0=FILE --page docs/evidence.md
//! ```
//!
//! A task is a set of images (a folder below --sets with train/ and test/), a backbone, a size and a number of images per
//! class. Each row, a task with a strategy and a seed, is appended to --rows when it is done; run the command again, and it
//! goes on after the last one. A row whose plan has changed meanwhile is run again. With --only-page it trains nothing.
//! Without --tasks it runs a small grid on the images and the backbone that come with the crate. Prints a line per row.

#[path = "support/page.rs"]
mod page;
#[path = "support/quadrants.rs"]
mod quadrants;
#[path = "support/regret.rs"]
mod regret;
#[path = "support/rows.rs"]
mod rows;
#[path = "support/run.rs"]
mod run;
#[path = "support/shift.rs"]
mod shift;

use candle_finetune::candle_core::Device;
use candle_finetune::{
    Advisor, Arch, Backbone, Dataset, FeatureCache, FineTuner, ImageFolder, Plan, Source, Strategy, Subset, Target,
};
use clap::Parser;
use rows::{Advised, Row, Rows, Task};
use run::Failure;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use twox_hash::XxHash3_64;

/// Runs all strategies, and the advisor's choice, over a grid of tasks
#[derive(Parser)]
struct Options {
    /// File of tasks (JSON); by default a small grid on the images that come with the crate
    #[arg(long, requires = "sets")]
    tasks: Option<PathBuf>,
    /// Folder of the sets of images
    #[arg(long)]
    sets: Vec<PathBuf>,
    /// Weights of an architecture: ARCH=FILE
    #[arg(long)]
    weights: Vec<String>,
    /// File of rows, to which new ones are appended
    #[arg(long, default_value = "target/four_quadrants.jsonl")]
    rows: PathBuf,
    /// Run the tasks whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Page to write (Markdown); a picture of the same name ends in .svg
    #[arg(long)]
    page: Option<PathBuf>,
    /// Write the page of the rows there are, and train nothing
    #[arg(long, requires = "page")]
    only_page: bool,
    /// Epochs of the last phase of every plan, to try the program out
    #[arg(long)]
    epochs: Option<usize>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| grid(&options))
}

fn grid(options: &Options) -> Result<(), Failure> {
    let tasks: Vec<Task> = match &options.tasks {
        Some(file) => serde_json::from_str(&std::fs::read_to_string(file)?)?,
        None => serde_json::from_str(
            r#"[{"name": "clothes", "set": "fashion", "backbone": "embedded", "seeds": 1},
                {"name": "few clothes", "set": "fashion", "backbone": "embedded", "per_class": 5, "seeds": 1}]"#,
        )?,
    };
    let mut rows = rows::read(&options.rows)?;
    if !options.only_page {
        for task in tasks.iter().filter(|task| options.only.as_ref().is_none_or(|part| task.name.contains(part))) {
            run_task(options, task, &mut rows)?;
        }
    }
    if let Some(page) = &options.page {
        let picture = page.with_extension("svg");
        std::fs::write(&picture, quadrants::draw(&tasks, &rows))?;
        std::fs::write(page, page::write(&tasks, &rows, &picture))?;
        println!("written: {} and {}", page.display(), picture.display());
    }
    Ok(())
}

/// The folder of a set.
fn folder(options: &Options, set: &str) -> Result<PathBuf, Failure> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
    let places: Vec<PathBuf> = options.sets.iter().chain([&own]).map(|sets| sets.join(set)).collect();
    let found = places.iter().find(|folder| folder.is_dir());
    Ok(found.ok_or_else(|| format!("no set of images {set}; --sets names the folder that holds it"))?.clone())
}

fn backbone(options: &Options, task: &Task) -> Result<Backbone, Failure> {
    let device = Device::Cpu;
    let backbone = if task.backbone == "embedded" {
        Backbone::embedded(&device)?
    } else {
        let arch: Arch = task.backbone.parse()?;
        let files: BTreeMap<&str, &str> = options.weights.iter().filter_map(|pair| pair.split_once('=')).collect();
        let file = files.get(task.backbone.as_str());
        let file = file.ok_or_else(|| format!("no weights; give --weights {}=FILE", task.backbone))?;
        Backbone::load(Source::file(file).arch(arch), &device)?
    };
    match task.pixels {
        Some(pixels) => Ok(backbone.for_input_size(pixels, pixels)?),
        None => Ok(backbone),
    }
}

/// The first so many images of each class, in an order that the seed decides.
fn few(data: &ImageFolder, per_class: Option<usize>, seed: u64) -> Result<Subset, Failure> {
    let mut order: Vec<usize> = (0..data.len()).collect();
    order.sort_by_key(|i| hash(&format!("{seed} {i}")));
    let mut taken: BTreeMap<u32, usize> = BTreeMap::new();
    order.retain(|&i| {
        let Target::Class(class) = data.info(i).target else { return false };
        let count = taken.entry(class).or_default();
        *count += 1;
        per_class.is_none_or(|most| *count <= most)
    });
    order.sort_unstable();
    Ok(Subset::new(data, order)?)
}

/// A plan as a short text, without its reasons.
fn digest(plan: &Plan) -> Result<String, Failure> {
    let mut plan = plan.clone();
    plan.reasons.clear();
    Ok(format!("{:016x}", hash(&serde_json::to_string(&plan)?)))
}

/// The same for every platform and version of Rust: rows are kept for long.
fn hash(text: &str) -> u64 {
    XxHash3_64::oneshot(text.as_bytes())
}

fn run_task(options: &Options, task: &Task, all: &mut Rows) -> Result<(), Failure> {
    let backbone = backbone(options, task)?;
    let splits = ImageFolder::splits(folder(options, &task.set)?, 0)?;
    let test = splits.test.as_ref().ok_or_else(|| format!("{} has no test images", task.set))?;
    for seed in 0..task.seeds {
        let images = few(&splits.train, task.per_class, seed)?;
        // Held out of the images of the task: a task of few images has few to validate on, too.
        let (train, valid) = candle_finetune::split(&images, 0.15, seed)?;
        let cache = FeatureCache::new();
        let mut plans: Vec<(String, Plan, Option<Advised>)> = vec![];
        for strategy in Strategy::ALL {
            plans.push((strategy.to_string(), strategy.plan(&backbone, train.len()), None));
        }
        let advice = Advisor::new(&backbone).seed(seed).cache(&cache).advise(&train)?;
        let top1 = |probe: &candle_finetune::StageProbe| [probe.mean.ridge, probe.grid.ridge];
        let stages = &advice.evidence.stages;
        let shift = shift::shift(&backbone, &train, seed)?;
        let advised = Advised {
            strategy: advice.strategy.to_string(),
            size: format!("{:?}", advice.size).to_lowercase(),
            similarity: format!("{:?}", advice.similarity).to_lowercase(),
            last: stages.last().map_or(0.0, |stage| stage.mean.ridge),
            best: stages.iter().flat_map(top1).fold(0.0, f64::max),
            gain: advice.evidence.gain(),
            divergence: Some(shift.divergence),
            early: shift.early,
            seconds: advice.evidence.seconds,
        };
        plans.push(("auto".into(), advice.plan.clone(), Some(advised)));
        for (strategy, mut plan, advised) in plans {
            if let (Some(epochs), Some(phase)) = (options.epochs, plan.phases.last_mut()) {
                phase.epochs = epochs;
            }
            let (key, digest) = ((task.name.clone(), strategy.clone(), seed), digest(&plan)?);
            let whole = |advice: &Option<Advised>| advice.as_ref().is_none_or(|advice| advice.divergence.is_some());
            let known = |row: &Row| row.plan == digest && row.advice.is_some() == advised.is_some();
            if all.get(&key).is_some_and(|row| known(row) && whole(&row.advice)) {
                continue;
            }
            // The same plan with the same seed gives the same bytes, whoever chose it.
            let same = |row: &&Row| row.task == task.name && row.seed == seed && row.plan == digest;
            let row = match all.values().find(same) {
                Some(row) => Row { strategy, advice: advised, ..row.clone() },
                None => {
                    let tuner = FineTuner::new(backbone.clone()).plan(plan).seed(seed).cache(&cache);
                    let mut tuned = tuner.fit(&train, &valid)?;
                    let evaluation = tuned.test(test)?;
                    Row {
                        task: task.name.clone(),
                        strategy,
                        seed,
                        plan: digest,
                        train: train.len(),
                        valid: valid.len(),
                        classes: train.classes().len(),
                        top1: evaluation.top1(),
                        valid_top1: tuned.report.valid_top1.unwrap_or(0.0),
                        right: rows::packed(evaluation.outcomes()),
                        images: evaluation.total,
                        seconds: tuned.report.seconds.total,
                        advice: advised,
                    }
                }
            };
            println!("{} {} seed {seed}: top1 {:.4} in {:.0} s", row.task, row.strategy, row.top1, row.seconds);
            rows::append(&options.rows, &row)?;
            all.insert(key, row);
        }
    }
    Ok(())
}
