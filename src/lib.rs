// The README's snippets use files and the hub, and so are this page where both are there. Its pictures have paths within
// the repository, which mean nothing on docs.rs: of two definitions of a link the first one counts.
#![doc = "[probes]: https://raw.githubusercontent.com/candle-finetune/candle-finetune/HEAD/docs/probes.png"]
#![doc = "[grad-cam]: https://raw.githubusercontent.com/candle-finetune/candle-finetune/HEAD/docs/grad_cam.png"]
#![doc = "[report]: https://raw.githubusercontent.com/candle-finetune/candle-finetune/HEAD/docs/report.png"]
#![doc = ""]
#![cfg_attr(all(feature = "hub", feature = "image"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "hub", feature = "image")),
    doc = "Fine-tunes pretrained vision networks on your own images, over Candle tensors. See README.md."
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The library returns errors and leaves printing to programs; examples, benches and tests are programs.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod advisor;
mod arch;
mod backbone;
#[doc(hidden)]
pub mod bench;
mod blueprint;
mod data;
mod error;
mod features;
mod fingerprint;
mod forecast;
mod freeze;
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod inference;
mod input_spec;
mod loss;
mod metrics;
mod nn;
mod ops;
mod optim;
mod params;
mod plan;
#[cfg(feature = "plots")]
mod plots;
mod predict;
mod probe;
mod report;
mod rng;
mod schedule;
mod source;
mod strategy;
mod train;
mod weights;
#[cfg(feature = "zoo")]
mod zoo;

pub use advisor::{
    Advice, Advisor, CurvePoint, Evidence, Probe, SizeFigures, StageProbe, StrategyCost, Trial, ViewProbe,
};
pub use arch::{Arch, Naming};
pub use backbone::Backbone;
pub use blueprint::{Block, Blueprint, Pooling};
pub use candle_core;
pub use data::{
    Augment, Batch, Batches, Dataset, Image, Joined, Loader, Sample, SampleInfo, Subset, Target, Targets,
    TensorDataset, Transform, VecDataset, k_fold, split,
};
#[cfg(feature = "image")]
pub use data::{CsvOptions, Duplicates, FolderLayout, FolderOptions, ImageFolder, Splits};
pub use error::{BoxError, Divergence, Error, HubErrorKind, Result, WeightsMismatch};
pub use features::{Cut, FeatureCache, FeatureExtractor, FeatureSet};
pub use forecast::{Forecast, MultiplyAdds};
pub use freeze::{BatchNormMode, FreezePolicy};
pub use head::{Head, HeadKind};
pub use input_spec::{CropMode, InputSpec, Interpolation};
pub use loss::{ClassWeights, Loss};
pub use metrics::{ClassScores, Confusion, Evaluation, Metric, Scores, Task, wilson_interval};
pub use nn::{BlockInfo, Conv2d, Layer, LayerTensors, Linear};
pub use optim::{Optimizer, OptimizerRule};
pub use params::TensorInit;
pub use plan::{HeadStart, Init, Phase, Plan, Recipe, Sampling};
#[cfg(feature = "plots")]
pub use plots::{PictureGrid, ReportPage, TopActivations};
pub use predict::{GradCam, Mistake, Prediction, Predictor};
pub use report::{
    Averaged, EpochReport, FeatureCounts, HeadFit, ParameterCounts, Refit, Report, SampleCounts, StageParameters,
    Timings,
};
pub use schedule::{Schedule, ScheduleShape};
pub use source::Source;
#[cfg(feature = "hub")]
pub use source::{HubDownload, HubUpload};
pub use strategy::{DataSize, Similarity, Strategy};
#[cfg(feature = "progress")]
pub use train::progress_bars;
pub use train::{
    Cancel, CrossValidation, Event, FineTuner, Fitted, Fold, Folds, LrCurve, LrPoint, LrRange, RunState, Session,
    csv_lines, json_lines, progress_lines, tensorboard,
};
#[cfg(feature = "zoo")]
pub use zoo::ZooModel;
