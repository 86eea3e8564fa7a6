//! Times a training step or a frozen forward pass of one architecture, and measures its memory.
//!
//! ```text
//! cargo run --release --example bench_step -- --arch resnet18 --batch 8 --size 224 --mode train
//! cargo run --release --example bench_step -- --arch resnet50 --mode frozen --threads 2 --json
//! cargo run --release --example bench_step -- --mode loader --data DIR --threads 2
//! cargo run --release --example bench_step -- --mode start --arch resnet50 --weights FILE
//! ```
//!
//! The modes:
//!
//! - `train`: a step in which everything is trained. Forward with the batch's statistics, backward, SGD with momentum.
//! - `frozen`: the forward pass of a frozen backbone, batch norms folded, and its classifier.
//! - `head`: computes frozen features and trains the head on them.
//! - `loader`: decodes, crops and flips the images of DIR/train, without a network, on as many threads as given beside
//!   the one that takes the batches. A step is a pass over all images.
//! - `start`: reads weights from a file and predicts one image, once.
//!
//! Except in `loader` and `start`, weights and images are generated, so no file is needed. Prints the median time of
//! the steps after three warm-up steps, images per second, and the process's peak memory; with `--json` as one line of
//! JSON.

#[path = "support/run.rs"]
mod run;

use candle_finetune::candle_core::{Device, Tensor};
use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, Dataset, FeatureCache, FineTuner, Forecast, FreezePolicy, Head, Image,
    ImageFolder, InputSpec, Loader, Optimizer, Phase, Plan, Predictor, Source, TensorDataset, Transform,
};
use clap::{Parser, ValueEnum};
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A training step; everything is trained
    Train,
    /// The forward pass alone
    Frozen,
    /// The head is trained; features are computed in each step
    Head,
    /// Batches from a folder, without a network
    Loader,
    /// From a file to the first prediction
    Start,
}

/// Times a training step or a frozen forward pass
#[derive(Parser)]
struct Options {
    /// Architecture
    #[arg(long, default_value = "resnet18")]
    arch: Arch,
    /// Images per step
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Pixels per side; by default those of the architecture's weights
    #[arg(long)]
    size: Option<usize>,
    /// What to time
    #[arg(long, value_enum, default_value = "train")]
    mode: Mode,
    /// Folder of images, for `loader`
    #[arg(long)]
    data: Option<PathBuf>,
    /// File with weights and classifier, for `start`
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Threads; by default one per core
    #[arg(long)]
    threads: Option<usize>,
    /// Timed steps
    #[arg(long, default_value_t = 15)]
    steps: usize,
    /// Classes; by default 10 for networks with at most 128 features, else 1000
    #[arg(long)]
    classes: Option<usize>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Steps before the timed ones: they fill the caches, and the first includes the audit.
const WARM_UP: usize = 3;

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| bench(&options))
}

fn bench(options: &Options) -> Result<(), Failure> {
    if options.batch == 0 || options.steps == 0 || options.classes == Some(0) {
        return Err("--batch, --steps and --classes must be at least 1".into());
    }
    if let Some(threads) = options.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let threads = rayon::current_num_threads();
    match options.mode {
        Mode::Loader => return loader(options, threads),
        Mode::Start => return start(options),
        Mode::Train | Mode::Frozen | Mode::Head => {}
    }
    let mut backbone = Backbone::random(options.arch, 1, &Device::Cpu)?;
    let size = options.size.unwrap_or(backbone.input_spec().size.0);
    // Replaces the first backbone, so that the weights are in memory once.
    backbone = backbone.for_input_size(size, size)?;
    let classes = options.classes.unwrap_or(if backbone.feature_dim() <= 128 { 10 } else { 1000 });
    let images = images(options.batch, size)?;
    let (mut times, forecast) = match options.mode {
        Mode::Frozen => (frozen(options, &backbone, &images, classes)?, None),
        Mode::Train => steps(options, backbone, images, classes, FreezePolicy::Nothing)?,
        Mode::Head | Mode::Loader | Mode::Start => steps(options, backbone, images, classes, FreezePolicy::Backbone)?,
    };
    let forecast_mb = forecast.and_then(|f| f.total()).map(|bytes| bytes as f64 / (1 << 20) as f64);
    times.sort_by(f64::total_cmp);
    let median = f64::midpoint(times[times.len() / 2], times[(times.len() - 1) / 2]);
    let rate = options.batch as f64 / median * 1e3;
    let mode = options.mode.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default();
    let peak = peak_rss_mb();
    if options.json {
        let line = serde_json::json!({
            "arch": options.arch.name(), "batch": options.batch, "size": size, "mode": mode, "threads": threads,
            "median_ms": median, "images_per_s": rate, "peak_rss_mb": peak, "forecast_mb": forecast_mb,
        });
        println!("{line}");
    } else {
        print!("{}, {mode}, batch {}, {size} px, {threads} threads: ", options.arch.name(), options.batch);
        print!("{median:.1} ms, {rate:.1} images/s");
        print!("{}", peak.map(|mb| format!(", peak {mb:.0} MB")).unwrap_or_default());
        println!("{}", forecast_mb.map(|mb| format!(" (forecast {mb:.0} MB without the program)")).unwrap_or_default());
    }
    Ok(())
}

