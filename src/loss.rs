//! The loss that training minimises.

use crate::data::Targets;
use crate::error::{Error, Result};
use crate::metrics::Task;
use crate::ops::cross_entropy;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// A loss over logits (N, classes) and the targets of a batch.
///
/// ```
/// use candle_finetune::{Loss, Targets};
/// use candle_finetune::candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f32, 0.0], [0.0, 0.0]], &Device::Cpu)?;
/// let loss = Loss::cross_entropy().label_smoothing(0.1).forward(&logits, &Targets::Classes(vec![0, 1]))?;
/// assert!((loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Loss {
    /// Label smoothing in [0, 1): the fraction of each target that is spread evenly over all classes (Szegedy et al.
    /// 2015, arXiv 1512.00567).
    pub label_smoothing: f64,
}

impl Loss {
    /// Softmax cross entropy for one class per sample, hard or soft; the mean over the batch, in nats.
    pub fn cross_entropy() -> Self {
        Self { label_smoothing: 0.0 }
    }

    /// Sets the label smoothing in [0, 1): the fraction of each target that is spread evenly over all classes.
    pub fn label_smoothing(mut self, smoothing: f64) -> Self {
        self.label_smoothing = smoothing;
        self
    }

    /// The loss as a scalar tensor with a graph.
    ///
    /// # Errors
    /// If a label is out of range, the targets are lists of labels, or the smoothing is not in [0, 1).
    pub fn forward(&self, logits: &Tensor, targets: &Targets) -> Result<Tensor> {
        let Task::Classes = Task::of(targets)?;
        let (_, classes) = logits.dims2()?;
        let dense = targets.dense(classes, logits.device())?;
        let smooth = self.label_smoothing;
        if !(0.0..1.0).contains(&smooth) {
            return Err(Error::invalid("label_smoothing", format!("{smooth} is not in [0, 1)")));
        }
        let dense = if smooth > 0.0 { dense.affine(1.0 - smooth, smooth / classes as f64)? } else { dense };
        Ok(cross_entropy(logits, &dense)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// PyTorch: `F.cross_entropy(logits, targets, label_smoothing=s)` in float64, for class ids and for probabilities.
    #[test]
    fn label_smoothing_is_pytorchs() {
        let logits = Tensor::new(&[[1f64, 2.0, 3.0], [0.0, 0.0, 0.5]], &Device::Cpu).unwrap();
        let soft = Tensor::new(&[[0.2f32, 0.3, 0.5], [1.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        for (smoothing, hard, of_soft) in [
            (0.0, 1.600_991_367, 1.200_991_367),
            (0.1, 1.567_658_034, 1.207_658_034),
            (0.3, 1.500_991_367, 1.220_991_367),
        ] {
            let loss = Loss::cross_entropy().label_smoothing(smoothing);
            let value = |targets: &Targets| loss.forward(&logits, targets).unwrap().to_scalar::<f64>().unwrap();
            let (a, b) = (value(&Targets::Classes(vec![0, 2])), value(&Targets::Soft(soft.clone())));
            assert!((a - hard).abs() < 1e-6 && (b - of_soft).abs() < 1e-6, "{smoothing}: {a} {b}");
        }
    }
}
