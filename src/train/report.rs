//! What a run was and what came of it.

use crate::plan::Plan;
use crate::strategy::Strategy;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A run, for printing as a table and for keeping as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The architecture.
    pub arch: String,
    /// Where the pretrained weights came from: a repository of the hub, or a file's name.
    #[serde(default)]
    pub base_model: Option<String>,
    /// The strategy, if one was named.
    pub strategy: Option<Strategy>,
    /// The recipe that was followed, after all settings.
    pub plan: Plan,
    /// Settings that won over the plan's.
    pub overrides: Vec<String>,
    /// The seed of all chance.
    pub seed: u64,
    /// Training samples.
    pub samples: usize,
    /// Broken samples that were left out on request, of the training and the validation data.
    pub skipped: usize,
    /// The classes.
    pub classes: Vec<String>,
    /// Every epoch of every phase.
    pub epochs: Vec<EpochReport>,
    /// The epoch, counted over all phases from 1, whose weights were kept.
    pub best_epoch: Option<usize>,
    /// Validation accuracy of the weights that were kept, in [0, 1].
    pub valid_top1: Option<f64>,
    /// The final accuracy, on test data where there are any; see [`Fitted::test`](crate::Fitted::test).
    pub top1: Option<f64>,
    /// Where the time went.
    pub seconds: Seconds,
    /// What learnt and what was frozen in the last phase.
    pub parameters: Parameters,
    /// Parameters whose first gradient was exactly zero: the bias of a convolution under a batch norm, say.
    pub zero_gradients: Vec<String>,
    /// Features of frozen blocks that were kept, in megabytes.
    pub cached_mb: f64,
    /// The largest resident memory of the process in megabytes, where the system tells.
    pub peak_rss_mb: Option<f64>,
}

/// One epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EpochReport {
    /// The phase, from 1.
    pub phase: usize,
    /// The epoch of the phase, from 1.
    pub epoch: usize,
    /// The head's learning rate at the epoch's end.
    pub lr: f64,
    /// Mean loss over the epoch's steps, with label smoothing and augmentation.
    pub train_loss: f64,
    /// Accuracy of the training batches as they were seen, in [0, 1]; an own loop that makes its own loss has none.
    pub train_top1: Option<f64>,
    /// Mean norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Cross entropy on the validation data.
    pub valid_loss: Option<f64>,
    /// Accuracy on the validation data, in [0, 1].
    pub valid_top1: Option<f64>,
    /// Seconds of training, without validation.
    pub seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
}

/// Where a run's time went, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Seconds {
    /// Computing features of frozen blocks once.
    pub features: f64,
    /// Training steps, loading included.
    pub train: f64,
    /// Validation.
    pub valid: f64,
    /// Everything.
    pub total: f64,
}

/// What learns and what is frozen, in numbers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Parameters {
    /// Numbers that learn, the head's included.
    pub learning: usize,
    /// Numbers that are frozen.
    pub frozen: usize,
    /// The same by stage; the head is the last.
    pub stages: Vec<StageReport>,
}

/// What learns and what is frozen in one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageReport {
    /// The stage.
    pub name: String,
    /// Numbers that learn.
    pub learning: usize,
    /// Numbers that are frozen.
    pub frozen: usize,
}

impl Report {
    /// The same without what differs from run to run: equal seeds save equal files.
    pub(super) fn without_measurements(&self) -> Self {
        let mut report = Self { seconds: Seconds::default(), peak_rss_mb: None, cached_mb: 0.0, ..self.clone() };
        for epoch in &mut report.epochs {
            (epoch.seconds, epoch.images_per_second) = (0.0, 0.0);
        }
        report
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> crate::Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| crate::Error::invalid("report", format!("cannot be written as JSON: {error}")))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strategy = self.strategy.map_or("a plan of its own", Strategy::name);
        writeln!(f, "{} on {} samples of {} classes: {strategy}", self.arch, self.samples, self.classes.len())?;
        write!(f, "{}", self.plan)?;
        for setting in &self.overrides {
            writeln!(f, "  set by hand: {setting}")?;
        }
        if self.skipped > 0 {
            writeln!(f, "  {} broken samples were skipped", self.skipped)?;
        }
        writeln!(f)?;
        writeln!(f, "  phase epoch       lr  train loss  train top1  valid loss  valid top1  seconds  images/s")?;
        let number = |v: Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.4}"));
        for (i, e) in self.epochs.iter().enumerate() {
            writeln!(
                f,
                "  {:>5} {:>5} {:>8.1e}  {:>10.4}  {:>10}  {:>10}  {:>10}  {:>7.2}  {:>8.0}{}",
                e.phase,
                e.epoch,
                e.lr,
                e.train_loss,
                number(e.train_top1),
                number(e.valid_loss),
                number(e.valid_top1),
                e.seconds,
                e.images_per_second,
                if self.best_epoch == Some(i + 1) { "  kept" } else { "" }
            )?;
        }
        writeln!(f)?;
        writeln!(f, "  {:<14} {:>12} {:>12}", "stage", "learning", "frozen")?;
        for stage in &self.parameters.stages {
            writeln!(f, "  {:<14} {:>12} {:>12}", stage.name, stage.learning, stage.frozen)?;
        }
        writeln!(f, "  {:<14} {:>12} {:>12}", "all", self.parameters.learning, self.parameters.frozen)?;
        let s = &self.seconds;
        write!(
            f,
            "  {:.1} s in all: features {:.1} s, training {:.1} s, validation {:.1} s",
            s.total, s.features, s.train, s.valid
        )?;
        if let Some(peak) = self.peak_rss_mb {
            write!(f, "; {peak:.0} MB at most")?;
        }
        writeln!(f)
    }
}

/// The largest resident memory of this process in megabytes, on Linux.
pub(super) fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
