//! The most confident mistakes of a predictor.

use super::Predictor;
use crate::data::{Dataset, largest};
use crate::error::{Error, Result};
use crate::metrics::Task;
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use std::sync::Arc;

/// A sample that is predicted wrongly. See [`Predictor::mistakes`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Mistake {
    /// The sample's index in the dataset.
    pub index: usize,
    /// The sample's name: its file, or `sample 5` for one without a name.
    pub name: String,
    /// The true class, an index into the labels; of a soft target the most probable one. With lists of labels all that
    /// the sample has, maybe none.
    pub truth: Vec<u32>,
    /// The predicted class; with lists of labels all that are predicted, maybe none.
    pub predicted: Vec<u32>,
    /// The wrong class. With lists of labels the one that is wrong most confidently: predicted, though the sample does not
    /// have it, or not predicted, though it has.
    pub wrong: u32,
    /// The probability that the network gives to the mistake, in [0, 1]: that of the wrong class or, of a label that is
    /// not predicted, one minus its own.
    pub probability: f32,
    /// The probability that the network gives to the truth, in [0, 1]: that of the true class or, with lists of labels,
    /// one minus the other.
    pub of_truth: f32,
}

impl Mistake {
    /// The true classes, the predicted ones and the wrong one in words, by the labels of the classes: `shirt + coat`,
    /// `no label`, and for a label that is not predicted `not coat`.
    pub fn words(&self, labels: &[String]) -> [String; 3] {
        let names = |classes: &[u32]| {
            let names = classes.iter().filter_map(|&class| labels.get(class as usize).map(String::as_str));
            let names = names.collect::<Vec<&str>>().join(" + ");
            if names.is_empty() { "no label".into() } else { names }
        };
        let not = if self.predicted.contains(&self.wrong) { "" } else { "not " };
        [names(&self.truth), names(&self.predicted), format!("{not}{}", names(&[self.wrong]))]
    }
}

impl Predictor {
    /// The samples whose predicted class is wrong, or one of whose labels is, by falling probability of the mistake, and
    /// among equal ones by index; at most `most` of them. The first ones are often samples with a wrong label, or images
    /// that show several classes.
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
    ///     let [truth, predicted, _] = mistake.words(predictor.labels());
    ///     println!("{}: {truth} as {predicted}", mistake.name);
    /// }
    /// # assert!(predictor.mistakes(&data, 2)?.len() == 2);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Predictor::evaluate`], and [`Error::NotFinite`] with the name of a sample whose logits are not finite, since it
    /// has no predicted class.
    pub fn mistakes<D: Dataset + Clone + 'static>(&self, data: &D, most: usize) -> Result<Vec<Mistake>> {
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let found = self.most_confident(&data, most);
        // Later work does not need the memory of large batches.
        crate::ops::release_pool();
        found
    }

    fn most_confident(&self, data: &Arc<dyn Dataset>, most: usize) -> Result<Vec<Mistake>> {
        let (task, classes) = (self.task(), self.labels().len());
        let (mut worst, mut done) = (vec![], 0);
        self.inference.each(data, None, |logits, targets| {
            task.check(targets)?;
            let rows = |tensor: &Tensor| -> Result<Vec<Vec<f32>>> {
                Ok(tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?)
            };
            let (probabilities, truths) = (rows(&task.probabilities(logits)?)?, targets.dense(classes, &Device::Cpu)?);
            for ((p, logits), truth) in probabilities.iter().zip(rows(logits)?).zip(rows(&truths)?) {
                if !logits.iter().all(|v| v.is_finite()) {
                    return Err(Error::NotFinite { what: format!("the logits of {}", data.info(done)) });
                }
                worst.extend(match task {
                    Task::Classes => wrong_class(done, p, &logits, &truth),
                    Task::Labels => wrong_label(done, p, &self.inference.labels_of(p), &truth),
                });
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

/// The most confident of the wrong labels of a sample. Like [`wrong_class`] it leaves the name to those that stay.
fn wrong_label(index: usize, p: &[f32], predicted: &[u32], truth: &[f32]) -> Option<Mistake> {
    let mut is_predicted = vec![false; p.len()];
    predicted.iter().for_each(|&class| is_predicted[class as usize] = true);
    let wrong = (0..p.len()).filter(|&class| is_predicted[class] != (truth[class] > 0.5));
    let all = wrong.map(|class| (class, if is_predicted[class] { p[class] } else { 1.0 - p[class] }));
    let (wrong, probability) = all.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    Some(Mistake {
        index,
        name: String::new(),
        truth: (0u32..).zip(truth).filter(|(_, t)| **t > 0.5).map(|(class, _)| class).collect(),
        predicted: predicted.to_vec(),
        wrong: wrong as u32,
        probability,
        of_truth: 1.0 - probability,
    })
}

fn wrong_class(index: usize, p: &[f32], logits: &[f32], truth: &[f32]) -> Option<Mistake> {
    // Of the logits, as an evaluation takes it: their probabilities can be equal by rounding.
    let (wrong, truth) = (largest(logits), largest(truth));
    (wrong != truth).then(|| Mistake {
        index,
        name: String::new(),
        truth: vec![truth as u32],
        predicted: vec![wrong as u32],
        wrong: wrong as u32,
        probability: p[wrong],
        of_truth: p[truth],
    })
}
