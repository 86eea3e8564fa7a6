//! How long does a training step take, and how much memory? One architecture, one line.
//!
//! ```text
//! cargo run --release --example bench_step -- --arch resnet18 --batch 8 --size 224 --mode train
//! cargo run --release --example bench_step -- --arch resnet50 --mode frozen --threads 2 --json
//! ```
//!
//! `train` is a step in which everything learns: forward with the batch's statistics, backward, SGD with momentum.
//! `frozen` is the forward pass of a frozen backbone, batch norms folded, and its classifier. `head` computes frozen
//! features and steps the head on them. Weights and images are made up, so no file is needed. Prints the median of the
//! steps after three to warm up, images per second, and the largest memory of the process; with `--json` as one line of
//! JSON.

#[path = "support/run.rs"]
mod run;

use candle_finetune::candle_core::{Device, Tensor};
use candle_finetune::{
    Arch, Backbone, BatchNormMode, FineTuner, Forecast, FreezePolicy, Head, Optimizer, Phase, Plan, TensorDataset,
};
use clap::{Parser, ValueEnum};
use run::Failure;
use std::process::ExitCode;
use std::time::Instant;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Everything learns.
    Train,
    /// Forward only.
    Frozen,
    /// The head learns, features are computed in each step.
    Head,
}

/// Times one training step or forward pass.
#[derive(Parser)]
struct Options {
    /// The architecture.
    #[arg(long, default_value = "resnet18")]
    arch: Arch,
    /// Images per step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Pixels per side; by default what the architecture was made for.
    #[arg(long)]
    size: Option<usize>,
    #[arg(long, value_enum, default_value = "train")]
    mode: Mode,
    /// Threads; by default as many as there are cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Steps that are timed.
    #[arg(long, default_value_t = 15)]
    steps: usize,
    /// Classes; by default 10 for networks of small images, else 1000.
    #[arg(long)]
    classes: Option<usize>,
    /// Prints one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Steps before the timed ones: they fill the caches, and the first carries the audit.
const WARM_UP: usize = 3;

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| bench(&options))
}

fn bench(options: &Options) -> Result<(), Failure> {
    if options.batch == 0 || options.steps == 0 || options.classes == Some(0) {
        return Err("--batch, --steps and --classes are at least 1".into());
    }
    if let Some(threads) = options.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let threads = rayon::current_num_threads();
    let mut backbone = Backbone::random(options.arch, 1, &Device::Cpu)?;
    let size = options.size.unwrap_or(backbone.input_spec().size.0);
    // The first one goes: two of them would hold the weights.
    backbone = backbone.input_size(size, size)?;
    let classes = options.classes.unwrap_or(if backbone.feature_dim() <= 128 { 10 } else { 1000 });
    let images = images(options.batch, size)?;
    let (mut times, forecast) = match options.mode {
        Mode::Frozen => (frozen(options, &backbone, &images, classes)?, None),
        Mode::Train => steps(options, backbone, images, classes, FreezePolicy::Nothing)?,
        Mode::Head => steps(options, backbone, images, classes, FreezePolicy::Backbone)?,
    };
    let forecast_mb = forecast.map(|f| f.total() as f64 / (1 << 20) as f64);
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
        print!("{}", peak.map(|mb| format!(", at most {mb:.0} MB")).unwrap_or_default());
        println!("{}", forecast_mb.map(|mb| format!(" (forecast {mb:.0} and the program)")).unwrap_or_default());
    }
    Ok(())
}

/// Numbers of about unit size, different for every image.
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
    let mut session = tuner.cache_budget(0).workers(0).session(&data)?;
    let batch = session.next_batch()?.ok_or("the data set has no batch")?;
    let times = time(options, || {
        session.step(&batch)?;
        Ok(())
    })?;
    Ok((times, Some(forecast)))
}

/// The largest memory of this process so far, where the system tells it.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
