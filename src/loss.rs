//! The loss that training minimises.

use crate::data::Targets;
use crate::error::{Error, Result};
use crate::metrics::Task;
use crate::ops::{LossTerms, cross_entropy, weighted_loss};
use crate::schedule::is_zero;
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// A loss over logits (N, classes) and the targets of a batch.
///
/// The targets decide its form: for one class per sample the cross entropy of a softmax, for lists of labels (multi-label)
/// the binary cross entropy of a sigmoid per class.
///
/// ```
/// use candle_finetune::{ClassWeights, Loss, Targets};
/// use candle_finetune::candle_core::{Device, Tensor};
///
/// let logits = Tensor::new(&[[0f32, 0.0], [0.0, 0.0]], &Device::Cpu)?;
/// let loss = Loss::cross_entropy().label_smoothing(0.1).forward(&logits, &Targets::Classes(vec![0, 1]))?;
/// assert!((loss.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
///
/// let focal = Loss::cross_entropy().focal(2.0).class_weights(ClassWeights::Given(vec![0.5, 1.0]));
/// let loss = focal.forward(&logits, &Targets::Classes(vec![0, 1]))?;
/// assert!((loss.to_scalar::<f32>()? - 0.25 * 2f32.ln()).abs() < 1e-6);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Loss {
    /// Label smoothing in [0, 1): the fraction of each target that is spread evenly over all classes (Szegedy et al.
    /// 2015, arXiv 1512.00567); for lists of labels, over yes and no.
    pub label_smoothing: f64,
    /// How strongly samples that are recognised already are down-weighted: the exponent of (1 - p) in the focal loss
    /// (Lin et al. 2017, arXiv 1708.02002), usually 2; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub focal: f64,
    /// The weights of the classes.
    #[serde(default, skip_serializing_if = "ClassWeights::is_even")]
    pub class_weights: ClassWeights,
}

/// How much the classes count in the loss.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ClassWeights {
    /// All samples count the same.
    #[default]
    Even,
    /// By the training data, so that rare classes count as much as frequent ones: samples / (classes x samples of the
    /// class), scikit-learn's "balanced". For lists of labels the positive terms of a class are weighted by its samples
    /// without the label / its samples with it.
    Balanced,
    /// A weight for each class, in their order. For lists of labels it weights the positive terms (PyTorch's
    /// `pos_weight`).
    Given(Vec<f64>),
}

impl ClassWeights {
    fn is_even(&self) -> bool {
        *self == Self::Even
    }
}

impl Loss {
    /// Cross entropy in nats, the mean over the batch: softmax cross entropy for one class per sample, hard or soft; for
    /// lists of labels binary cross entropy, the mean over the classes too.
    pub fn cross_entropy() -> Self {
        Self { label_smoothing: 0.0, focal: 0.0, class_weights: ClassWeights::Even }
    }

    /// Sets the label smoothing in [0, 1): the fraction of each target that is spread evenly over all classes.
    pub fn label_smoothing(mut self, smoothing: f64) -> Self {
        self.label_smoothing = smoothing;
        self
    }

    /// Sets the focal exponent, 0 or more.
    pub fn focal(mut self, exponent: f64) -> Self {
        self.focal = exponent;
        self
    }

    /// Sets the weights of the classes. With one class per sample the loss is divided by the sum of its samples' weights,
    /// as in PyTorch.
    pub fn class_weights(mut self, weights: ClassWeights) -> Self {
        self.class_weights = weights;
        self
    }

    /// The loss as a scalar tensor with a graph.
    ///
    /// # Errors
    /// If a label is out of range, a setting is not in its range, there are not as many weights as classes, or the weights
    /// are [`ClassWeights::Balanced`]: only a session knows the training data, and
    /// [`Session::loss`](crate::Session::loss) has them.
    pub fn forward(&self, logits: &Tensor, targets: &Targets) -> Result<Tensor> {
        let task = Task::of(targets);
        let (n, classes) = logits.dims2()?;
        let dense = targets.dense(classes, logits.device())?;
        if let Some((setting, problem)) = self.problem() {
            return Err(Error::invalid(setting, problem));
        }
        self.check_classes(classes)?;
        let weights = match &self.class_weights {
            ClassWeights::Even => None,
            ClassWeights::Given(weights) => Some(weights.clone()),
            ClassWeights::Balanced => {
                let problem = "balanced weights need the training data; use `Session::loss`, or ClassWeights::Given";
                return Err(Error::invalid("class_weights", problem));
            }
        };
        let smooth = self.label_smoothing;
        let outcomes = if task == Task::Labels { 2 } else { classes };
        let smoothed = if smooth > 0.0 { dense.affine(1.0 - smooth, smooth / outcomes as f64)? } else { dense.clone() };
        if task == Task::Classes && self.focal == 0.0 && weights.is_none() {
            return Ok(cross_entropy(logits, &smoothed)?);
        }
        let divisor = match (task, &weights) {
            (Task::Labels, _) => (n * classes) as f64,
            (Task::Classes, None) => n as f64,
            (Task::Classes, Some(weights)) => {
                let rows = dense.to_dtype(candle_core::DType::F64)?.to_vec2::<f64>()?;
                let sum: f64 = rows.iter().map(|row| row.iter().zip(weights).map(|(t, w)| t * w).sum::<f64>()).sum();
                // A batch of classes without weight has no loss, and its gradient is zero.
                if sum > 0.0 { sum } else { 1.0 }
            }
        };
        let sigmoid = task == Task::Labels;
        Ok(weighted_loss(logits, &smoothed, LossTerms { sigmoid, gamma: self.focal, weights, divisor })?)
    }

