//! What the examples share: ending with an error's text instead of a panic, and a progress bar.
#![allow(dead_code)] // each example uses its part

use candle_finetune::Event;
use candle_finetune::candle_core::Device;
use indicatif::{ProgressBar, ProgressStyle};
use std::process::ExitCode;

/// Any error of an example.
pub type Failure = Box<dyn std::error::Error>;

/// Runs an example; an error's text goes to standard error, and the exit status says that there was one.
pub fn run(example: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    match example() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// "cpu", "cuda", "cuda:1" or "metal".
pub fn device(name: &str) -> Result<Device, Failure> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let index: usize = index.parse().map_err(|_| format!("device {name}: {index} is no number"))?;
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::new_cuda(index)?),
        "metal" => Ok(Device::new_metal(index)?),
        _ => Err(format!("device {name} is not known; there are cpu, cuda[:N] and metal[:N]").into()),
    }
}

/// A listener that draws progress on standard error; silent where that is no terminal.
pub fn progress() -> impl FnMut(&Event<'_>) + Send + 'static {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{msg:40} [{bar:30}] {pos}/{len}") {
        bar.set_style(style);
    }
    let mut phase_text = String::new();
    move |event| match event {
        Event::Phase { phase, phases, frozen_blocks } => {
            phase_text = format!("phase {phase}/{phases}, {frozen_blocks} blocks frozen");
        }
        Event::Features { done, total } => {
            bar.set_message("features of the frozen blocks");
            bar.set_length(*total as u64);
            bar.set_position(*done as u64);
        }
        Event::Step { epoch, step, steps, loss } => {
            bar.set_message(format!("{phase_text}, epoch {epoch}, loss {loss:.3}"));
            bar.set_length(*steps as u64);
            bar.set_position(*step as u64);
        }
        // Outside `suspend`, which holds the bar's lock.
        Event::Epoch(report) if !bar.is_hidden() => {
            let valid = report.valid_top1.map_or(String::new(), |v| format!(", valid top1 {v:.4}"));
            let train = report.train_top1.map_or(String::new(), |v| format!(", top1 {v:.4}"));
            bar.suspend(|| {
                eprintln!(
                    "{phase_text}, epoch {}: train loss {:.4}{train}{valid}, {:.1} s",
                    report.epoch, report.train_loss, report.seconds
                );
            });
        }
        _ => {}
    }
}

/// A listener that draws downloads on standard error; silent where that is no terminal.
#[cfg(feature = "hub")]
pub fn downloads() -> impl Fn(&candle_finetune::Download) + Send + Sync + 'static {
    let bar = ProgressBar::new(1);
    if let Ok(style) = ProgressStyle::with_template("{msg:40} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    move |download| {
        bar.set_message(download.file.clone());
        bar.set_length(download.total);
        bar.set_position(download.done);
    }
}
