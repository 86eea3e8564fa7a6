//! Classifiers in closed form: how well features separate classes, and heads that are fitted instead of trained.

mod columns;
mod fit;
mod lasso;
mod matrix;
mod ridge;
mod rows;
mod select;
mod views;

pub(crate) use columns::Columns;
pub(crate) use fit::{Known, MOST_SIDE, fit};
pub(crate) use ridge::{Gram, Labels, Verdict};
pub(crate) use rows::{Classes, targets, units};
pub(crate) use select::select;
pub(crate) use views::judge_views;