    /// The first setting out of its range, with what is wrong.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Some(("label_smoothing", format!("{} is not in [0, 1)", self.label_smoothing)));
        }
        if !(self.focal.is_finite() && self.focal >= 0.0) {
            return Some(("focal", format!("{}; it must be finite and not negative", self.focal)));
        }
        if let ClassWeights::Given(weights) = &self.class_weights {
            if let Some(weight) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
                return Some(("class_weights", format!("{weight}; weights must be finite and not negative")));
            }
            if weights.iter().all(|weight| *weight == 0.0) {
                return Some(("class_weights", "are all 0; give a class a weight".into()));
            }
        }
        None
    }

    /// Refuses another number of weights than classes.
    pub(crate) fn check_classes(&self, classes: usize) -> Result<()> {
        match &self.class_weights {
            ClassWeights::Given(weights) if weights.len() != classes => {
                let problem = format!("has {} weights for {classes} classes", weights.len());
                Err(Error::invalid("class_weights", problem))
            }
            _ => Ok(()),
        }
    }

    /// The same with weights computed from the data: `counts` gives the samples of each class, of `samples` in all.
    pub(crate) fn resolved(&self, task: Task, counts: impl FnOnce() -> Vec<f64>, samples: usize) -> Self {
        if self.class_weights != ClassWeights::Balanced {
            return self.clone();
        }
        let counts = counts();
        let (samples, present) = (samples as f64, counts.iter().filter(|count| **count > 0.0).count() as f64);
        // A class without samples has no terms that a weight could scale.
        let weight = |&count: &f64| match task {
            _ if count == 0.0 => 1.0,
            Task::Classes => samples / (present * count),
            Task::Labels => (samples - count) / count,
        };
        // A label that every sample has is learned from its positive terms alone.
        let weight = |count: &f64| Some(weight(count)).filter(|weight| *weight > 0.0).unwrap_or(1.0);
        Self { class_weights: ClassWeights::Given(counts.iter().map(weight).collect()), ..self.clone() }
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
            // Weights of 1 change nothing, nor does a weight that all classes share.
            for weight in [1.0, 2.5] {
                let weighted = loss.clone().class_weights(ClassWeights::Given(vec![weight; 3]));
                let value = weighted.forward(&logits, &Targets::Classes(vec![0, 2])).unwrap();
                assert!((value.to_scalar::<f64>().unwrap() - hard).abs() < 1e-6);
            }
        }
    }

    /// PyTorch, float64: `F.cross_entropy(logits, classes, weight=w, label_smoothing=s)` and
    /// `F.binary_cross_entropy_with_logits(logits, labels, pos_weight=w)`.
    #[test]
    fn class_weights_are_pytorchs() {
        let logits = Tensor::new(&[[1f64, 2.0, 3.0], [0.0, 0.0, 0.5]], &Device::Cpu).unwrap();
        let weights = ClassWeights::Given(vec![0.5, 1.0, 2.0]);
        let value = |loss: Loss, targets: &Targets| loss.forward(&logits, targets).unwrap().to_scalar::<f64>().unwrap();
        let plain = Loss::cross_entropy().class_weights(weights);
        let hard = Targets::Classes(vec![0, 2]);
        assert!((value(plain.clone(), &hard) - 1.117_022_608).abs() < 1e-8);
        assert!((value(plain.clone().label_smoothing(0.1), &hard) - 1.098_079_542).abs() < 1e-6);
        let labels = Tensor::new(&[[1f32, 0.0, 1.0], [0.0, 0.0, 1.0]], &Device::Cpu).unwrap();
        assert!((value(plain, &Targets::Labels(labels)) - 0.785_863_648).abs() < 1e-8);
    }

    /// scikit-learn: `compute_class_weight("balanced", classes=[0, 1, 2], y=[0] * 6 + [1] * 3 + [2])`.
    #[test]
    fn balanced_weights_are_scikit_learns() {
        let balanced = Loss::cross_entropy().class_weights(ClassWeights::Balanced);
        let given = |task, counts: &[f64]| balanced.resolved(task, || counts.to_vec(), 10).class_weights;
        let expected = vec![10.0 / 18.0, 10.0 / 9.0, 10.0 / 3.0];
        assert_eq!(given(Task::Classes, &[6.0, 3.0, 1.0]), ClassWeights::Given(expected));
        assert_eq!(given(Task::Labels, &[5.0, 2.0, 0.0, 10.0]), ClassWeights::Given(vec![1.0, 4.0, 1.0, 1.0]));
        let logits = Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = balanced.forward(&logits, &Targets::Classes(vec![0])).unwrap_err().to_string();
        assert!(error.contains("Session::loss"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let logits = Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let plain = Loss::cross_entropy;
        for (loss, part) in [
            (plain().label_smoothing(1.0), "label_smoothing"),
            (plain().focal(-1.0), "focal"),
            (plain().focal(f64::NAN), "focal"),
            (plain().class_weights(ClassWeights::Given(vec![1.0])), "1 weights for 2 classes"),
            (plain().class_weights(ClassWeights::Given(vec![1.0, -1.0])), "not negative"),
            (plain().class_weights(ClassWeights::Given(vec![0.0, 0.0])), "all 0"),
        ] {
            let error = loss.forward(&logits, &Targets::Classes(vec![0])).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
