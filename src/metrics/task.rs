//! The prediction task.

use crate::data::Targets;
use crate::error::{Error, Result};
use crate::ops::softmax;
use candle_core::Tensor;

/// The kind of prediction, which determines how logits become probabilities and what is counted as correct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Task {
    /// One class of several: softmax, cross entropy, accuracy.
    #[default]
    Classes,
}

impl Task {
    /// The task of these targets.
    ///
    /// # Errors
    /// For lists of labels (multi-label targets), which no built-in loss and no evaluation supports yet.
    ///
    /// ```
    /// use candle_finetune::{Targets, Task};
    /// assert_eq!(Task::of(&Targets::Classes(vec![0, 2]))?, Task::Classes);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn of(targets: &Targets) -> Result<Self> {
        match targets {
            Targets::Classes(_) | Targets::Soft(_) => Ok(Self::Classes),
            Targets::Labels(_) => Err(Error::invalid(
                "targets",
                "are lists of labels; cross entropy and evaluation take one class per sample and do not support \
                 multi-label targets; a custom loss can (`Session::backward_step`)",
            )),
        }
    }

    /// Probabilities (N, classes) from logits (N, classes).
    pub(crate) fn probabilities(self, logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Classes => Ok(softmax(logits)?),
        }
    }

    /// How many samples of a training batch the logits (N, classes) get right, and how many there are.
    pub(crate) fn correct(self, logits: &Tensor, targets: &Targets) -> Result<(usize, usize)> {
        match self {
            Self::Classes => {
                let predicted = logits.detach().argmax(1)?.to_vec1::<u32>()?;
                let truth = targets.classes()?;
                let correct = predicted.iter().zip(&truth).filter(|(p, t)| p == t).count();
                Ok((correct, truth.len()))
            }
        }
    }
}
