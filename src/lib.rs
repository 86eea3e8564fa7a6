//! Fine-tune pretrained vision networks on your own images.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod arch;
mod backbone;
mod data;
mod embedded;
mod error;
mod freeze;
mod head;
mod metrics;
mod nn;
mod ops;
mod params;
mod rng;
mod schedule;
mod weights;

pub use arch::{Arch, Fit, InputSpec, Interpolation, Layout};
pub use backbone::{Backbone, Source};
pub use candle_core;
pub use data::{
    Augment, Batch, Batches, Dataset, Image, Loader, Sample, Subset, Target, Targets, TensorDataset, Transform,
    VecDataset, k_fold, split,
};
#[cfg(feature = "image")]
pub use data::{ImageFolder, Splits};
pub use error::{BoxError, Error, Result};
pub use freeze::{BatchNormMode, FreezePolicy};
pub use head::{Head, HeadKind};
pub use metrics::Evaluation;
pub use params::Block;
pub use schedule::{Schedule, Shape};
