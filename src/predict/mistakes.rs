//! The most confident mistakes of a predictor.

use super::Predictor;
use crate::data::{Dataset, Targets, largest};
use crate::error::{Error, Result};
use crate::metrics::Task;
use candle_core::{DType, Device};
use serde::Serialize;
use std::sync::Arc;

/// A sample whose predicted class is not its own. See [`Predictor::mistakes`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Mistake {
    /// The sample's index in the dataset.
    pub index: usize,
    /// The sample's name: its file, or `sample 5` for one without a name.
    pub name: String,
    /// The true class, an index into the labels; of a soft target the most probable one.
    pub truth: u32,
    /// The predicted class.
    pub predicted: u32,
    /// The probability of the predicted class, in [0, 1].
    pub probability: f32,
    /// The probability of the true class, in [0, 1].
    pub of_truth: f32,
}

impl Predictor {
    /// The samples whose predicted class is wrong, by falling probability of the wrong class, and among equal ones by
    /// index; at most `most` of them. The first ones are often samples with a wrong label, or images that show several
    /// classes.
    ///
    /// All samples pass the network in batches of 32, as in [`Predictor::evaluate`], and only `most` mistakes are kept
    /// in memory. With `usize::MAX` there are as many as the evaluation counts.
    ///
    /// ```
    /// use candle_finetune::{Predictor, Source, TensorDataset, candle_core::{Device, Tensor}};
    ///
    /// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 12288.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((4, 3, 32, 32))?;
    /// let data = TensorDataset::new(images, vec![0, 1, 2, 3], predictor.labels().to_vec())?;
    /// for mistake in predictor.mistakes(&data, 10)? {
    ///     let label = |class: u32| &predictor.labels()[class as usize];
    ///     println!("{}: {} as {}", mistake.name, label(mistake.truth), label(mistake.predicted));
    /// }
    /// # assert!(predictor.mistakes(&data, 2)?.len() == 2);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Predictor::evaluate`]; [`Error::NotFinite`] with the name of a sample whose logits are not finite, since it
    /// has no predicted class; and [`Error::Invalid`] for lists of labels (multi-label targets).
    pub fn mistakes<D: Dataset + Clone + 'static>(&self, data: &D, most: usize) -> Result<Vec<Mistake>> {
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let found = self.most_confident(&data, most);
        // Later work does not need the memory of large batches.
        crate::ops::release_pool();
        found
    }

    fn most_confident(&self, data: &Arc<dyn Dataset>, most: usize) -> Result<Vec<Mistake>> {
        let (mut worst, mut done) = (vec![], 0);
        self.inference.each(data, None, |logits, targets| {
            if matches!(targets, Targets::Labels(_)) || self.task() == Task::Labels {
                let problem = "are lists of labels; mistakes are found where each sample has one class";
                return Err(Error::invalid("targets", problem));
            }
            let rows = |tensor: &candle_core::Tensor| -> Result<Vec<Vec<f32>>> {
                Ok(tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?)
            };
            let probabilities = rows(&Task::Classes.probabilities(logits)?)?;
            for ((row, logits), truth) in probabilities.iter().zip(rows(logits)?).zip(targets.classes()?) {
                if !logits.iter().all(|v| v.is_finite()) {
                    return Err(Error::NotFinite { what: format!("the logits of {}", data.info(done)) });
                }
                // Of the logits, as an evaluation takes it: their probabilities can be equal by rounding.
                let predicted = largest(&logits) as u32;
                if predicted != truth {
                    let of = |class: u32| row.get(class as usize).copied().unwrap_or(0.0);
                    let (probability, of_truth) = (of(predicted), of(truth));
                    worst.push(Mistake { index: done, name: String::new(), truth, predicted, probability, of_truth });
                }
                done += 1;
            }
            worst.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.index.cmp(&b.index)));
            worst.truncate(most);
            Ok(())
        })?;
        worst.iter_mut().for_each(|mistake| mistake.name = data.info(mistake.index).to_string());
        Ok(worst)
    }
}