fn start(options: &Options) -> Result<(), Failure> {
    let path = options.weights.as_ref().ok_or("--mode start needs --weights")?;
    let image = Image::from_rgb8(320, 240, (0..320 * 240 * 3).map(|i| (i * 31 % 251) as u8).collect())?;
    let start = Instant::now();
    let predictor = Predictor::load(Source::file(path).arch(options.arch), &Device::Cpu)?;
    let loaded = start.elapsed().as_secs_f64() * 1e3;
    predictor.predict(&image)?;
    let predicted = start.elapsed().as_secs_f64() * 1e3;
    println!("{}: loaded in {loaded:.0} ms, first prediction after {predicted:.0} ms", options.arch.name());
    Ok(())
}

fn loader(options: &Options, threads: usize) -> Result<(), Failure> {
    let data = options.data.as_ref().ok_or("--mode loader needs --data")?;
    let data = ImageFolder::open(data.join("train"))?;
    let spec = InputSpec::new(options.size.unwrap_or(224));
    let transform = Transform::train(&spec, &Augment::none().crop_scale(0.08, 1.0).flip(0.5))?;
    let loader = Loader::new(&data, transform).batch_size(32).workers(threads);
    let mut epoch = 0;
    let mut times = time(options, || {
        epoch += 1;
        for batch in loader.batches((0..data.len()).collect(), epoch, &Device::Cpu)? {
            batch?;
        }
        Ok(())
    })?;
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let rate = data.len() as f64 / median * 1e3;
    if options.json {
        println!("{}", serde_json::json!({ "mode": "loader", "threads": threads, "images_per_s": rate }));
    } else {
        println!("loader, {} images, {threads} threads: {rate:.1} images/s", data.len());
    }
    Ok(())
}

/// Elements of about unit size, different for every image.
fn images(batch: usize, size: usize) -> Result<Tensor, Failure> {
    let values: Vec<f32> = (0..batch * 3 * size * size).map(|i| (i as f32 * 0.7).sin() * 1.4).collect();
    Ok(Tensor::from_vec(values, (batch, 3, size, size), &Device::Cpu)?)
}

/// Milliseconds of each of the timed runs.
fn time(options: &Options, mut f: impl FnMut() -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    let mut times = vec![];
    for i in 0..WARM_UP + options.steps {
        let start = Instant::now();
        f()?;
        if i >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(times)
}

fn frozen(options: &Options, backbone: &Backbone, images: &Tensor, classes: usize) -> Result<Vec<f64>, Failure> {
    let head = Tensor::ones((backbone.feature_dim(), classes), images.dtype(), images.device())?;
    time(options, || {
        backbone.forward(images)?.matmul(&head)?;
        Ok(())
    })
}

fn steps(
    options: &Options,
    backbone: Backbone,
    images: Tensor,
    classes: usize,
    freeze: FreezePolicy,
) -> Result<(Vec<f64>, Option<Forecast>), Failure> {
    let labels = (0..options.batch as u32).map(|i| i % 10 % classes as u32).collect();
    let data = TensorDataset::new(images, labels, (0..classes).map(|i| i.to_string()).collect())?;
    let norms = if freeze == FreezePolicy::Backbone { BatchNormMode::Frozen } else { BatchNormMode::Train };
    let phase = Phase::new(1, Optimizer::sgd(1e-3).momentum(0.9)).freeze(freeze).batch_norm(norms);
    let plan = Plan::new(vec![phase]).batch_size(options.batch);
    let forecast = plan.forecast(&backbone, Head::linear(), classes)?;
    let tuner = FineTuner::new(backbone).plan(plan);
    let mut session = tuner.cache(&FeatureCache::off()).workers(0).session(&data)?;
    session.next_phase()?;
    session.next_epoch()?;
    let batch = session.next_batch()?.ok_or("the dataset has no batch")?;
    let times = time(options, || {
        session.step(&batch)?;
        Ok(())
    })?;
    Ok((times, Some(forecast)))
}

/// The peak memory of this process, if the system provides it.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
