//! Shared by the examples: errors as text instead of a panic, progress, and checks of paths.
#![allow(dead_code)] // each example uses its part

use candle_finetune::candle_core::Device;
use candle_finetune::{Cancel, Evaluation, Event, Task, progress_lines};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The bars of the library's feature `progress`, for builds without it too.
#[path = "../../src/train/logs/bars.rs"]
mod bars;

/// Any error of an example.
pub type Failure = Box<dyn std::error::Error>;

/// Runs an example. An error is printed on standard error, and makes the exit status 1.
pub fn run(example: impl FnOnce() -> Result<(), Failure>) -> ExitCode {
    match example() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the device "cpu", "cuda", "cuda:1", "metal" or similar.
pub fn device(name: &str) -> Result<Device, Failure> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let index: usize = index.parse().map_err(|_| format!("device {name}: {index} is not a number"))?;
    match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::new_cuda(index)?),
        "metal" => Ok(Device::new_metal(index)?),
        _ => Err(format!("unknown device {name}; use cpu, cuda[:N] or metal[:N]").into()),
    }
}

/// The accuracy's 95 % interval and, with one class per image, the fraction of the largest class as a baseline.
pub fn interval(evaluation: &Evaluation) -> String {
    let (low, high) = evaluation.interval();
    let baseline = match evaluation.task() {
        Task::Labels => String::new(),
        _ => format!(", fraction of the largest class {:.4}", evaluation.largest_class()),
    };
    format!("95 % interval {low:.4} - {high:.4}{baseline}")
}

/// Refuses an output that cannot be written, or that is the same file as an input or another output.
pub fn check_outputs(outputs: &[&Path], inputs: &[&Path]) -> Result<(), Failure> {
    let mut taken: Vec<(PathBuf, &Path)> = vec![];
    for input in inputs.iter().filter(|input| input.is_file()) {
        taken.push((place(input)?, input));
    }
    for output in outputs {
        check_writable(output, 0)?;
        let place = place(output)?;
        if let Some((_, other)) = taken.iter().find(|(other, _)| *other == place) {
            return Err(format!("{} would overwrite {}; choose another name", output.display(), other.display()).into());
        }
        taken.push((place, output));
    }
    Ok(())
}

/// The path of a file, existing or not, with links resolved.
fn place(file: &Path) -> Result<PathBuf, Failure> {
    if let Ok(place) = file.canonicalize() {
        return Ok(place);
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|error| format!("{}: {}: {error}", file.display(), folder.display()))?;
    Ok(folder.join(file.file_name().ok_or_else(|| format!("{} is not a file name", file.display()))?))
}

/// Refuses a file that cannot be written, by writing a temporary file of `bytes` bytes beside it.
pub fn check_writable(file: &Path, bytes: usize) -> Result<(), Failure> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wrong = |problem: String| -> Failure { format!("{}: cannot be written: {problem}", file.display()).into() };
    if !folder.is_dir() {
        return Err(wrong(format!("no folder {}", folder.display())));
    }
    if file.is_dir() || file.file_name().is_none() {
        return Err(wrong("it is a folder".into()));
    }
    if file.metadata().is_ok_and(|about| !about.is_file()) {
        return Err(wrong("it is not a regular file".into()));
    }
    if file.exists() {
        // Writes nothing, but fails without permission.
        OpenOptions::new().append(true).open(file).map_err(|error| wrong(error.to_string()))?;
    }
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::tempfile_in(folder)?;
        let piece = vec![0; 1 << 20];
        for from in (0..bytes).step_by(piece.len()) {
            file.write_all(&piece[..piece.len().min(bytes - from)])?;
        }
        Ok(())
    };
    write().map_err(|error| wrong(format!("{bytes} bytes in {}: {error}", folder.display())))
}

/// What Ctrl-C cancels; the second Ctrl-C ends the process.
pub fn cancelled_by_ctrl_c() -> Result<Cancel, Failure> {
    let cancel = Cancel::new();
    let stop = cancel.clone();
    ctrlc::set_handler(move || {
        if stop.is_cancelled() {
            std::process::exit(130);
        }
        eprintln!("interrupted: the step is finished first; again to end at once");
        stop.cancel();
    })?;
    Ok(cancel)
}

/// A listener that prints the plan and a line per epoch on standard error, with a progress bar on a terminal.
pub fn progress() -> impl FnMut(&Event<'_>) + Send + 'static {
    bars::progress_bars()
}

/// A listener that shows the progress of downloads on standard error, if that is a terminal.
#[cfg(feature = "hub")]
pub fn downloads() -> impl Fn(&candle_finetune::HubDownload) + Send + Sync + 'static {
    let bar = indicatif::ProgressBar::new(1);
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{msg:40} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}")
    {
        bar.set_style(style);
    }
    move |download| {
        bar.set_message(download.file.clone());
        bar.set_length(download.total);
        bar.set_position(download.done);
    }
}
