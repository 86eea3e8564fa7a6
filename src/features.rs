//! Outputs of frozen blocks, computed once and cached.

mod cache;
mod extractor;
mod file;
mod key;
mod set;

pub use cache::FeatureCache;
pub use extractor::{Cut, FeatureExtractor};
pub use set::FeatureSet;

pub(crate) use extractor::Weight;
