//! Listeners that write what happens in a run.

#[cfg(feature = "progress")]
mod bars;
mod csv;
mod json_lines;
mod lines;
mod tensorboard;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(feature = "progress")]
use super::event::Event; // for the bars
#[cfg(feature = "progress")]
pub use bars::progress_bars;
pub use csv::csv_lines;
pub use json_lines::json_lines;
pub use lines::progress_lines;
pub use tensorboard::tensorboard;
