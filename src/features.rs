//! What frozen blocks make of samples: computed once, cached, and shared by training, validation, probes and folds.

mod cache;
mod extractor;
mod file;
mod key;
mod set;

pub use cache::FeatureCache;
pub use extractor::{Cut, FeatureExtractor};
pub use set::FeatureSet;

pub(crate) use extractor::Weight;
