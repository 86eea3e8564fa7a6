//! The report of a run: settings, epochs, results.

mod text;

use crate::data::Dataset;
use crate::metrics::{Evaluation, Metric, any_float, any_float_option};
use crate::plan::Plan;
use crate::schedule::is_zero;
use crate::strategy::Strategy;
use serde::{Deserialize, Serialize};

/// The report of a run. `Display` prints a short summary, [`Report::table`] has a row per epoch, and
/// [`Report::to_json`] has everything.
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
    /// The origin of the pretrained weights: a repository on the hub, or a file name.
    #[serde(default)]
    pub base_model: Option<String>,
    /// The strategy that was named or made the plan; `None` for a custom plan.
    pub strategy: Option<Strategy>,
    /// The plan that was followed, with all settings applied.
    pub plan: Plan,
    /// Settings in which the plan differs from its strategy's, as text; empty for a custom plan.
    pub overrides: Vec<String>,
    /// Settings and circumstances that are probably a mistake.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why training ended before the end of its plan, if it did: it diverged, it was cancelled, or the training on all
    /// samples failed. The best epoch so far was kept; without one, the weights as they were.
    #[serde(default)]
    pub stopped: Option<String>,
    /// The random seed.
    pub seed: u64,
    /// The metric of the validation data that chose the best epoch.
    #[serde(default)]
    pub metric: Metric,
    /// For lists of labels: the probability from which each label counts as predicted, chosen on the validation data, whose
    /// figures in this report are those at these thresholds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Vec<f32>>,
    /// Height and width of the network's input in pixels.
    #[serde(default)]
    pub input_size: (usize, usize),
    /// The number of samples in each part.
    pub samples: SampleCounts,
    /// Broken samples that were left out on request, of the training and the validation data; `None` if a dataset does
    /// not count them ([`Dataset::skipped`]).
    pub skipped: Option<usize>,
    /// The classes.
    pub classes: Vec<String>,
    /// How the head was fitted before the first phase, if the plan says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_fit: Option<HeadFit>,
    /// Every epoch of every phase.
    pub epochs: Vec<EpochReport>,
    /// The epoch, counted over all phases from 1, whose weights were kept; 0 for the head as it was fitted, before the
    /// first phase; `None` for the weights at the end of the run.
    pub best_epoch: Option<usize>,
    /// Whether the kept weights are the moving averages ([`Plan::ema`](crate::Plan::ema)) after that epoch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub averaged: bool,
    /// Validation accuracy of the kept weights, in [0, 1], if they were validated.
    pub valid_top1: Option<f64>,
    /// The validation of the kept weights.
    #[serde(default)]
    pub valid: Option<Evaluation>,
    /// The accuracy on test data, in [0, 1]; `None` without test data. See [`Fitted::test`](crate::Fitted::test).
    pub top1: Option<f64>,
    /// The evaluation on test data.
    #[serde(default)]
    pub test: Option<Evaluation>,
    /// The second training on all data, whose weights the predictor has ([`FineTuner::refit`](crate::FineTuner::refit)).
    /// Epochs and validation are those of the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refit: Option<Refit>,
    /// How long each part took, in seconds.
    pub seconds: Timings,
    /// Trainable and frozen parameters in the last phase.
    pub parameters: ParameterCounts,
    /// Parameters whose first gradient was exactly zero: the bias of a convolution under a batch norm, say.
    pub zero_gradients: Vec<String>,
    /// Cached features of frozen blocks, in megabytes.
    pub cached_mb: f64,
    /// How often features of frozen blocks were computed for the cache, and how often they were found there.
    #[serde(default, skip_serializing_if = "FeatureCounts::is_none")]
    pub features: FeatureCounts,
    /// The peak resident memory of the process in megabytes, where the system provides it.
    pub peak_rss_mb: Option<f64>,
}

/// Rows of features: of a sample in one view, at one cut of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FeatureCounts {
    /// Computed and stored by this run.
    pub computed: usize,
    /// Found in the cache: computed by this run before or by another, the advice say.
    pub reused: usize,
}

/// A second training, on training and validation data together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Refit {
    /// Samples that it was trained on.
    pub samples: usize,
    /// Steps in each phase: as many as the first training made until its best epoch.
    pub steps: Vec<usize>,
    /// Whose accuracy the report's validation is, and what it has chosen.
    pub validation: String,
    /// Seconds that it took.
    pub seconds: f64,
}

/// The number of samples in each part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "AnySamples")]
#[non_exhaustive]
pub struct SampleCounts {
    /// Training samples.
    pub train: usize,
    /// Validation samples, if there was a validation.
    pub valid: Option<usize>,
    /// Test samples, if there was a test.
    pub test: Option<usize>,
}

/// The number of samples as reports of all versions write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum AnySamples {
    /// Early reports have the training samples alone.
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

