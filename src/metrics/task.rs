//! The prediction task.

use crate::data::{Dataset, Target, Targets};
use crate::error::{Error, Result};
use crate::ops::softmax;
use candle_core::{Device, Tensor};
use serde::Serialize;

/// The kind of prediction, which determines how logits become probabilities and what is counted as correct. The targets
/// of a dataset decide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Task {
    /// One class of several: softmax, cross entropy, accuracy.
    #[default]
    Classes,
    /// Any number of labels at once (multi-label): a sigmoid and a threshold per class, binary cross entropy. A sample is
    /// correct if each of its labels is.
    Labels,
}

impl Task {
    /// The task of these targets.
    ///
    /// ```
    /// use candle_finetune::{Targets, Task};
    /// assert_eq!(Task::of(&Targets::Classes(vec![0, 2])), Task::Classes);
    /// ```
    pub fn of(targets: &Targets) -> Self {
        match targets {
            Targets::Classes(_) | Targets::Soft(_) => Self::Classes,
            Targets::Labels(_) => Self::Labels,
        }
    }

    /// The task of one sample.
    pub(crate) fn of_target(target: &Target) -> Self {
        match target {
            Target::Class(_) | Target::Soft(_) => Self::Classes,
            Target::Labels(_) => Self::Labels,
        }
    }

    /// The task of a dataset: that of all its targets.
    ///
    /// # Errors
    /// If some samples have one class and others a list of labels.
    ///
    /// ```
    /// use candle_finetune::{Target, Task, TensorDataset};
    /// use candle_finetune::candle_core::{DType, Device, Tensor};
    /// let images = Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
    /// let targets = vec![Target::Labels(vec![0, 1]), Target::Labels(vec![])];
    /// let data = TensorDataset::from_targets(images, targets, vec!["hat".into(), "scarf".into()])?;
    /// assert_eq!(Task::of_data(&data)?, Task::Labels);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn of_data(data: &dyn Dataset) -> Result<Self> {
        let task = |i: usize| Self::of_target(&data.info(i).target);
        let first = if data.is_empty() { Self::Classes } else { task(0) };
        match (1..data.len()).find(|&i| task(i) != first) {
            None => Ok(first),
            Some(i) => {
                let (list, class) = if first == Self::Labels { (0, i) } else { (i, 0) };
                let problem = format!(
                    "{} has a list of labels and {} one class; give every sample a list, or none",
                    data.info(list),
                    data.info(class)
                );
                Err(Error::invalid("dataset", problem))
            }
        }
    }

    /// Refuses targets of another task than the network's.
    pub(crate) fn check(self, targets: &Targets) -> Result<()> {
        match (self, Self::of(targets)) {
            (Self::Classes, Self::Labels) => {
                let problem = "has lists of labels (multi-label); this network predicts one class per sample";
                Err(Error::invalid("targets", problem))
            }
            (Self::Labels, Self::Classes) => {
                let problem = "has one class per sample; this network predicts lists of labels (multi-label)";
                Err(Error::invalid("targets", problem))
            }
            _ => Ok(()),
        }
    }

    /// Probabilities (N, classes) from logits (N, classes).
    pub(crate) fn probabilities(self, logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Classes => Ok(softmax(logits)?),
            Self::Labels => Ok((logits.neg()?.exp()? + 1.0)?.recip()?),
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
            Self::Labels => {
                let truth = targets.dense(logits.dim(1)?, &Device::Cpu)?.to_vec2::<f32>()?;
                let positive = logits.detach().gt(0f64)?.to_vec2::<u8>()?;
                let all = |(row, truth): &(&Vec<u8>, &Vec<f32>)| {
                    row.iter().zip(truth.iter()).all(|(p, t)| (*p != 0) == (*t > 0.5))
                };
                Ok((positive.iter().zip(&truth).filter(all).count(), truth.len()))
            }
        }
    }
}
