//! What a run was and what came of it.

mod text;

use crate::data::Dataset;
use crate::metrics::{Evaluation, any_float, any_float_option};
use crate::plan::Plan;
use crate::strategy::Strategy;
use serde::{Deserialize, Serialize};

/// A run. `Display` is a short summary, [`Report::table`] has a row per epoch, and [`Report::to_json`] everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The version of the crate that ran.
    #[serde(default)]
    pub version: String,
    /// When the run began, in UTC: "2026-03-01T12:34:56Z".
    #[serde(default)]
    pub date: Option<String>,
    /// The architecture.
    pub arch: String,
    /// Where the pretrained weights came from: a repository of the hub, or a file's name.
    #[serde(default)]
    pub base_model: Option<String>,
    /// The strategy that was named or made the plan; `None` for a custom plan.
    pub strategy: Option<Strategy>,
    /// The recipe that was followed, after all settings.
    pub plan: Plan,
    /// Settings in which the plan differs from its strategy's, as text; empty for a custom plan.
    pub overrides: Vec<String>,
    /// Settings and circumstances that are probably not meant.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why the training ended before its plan, if it did: it diverged, and the best epoch until then came out.
    #[serde(default)]
    pub stopped: Option<String>,
    /// The random seed.
    pub seed: u64,
    /// Height and width of the network's input in pixels.
    #[serde(default)]
    pub input_size: (usize, usize),
    /// How many samples each part has.
    pub samples: SampleCounts,
    /// Broken samples that were left out on request, of the training and the validation data.
    pub skipped: usize,
    /// The classes.
    pub classes: Vec<String>,
    /// Every epoch of every phase.
    pub epochs: Vec<EpochReport>,
    /// The epoch, counted over all phases from 1, whose weights came out; `None` for the weights at the run's end.
    pub best_epoch: Option<usize>,
    /// Validation accuracy of the weights that came out, in [0, 1], if they were validated.
    pub valid_top1: Option<f64>,
    /// The validation of the weights that came out.
    #[serde(default)]
    pub valid: Option<Evaluation>,
    /// The accuracy on test data, in [0, 1]; `None` without test data. See [`Fitted::test`](crate::Fitted::test).
    pub top1: Option<f64>,
    /// The evaluation on test data.
    #[serde(default)]
    pub test: Option<Evaluation>,
    /// Where the time went.
    pub seconds: Timings,
    /// What was trained and what was frozen in the last phase.
    pub parameters: ParameterCounts,
    /// Parameters whose first gradient was exactly zero: the bias of a convolution under a batch norm, say.
    pub zero_gradients: Vec<String>,
    /// Cached features of frozen blocks, in megabytes.
    pub cached_mb: f64,
    /// The peak resident memory of the process in megabytes, where the system tells.
    pub peak_rss_mb: Option<f64>,
}

/// How many samples each part of the data has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "AnySamples")]
#[non_exhaustive]
pub struct SampleCounts {
    /// Training samples.
    pub train: usize,
    /// Validation samples, where there was a validation.
    pub valid: Option<usize>,
    /// Test samples, where there was a test.
    pub test: Option<usize>,
}

/// What reports have had for samples.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnySamples {
    /// Version 0.1 counted the training samples alone.
    Train(usize),
    Parts {
        train: usize,
        valid: Option<usize>,
        test: Option<usize>,
    },
}

impl From<AnySamples> for SampleCounts {
    fn from(any: AnySamples) -> Self {
        match any {
            AnySamples::Train(train) => Self { train, valid: None, test: None },
            AnySamples::Parts { train, valid, test } => Self { train, valid, test },
        }
    }
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
    /// Mean loss over the epoch's samples, with label smoothing and augmentation; NaN in an epoch without a step.
    #[serde(with = "any_float")]
    pub train_loss: f64,
    /// Accuracy of the training batches as they were seen, in [0, 1]; `None` where a custom loop computes the loss.
    pub train_top1: Option<f64>,
    /// Mean norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Cross entropy on the validation data.
    #[serde(with = "any_float_option")]
    pub valid_loss: Option<f64>,
    /// Accuracy on the validation data, in [0, 1].
    pub valid_top1: Option<f64>,
    /// The 95 % confidence interval of `valid_top1`.
    #[serde(default)]
    pub valid_interval: Option<(f64, f64)>,
    /// Whether it was the best epoch so far when it ended.
    #[serde(default)]
    pub best: bool,
    /// Seconds of training, without validation.
    pub seconds: f64,
    /// Training samples per second. Where features are cached, these are samples of features and not of images.
    pub images_per_second: f64,
}

/// Where a run's time went, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timings {
    /// Computing features of frozen blocks once.
    pub features: f64,
    /// Training steps, loading included.
    pub train: f64,
    /// Validation.
    pub valid: f64,
    /// Everything.
    pub total: f64,
}

/// How many parameters learn and how many are frozen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ParameterCounts {
    /// Parameters that learn, the head's included.
    pub learning: usize,
    /// Parameters that are frozen.
    pub frozen: usize,
    /// The same by stage; the head is the last.
    pub stages: Vec<StageReport>,
}

/// How many parameters of one stage learn and how many are frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageReport {
    /// The stage.
    pub name: String,
    /// Parameters that learn.
    pub learning: usize,
    /// Parameters that are frozen.
    pub frozen: usize,
}

impl Report {
    /// The same without what differs from run to run: equal seeds save equal files.
    fn without_measurements(&self) -> Self {
        let seconds = Timings::default();
        let mut report = Self { date: None, seconds, peak_rss_mb: None, cached_mb: 0.0, ..self.clone() };
        for epoch in &mut report.epochs {
            (epoch.seconds, epoch.images_per_second) = (0.0, 0.0);
        }
        report
    }

    /// What a predictor saves of it.
    pub(super) fn as_story(&self) -> crate::Result<serde_json::Value> {
        serde_json::to_value(self.without_measurements())
            .map_err(|error| crate::Error::invalid("report", format!("cannot be written as JSON: {error}")))
    }

    /// Notes the evaluation on test data.
    pub(super) fn tested(&mut self, data: &dyn Dataset, evaluation: &Evaluation) {
        self.samples.test = Some(data.len());
        self.top1 = Some(evaluation.top1());
        self.test = Some(evaluation.summary());
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> crate::Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| crate::Error::invalid("report", format!("cannot be written as JSON: {error}")))
    }
}

/// The largest resident memory of this process in megabytes, on Linux.
pub(super) fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
