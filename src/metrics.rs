//! Evaluation: `Scores` accumulates results per batch, `Evaluation` holds them, `Metric` computes a value.

mod confusion;
mod evaluation;
mod float;
mod interval;
mod json;
mod labels;
mod metric;
mod ranking;
mod scores;
mod task;

pub use confusion::Confusion;
pub use evaluation::{ClassScores, Evaluation};
pub(crate) use float::{any_float, any_float_option};
pub(crate) use interval::interval_of_units;
pub use interval::wilson_interval;
pub(crate) use labels::{THRESHOLD, binary_cross_entropy};
pub use metric::Metric;
pub use scores::Scores;
pub use task::Task;

#[cfg(test)]
mod tests;
