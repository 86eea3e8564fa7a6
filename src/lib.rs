// The README's snippets use files and the hub, and so are this page where both are there.
#![cfg_attr(all(feature = "hub", feature = "image"), doc = include_str!("../README.md"))]
#![cfg_attr(
    not(all(feature = "hub", feature = "image")),
    doc = "Fine-tunes pretrained vision networks on your own images, over Candle tensors. See README.md."
)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The library returns errors and leaves printing to programs; examples, benches and tests are programs.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod arch;
mod backbone;
#[doc(hidden)]
pub mod bench;
mod data;
mod embedded;
mod error;
mod fingerprint;
mod forecast;
mod freeze;
#[doc(hidden)]
pub mod fuzzing;
mod head;
#[cfg(feature = "hub")]
mod hub;
mod loss;
mod metrics;
mod nn;
mod ops;
mod optim;
mod params;
mod plan;
mod predict;
mod rng;
mod schedule;
mod strategy;
mod train;
mod weights;

pub use arch::{Arch, CropMode, InputSpec, Interpolation, Naming};
pub use backbone::{Backbone, Source};
pub use candle_core;
pub use data::{
    Augment, Batch, Batches, Dataset, Image, Loader, Sample, Subset, Target, Targets, TensorDataset, Transform,
    VecDataset, k_fold, split,
};
#[cfg(feature = "image")]
pub use data::{Duplicates, FolderLayout, FolderOptions, ImageFolder, Splits};
pub use error::{BoxError, Error, HubError, Mismatch, Result};
pub use forecast::Forecast;
pub use freeze::{BatchNormMode, FreezePolicy};
pub use head::{Head, HeadKind};
#[cfg(feature = "hub")]
pub use hub::{HubDownload, HubUpload};
pub use loss::Loss;
pub use metrics::{Confusion, Evaluation, wilson_interval};
pub use optim::{Optimizer, OptimizerRule};
pub use params::BlockInfo;
pub use plan::{Init, Phase, Plan};
pub use predict::{Prediction, Predictor};
pub use schedule::{Schedule, ScheduleShape};
pub use strategy::{DataSize, Similarity, Strategy};
pub use train::{
    EpochReport, Event, FeatureCache, FineTuner, Fitted, ParameterCounts, Report, SampleCounts, Session, StageReport,
    Timings, progress_lines,
};
