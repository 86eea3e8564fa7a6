//! Training: what a session does, and the short client of it that `fit` is.

mod audit;
mod best;
mod event;
mod feature_cache;
mod feature_file;
mod features;
mod fine_tuner;
mod progress;
mod session;
mod store;

pub use event::{Event, progress_lines};
pub use feature_cache::FeatureCache;
pub use fine_tuner::{FineTuner, Fitted};
pub use session::Session;
