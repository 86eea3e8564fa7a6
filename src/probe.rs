//! How well features separate classes: cross-validated classifiers in closed form.

mod matrix;
mod ridge;

pub(crate) use ridge::{Gram, Labels, Verdict};
