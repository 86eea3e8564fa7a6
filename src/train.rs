//! Training: a session that trains step by step, its state as a value, and `fit`, which is a thin wrapper around it.
//!
//! A `RunState` is a `Position` in the plan, a `Snapshot` of the tensors, the optimizer's moments and the `Report` so far.

mod anchors;
mod audit;
mod averages;
mod best;
mod cancel;
mod cross_validation;
mod event;
mod fine_tuner;
mod fit;
mod fit_loop;
mod fitted;
mod head_fit;
mod learner;
mod listener;
mod logs;
mod lr_curve;
mod memory;
mod model;
mod pending;
mod phase;
mod position;
mod progress;
mod refit;
mod run_dir;
mod run_state;
mod sampler;
mod session;
mod setup;
mod snapshot;
mod trial;
#[cfg(test)]
mod waves;

pub use cancel::Cancel;
pub use cross_validation::{CrossValidation, Fold, Folds};
pub use event::Event;
pub use fine_tuner::FineTuner;
pub use fitted::Fitted;
#[cfg(feature = "progress")]
pub use logs::progress_bars;
pub use logs::{csv_lines, json_lines, progress_lines, tensorboard};
pub use lr_curve::{LrCurve, LrPoint, LrRange};
pub use run_state::RunState;
pub use session::Session;
