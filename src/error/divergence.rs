//! A training that has become infinite or NaN.

use super::text::shown_list;
use std::fmt;
use std::path::PathBuf;

/// What became infinite or NaN, where, and what to do.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// What it is: "training loss", "validation loss" or "gradients".
    pub what: &'static str,
    /// The optimizer step, from 1.
    pub step: usize,
    /// The value of the loss.
    pub loss: f64,
    /// The head's learning rate in that step, of a training loss or gradients.
    pub lr: Option<f64>,
    /// The parameters whose gradients are not finite.
    pub tensors: Vec<String>,
    /// The folder with the state before the step and the samples of its batch, of a run with a run directory.
    pub kept: Option<PathBuf>,
}

impl Divergence {
    pub(crate) fn of_loss(what: &'static str, step: usize, loss: f64, lr: Option<f64>) -> Self {
        Self { what, step, loss, lr, tensors: vec![], kept: None }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, step, loss, lr, tensors, kept } = self;
        if tensors.is_empty() {
            write!(f, "the {what} is {loss} at step {step}")?;
        } else {
            let (count, names) = (tensors.len(), shown_list(tensors.iter().map(String::as_str)));
            write!(
                f,
                "the {what} of {count} tensors are not finite at step {step}, where the loss is {loss:.4}: {names}"
            )?;
        }
        if let Some(lr) = lr {
            write!(f, ", learning rate {lr:.2e}")?;
        }
        f.write_str("; lower the learning rate, clip the gradients (Plan::clip), or check the images")?;
        if let Some(folder) = kept {
            write!(f, "; the state before the step and its samples are in {}", folder.display())?;
        }
        Ok(())
    }
}
