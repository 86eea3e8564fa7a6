//! What the crate knows about each architecture.

mod input_spec;

pub use input_spec::{Fit, InputSpec, Interpolation};
