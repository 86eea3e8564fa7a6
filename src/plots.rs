//! Pictures of what a network has learned.

mod canvas;
mod chart;
mod filters;
mod grid;
mod overlay;
mod top_activations;

pub use grid::PictureGrid;
pub use top_activations::TopActivations;
