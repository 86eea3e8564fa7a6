//! Scalars for TensorBoard.

mod record;

use super::writer::warn_once;
use crate::error::{Error, Result};
use crate::metrics::Metric;
use crate::report::{EpochReport, HeadFit};
use crate::train::event::Event;
use record::{Content, record};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A listener that writes scalars for TensorBoard (`tensorboard --logdir FOLDER`) into a new file of this folder, which is
/// created if it is missing.
///
/// | tag | when |
/// |---|---|
/// | `train/loss`, `train/lr`, `train/gradient_norm` | after each optimizer step |
/// | `epoch/train_loss`, `epoch/train_top1` | after each epoch |
/// | `valid/loss`, `valid/top1`, and the run's metric (`valid/macro_f1`) | after each validation |
/// | `valid/averaged_loss`, `valid/averaged_top1` | the same, of the moving averages of the weights |
///
/// The step is that of the run, over all phases. A head that was fitted is validated at step 0. TensorBoard stores
/// values as f32.
///
/// A run that resumes writes a further file into the same folder. The file begins with a record that makes readers
/// discard the steps that the run repeats, as TensorFlow's do (`SessionLog.START`). So does that of a new run:
/// of an earlier run in the same folder, TensorBoard then shows nothing. Use a folder for each run.
///
/// If the listener hears of several runs, folds for example or a training on all samples at the end, the second one goes
/// to the folder `run_2` in this one, the third to `run_3`.
///
/// A record that cannot be written is dropped with a warning of `tracing`, the first time; the run continues.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, Optimizer, Phase, Plan, TensorDataset};
/// # use candle_finetune::candle_core::{Device, Tensor};
/// use candle_finetune::{FineTuner, tensorboard};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]);
/// # let dir = tempfile::tempdir().unwrap();
/// # let folder = dir.path().join("run");
/// FineTuner::new(backbone).plan(plan).on_event(tensorboard(&folder)?).fit(&train, &valid)?;
/// let name = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().file_name();
/// assert!(name.to_string_lossy().starts_with("events.out.tfevents."));
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`] if folder or file cannot be created.
pub fn tensorboard(folder: impl AsRef<Path>) -> Result<impl FnMut(&Event<'_>) + Send + 'static> {
    let folder = folder.as_ref().to_path_buf();
    let file = EventFile::create(&folder)?;
    let mut log =
        Log { folder, file: Some(file), runs: 0, metric: Metric::default(), step: 0, starts: Some(0), warned: false };
    Ok(move |event: &Event<'_>| log.hear(event))
}

/// The state of the listener.
struct Log {
    folder: PathBuf,
    /// `None` if the file of the run in progress could not be created.
    file: Option<EventFile>,
    /// Runs that were heard of.
    runs: usize,
    metric: Metric,
    /// Steps of the run so far.
    step: usize,
    /// The first step that a run or a part of one has not made yet, until its first record.
    starts: Option<usize>,
    warned: bool,
}

impl Log {
    fn hear(&mut self, event: &Event<'_>) {
        match event {
            Event::Start(report) => self.start(report.metric),
            Event::Resumed { step } => (self.step, self.starts) = (*step, Some(step + 1)),
            Event::HeadFit(fit) => self.head_fit(fit),
            Event::Step { loss, lr, gradient_norm, run_step, .. } => {
                self.step = *run_step;
                self.write(&[("train/loss", *loss), ("train/lr", *lr), ("train/gradient_norm", *gradient_norm)]);
            }
            Event::Epoch(report) => self.epoch(report),
            _ => {}
        }
    }

    fn start(&mut self, metric: Metric) {
        (self.metric, self.step, self.starts) = (metric, 0, Some(0));
        self.runs += 1;
        if self.runs > 1 {
            let file = EventFile::create(&self.folder.join(format!("run_{}", self.runs)));
            self.file = file.map_err(|error| warn_once(&mut self.warned, &error)).ok();
        }
    }

    fn head_fit(&mut self, fit: &HeadFit) {
        self.write_present(&[("valid/loss", fit.valid_loss), ("valid/top1", fit.valid_top1)]);
    }

    fn epoch(&mut self, report: &EpochReport) {
        let metric = format!("valid/{}", self.metric);
        // These two have their tags already.
        let open = !matches!(self.metric, Metric::Top1 | Metric::Loss);
        self.write_present(&[
            ("epoch/train_loss", Some(report.train_loss)),
            ("epoch/train_top1", report.train_top1),
            ("valid/loss", report.valid_loss),
            ("valid/top1", report.valid_top1),
            (&metric, report.valid_metric.filter(|_| open)),
            ("valid/averaged_loss", report.averaged.map(|averaged| averaged.loss)),
            ("valid/averaged_top1", report.averaged.map(|averaged| averaged.top1)),
        ]);
    }

    fn write_present(&mut self, values: &[(&str, Option<f64>)]) {
        let present: Vec<(&str, f64)> = values.iter().filter_map(|(tag, value)| Some((*tag, (*value)?))).collect();
        if !present.is_empty() {
            self.write(&present);
        }
    }

    /// Writes a record at the step of the run, after one that says where the run starts.
    fn write(&mut self, scalars: &[(&str, f64)]) {
        let Some(file) = &mut self.file else { return };
        let now = seconds_since_1970();
        let mut bytes = vec![];
        if let Some(step) = self.starts {
            bytes.extend(record(now, step as u64, &Content::Start));
        }
        bytes.extend(record(now, self.step as u64, &Content::Scalars(scalars)));
        match file.append(&bytes) {
            Ok(()) => self.starts = None,
            Err(error) => warn_once(&mut self.warned, &error),
        }
    }
}

/// A file of events that is being written.
struct EventFile {
    file: File,
    /// Bytes of whole records.
    length: u64,
}

const PREFIX: &str = "events.out.tfevents.";

impl EventFile {
    /// Creates a file that sorts behind those of the folder, since TensorBoard reads them in the order of their names.
    fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let now = seconds_since_1970();
        let seconds = newest(folder)?.map_or(now as u64, |newest| (now as u64).max(newest.saturating_add(1)));
        let path = folder.join(format!("{PREFIX}{seconds:010}.{}.{}", host(), std::process::id()));
        let file = File::options().append(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut file = Self { file, length: 0 };
        file.append(&record(now, 0, &Content::Version)).map_err(Error::io("write", &path))?;
        Ok(file)
    }

    /// Appends whole records. Of a write that fails nothing remains, as far as that can be: readers stop at a torn
    /// record.
    fn append(&mut self, records: &[u8]) -> std::io::Result<()> {
        let written = self.file.write_all(records);
        match written {
            Ok(()) => self.length += records.len() as u64,
            Err(_) => self.file.set_len(self.length)?,
        }
        written
    }
}

/// The seconds in the name of the folder's newest file of events.
fn newest(folder: &Path) -> Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let name = entry.map_err(Error::io("read", folder))?.file_name();
        let seconds = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        newest = newest.max(seconds);
    }
    Ok(newest)
}

fn seconds_since_1970() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The name of this machine where the system tells it without a library; TensorBoard shows it nowhere.
fn host() -> String {
    let told = || std::env::var("COMPUTERNAME").or_else(|_| std::env::var("HOSTNAME")).unwrap_or_default();
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| told());
    let plain: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    if plain.is_empty() { "localhost".into() } else { plain }
}

#[cfg(test)]
mod tests;
