//! Fine-tune pretrained vision networks on your own images.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
mod error;
mod nn;
mod ops;
mod params;
mod rng;

pub use arch::{Arch, Fit, InputSpec, Interpolation, Layout};
pub use candle_core;
pub use error::{BoxError, Error, Result};
pub use params::Block;