/// How a head was fitted in closed form ([`HeadStart`](crate::HeadStart)).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HeadFit {
    /// Training samples that it was fitted to: all, or a sample of them.
    pub samples: usize,
    /// Columns of the features that the head keeps.
    pub kept: usize,
    /// All columns of the features.
    pub columns: usize,
    /// The ridge penalty, as a multiple of the mean of the Gram matrix's diagonal.
    pub penalty: f64,
    /// What the answers of the regression were multiplied by, to serve as logits.
    pub temperature: f64,
    /// Accuracy on training samples that were left out, in [0, 1].
    pub top1: f64,
    /// Cross entropy of the fitted head on the validation data, if it was validated
    /// ([`Session::offer_start`](crate::Session::offer_start)).
    #[serde(default, with = "any_float_option")]
    pub valid_loss: Option<f64>,
    /// Accuracy of the fitted head on the validation data, in [0, 1].
    #[serde(default)]
    pub valid_top1: Option<f64>,
}

/// The report of one epoch.
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
    /// Accuracy on the training batches during the epoch, in [0, 1]; `None` where a custom loop computes the loss.
    pub train_top1: Option<f64>,
    /// Mean norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Steps of the optimizer.
    #[serde(default)]
    pub steps: usize,
    /// Cross entropy on the validation data.
    #[serde(with = "any_float_option")]
    pub valid_loss: Option<f64>,
    /// Accuracy on the validation data, in [0, 1].
    pub valid_top1: Option<f64>,
    /// The 95 % confidence interval of `valid_top1`.
    #[serde(default)]
    pub valid_interval: Option<(f64, f64)>,
    /// The run's metric ([`Report::metric`]) on the validation data.
    #[serde(default, with = "any_float_option")]
    pub valid_metric: Option<f64>,
    /// The validation of the moving averages of the weights, if the plan keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub averaged: Option<Averaged>,
    /// Whether it was the best epoch so far when it ended.
    #[serde(default)]
    pub best: bool,
    /// Seconds of training, without validation.
    pub seconds: f64,
    /// Training samples per second. Where features are cached, a sample is a row of features and not an image.
    pub images_per_second: f64,
}

/// The validation of the moving averages of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Averaged {
    /// Cross entropy.
    #[serde(with = "any_float")]
    pub loss: f64,
    /// Accuracy in [0, 1].
    pub top1: f64,
    /// The run's metric ([`Report::metric`]).
    #[serde(with = "any_float_option")]
    pub metric: Option<f64>,
}

/// How long each part of a run took, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Timings {
    /// Advice on the strategy, where there was any.
    #[serde(default)]
    pub advice: f64,
    /// Computing the features of frozen blocks, once.
    pub features: f64,
    /// Training steps, loading included.
    pub train: f64,
    /// Validation.
    pub valid: f64,
    /// Checkpoints of a run directory.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub checkpoints: f64,
    /// The whole run.
    pub total: f64,
}

/// The number of trainable and of frozen parameters.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ParameterCounts {
    /// Trainable parameters, the head's included.
    pub learning: usize,
    /// Parameters that are frozen.
    pub frozen: usize,
    /// The same for each stage; the last one is the head.
    pub stages: Vec<StageParameters>,
}

/// The number of trainable and of frozen parameters of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageParameters {
    /// The stage's name.
    pub name: String,
    /// Trainable parameters.
    pub learning: usize,
    /// Parameters that are frozen.
    pub frozen: usize,
}

impl FeatureCounts {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Report {
    /// The same without measurements, which differ from run to run, so that equal seeds save equal files.
    pub(crate) fn without_measurements(&self) -> Self {
        let seconds = Timings::default();
        let features = FeatureCounts::default();
        let mut report = Self { date: None, seconds, peak_rss_mb: None, cached_mb: 0.0, features, ..self.clone() };
        report.refit.iter_mut().for_each(|refit| refit.seconds = 0.0);
        for epoch in &mut report.epochs {
            (epoch.seconds, epoch.images_per_second) = (0.0, 0.0);
        }
        report
    }

    /// The part of it that a predictor saves, as JSON.
    pub(crate) fn saved_form(&self) -> crate::Result<serde_json::Value> {
        serde_json::to_value(self.without_measurements())
            .map_err(|error| crate::Error::invalid("report", format!("cannot be written as JSON: {error}")))
    }

    /// Adds the evaluation on test data.
    pub(crate) fn tested(&mut self, data: &dyn Dataset, evaluation: &Evaluation) {
        self.samples.test = Some(data.len());
        self.top1 = Some(evaluation.top1());
        self.test = Some(evaluation.summary());
    }

    /// The report as indented JSON.
    pub fn to_json(&self) -> crate::Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| crate::Error::invalid("report", format!("cannot be written as JSON: {error}")))
    }
}

/// The largest resident memory of this process in megabytes, on Linux.
pub(crate) fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
