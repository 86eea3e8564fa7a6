//! Fine-tune pretrained vision networks on your own images.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
mod error;
mod rng;
mod weights;

pub use arch::{Fit, InputSpec, Interpolation};
pub use candle_core;
pub use error::{BoxError, Error, Result};
