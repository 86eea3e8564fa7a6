//! What frozen blocks make of samples: computed once, cached, and shared by training, validation, probes and folds.

mod cache;
mod file;
mod key;
mod producer;
mod set;

pub use cache::FeatureCache;
pub use producer::{Cut, Producer};
pub use set::FeatureSet;

pub(crate) use producer::Weight;
