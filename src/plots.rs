//! Pictures of what a network has learned, and the page of a run.

mod canvas;
mod chart;
mod filters;
mod grid;
mod lr_curve;
mod overlay;
mod page;
mod probes;
mod thumbnail;
mod ticks;
mod top_activations;

pub use grid::PictureGrid;
pub use page::ReportPage;
pub use top_activations::TopActivations;
