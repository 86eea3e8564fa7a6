//! Calibrated probabilities.

use super::Predictor;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::head::HeadKind;
use crate::metrics::{Task, binary_cross_entropy};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// The temperatures that are searched.
const RANGE: (f64, f64) = (0.01, 100.0);

/// The temperature is known to this factor.
const PRECISION: f64 = 1.0 + 1e-6;

impl Predictor {
    /// The same predictor with calibrated probabilities, and the temperature that the logits were divided by: the one
    /// with the least cross entropy on this data (temperature scaling, Guo et al. 2017, arXiv 1706.04599), for lists of
    /// labels with the least binary cross entropy. The most probable classes stay as they are, and so does the accuracy.
    /// The thresholds of labels are moved with the probabilities, in the report too.
    ///
    /// Use data that the network was not trained on, the validation data say; the report keeps the figures from before.
    /// The temperature is written into the head's last layer, so that a saved predictor has it.
    ///
    /// ```
    /// # use candle_finetune::{TensorDataset, candle_core::{Device, Tensor}};
    /// use candle_finetune::{Predictor, Source};
    ///
    /// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 61440.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((20, 3, 32, 32))?;
    /// # let valid = TensorDataset::new(images, (0..20).map(|i| i % 10).collect(), predictor.labels().to_vec())?;
    /// let (calibrated, temperature) = predictor.calibrated(&valid)?;
    /// assert!(calibrated.evaluate(&valid)?.loss <= predictor.evaluate(&valid)?.loss + 1e-6);
    /// # let _ = temperature;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Predictor::evaluate`], [`Error::NotFinite`] if the logits are not finite, and if no temperature fits, since
    /// every sample is right, say.
    pub fn calibrated<D: Dataset + Clone + 'static>(&self, data: &D) -> Result<(Self, f64)> {
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let mut rows: Vec<(Vec<f64>, Vec<f64>)> = vec![];
        self.inference.each(&data, None, |logits, targets| {
            self.task().check(targets)?;
            let (_, classes) = logits.dims2()?;
            let logits = logits.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            let dense = targets.dense(classes, &Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
            rows.extend(logits.into_iter().zip(dense));
            Ok(())
        })?;
        crate::ops::release_pool();
        if rows.iter().any(|(logits, _)| logits.iter().any(|v| !v.is_finite())) {
            return Err(Error::NotFinite { what: "the logits".into() });
        }
        let temperature = best(|temperature| loss(&rows, temperature, self.task()));
        if temperature < 1.01 * RANGE.0 || temperature > 0.99 * RANGE.1 {
            let problem = format!(
                "no temperature from {} to {} fits: of {} samples all are right, or hardly any is; use more data that the \
                 network was not trained on",
                RANGE.0,
                RANGE.1,
                rows.len()
            );
            return Err(Error::invalid("calibration", problem));
        }
        let names = self.last_layer();
        let scaled = |(name, tensor): (String, Tensor)| -> Result<(String, Tensor)> {
            let scaled = if names.contains(&name) { (tensor / temperature)? } else { tensor };
            Ok((name, scaled))
        };
        let tensors = self.inference.head_tensors().into_iter().map(scaled).collect::<Result<_>>()?;
        let (head, labels) = (self.inference.head(), self.labels().to_vec());
        let thresholds: Vec<f32> = self.inference.thresholds.iter().map(|&t| moved(t, temperature)).collect();
        let mut report = self.report.clone();
        if let Some(told) =
            report.as_mut().and_then(|report| report.get_mut("thresholds")).filter(|told| told.is_array())
        {
            *told = thresholds.as_slice().into();
        }
        let predictor = Self::assemble(self.backbone.clone(), head, tensors, labels, report)?;
        Ok((predictor.for_task(self.task(), thresholds), temperature))
    }

    /// The tensors of the head's last layer.
    fn last_layer(&self) -> Vec<String> {
        let (head, blueprint, classes) = (self.inference.head(), self.backbone.blueprint(), self.labels().len());
        let names = head.names(blueprint, classes);
        // Of a head over all stages, the last is the choice of columns.
        if head.kind == HeadKind::Stages {
            names[..2].to_vec()
        } else {
            names[names.len().saturating_sub(2)..].to_vec()
        }
    }
}

/// The mean cross entropy of logits divided by the temperature; for lists of labels the binary one.
fn loss(rows: &[(Vec<f64>, Vec<f64>)], temperature: f64, task: Task) -> f64 {
    let of = |(logits, target): &(Vec<f64>, Vec<f64>)| {
        let both = logits.iter().map(|v| v / temperature).zip(target);
        if task == Task::Labels {
            return both.map(|(v, t)| binary_cross_entropy(v, *t)).sum::<f64>() / logits.len().max(1) as f64;
        }
        let most = logits.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v)) / temperature;
        let log_sum = logits.iter().map(|v| (v / temperature - most).exp()).sum::<f64>().ln() + most;
        both.filter(|(_, t)| **t != 0.0).map(|(v, t)| t * (log_sum - v)).sum::<f64>()
    };
    rows.iter().map(of).sum::<f64>() / rows.len().max(1) as f64
}

/// The threshold of a probability whose logit is divided by the temperature.
fn moved(threshold: f32, temperature: f64) -> f32 {
    let p = f64::from(threshold.min(1.0f32.next_down()));
    let logit = (p / (1.0 - p)).ln();
    // Below 1, which no probability may reach.
    ((1.0 / (1.0 + (-logit / temperature).exp())) as f32).min(1.0f32.next_down())
}

/// The temperature of the least loss, by golden sections of its logarithm: the loss has a single minimum, since it is
/// convex in the inverse temperature.
fn best(loss: impl Fn(f64) -> f64) -> f64 {
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (RANGE.0.ln(), RANGE.1.ln());
    while high - low > PRECISION.ln() {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        // Where the loss has underflowed to 0, the lower one: there the least temperature would be the best.
        if loss(a.exp()) <= loss(b.exp()) { high = b } else { low = a }
    }
    f64::midpoint(low, high).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FineTuner, FreezePolicy, Head, Optimizer, Phase, Plan, Source, Strategy, TensorDataset};

    /// Waves, of which every `wrong`-th has another class than its own.
    fn data(labels: &[String], wrong: u32) -> TensorDataset {
        let images = (Tensor::arange(0f32, 122_880.0, &Device::Cpu).unwrap() * 0.37).unwrap().sin().unwrap();
        let images = images.reshape((40, 3, 32, 32)).unwrap();
        let count = labels.len() as u32;
        let class = |i: u32| (i * 7 + u32::from(i % wrong == wrong - 1)) % count;
        TensorDataset::new(images, (0..40).map(class).collect(), labels.to_vec()).unwrap()
    }

    #[test]
    fn the_temperature_has_the_least_loss_and_keeps_the_classes() {
        let backbone = crate::Backbone::embedded(&Device::Cpu).unwrap();
        let names = ["a", "b", "c"].map(String::from);
        let (train, valid) = (data(&names, 100), data(&names, 4));
        let phase = Phase::new(30, Optimizer::adamw(1e-2)).freeze(FreezePolicy::Backbone);
        let plan = Plan::new(vec![phase]).batch_size(8);
        let stages = Strategy::Intermediate.plan(&backbone, 40);
        for (head, plan) in [(Head::linear(), plan.clone()), (Head::mlp(5), plan), (Head::linear(), stages)] {
            let tuner = FineTuner::new(backbone.clone()).head(head).plan(plan);
            let predictor = tuner.fit(&train, &train.clone()).unwrap().predictor;
            let (calibrated, temperature) = predictor.calibrated(&valid).unwrap();
            let (before, after) = (predictor.evaluate(&valid).unwrap(), calibrated.evaluate(&valid).unwrap());
            assert_eq!((before.correct, &before.confusion), (after.correct, &after.confusion));
            assert!(after.loss < before.loss - 1e-4, "{head:?}: {} {} at {temperature}", before.loss, after.loss);
            // Another look finds nothing to gain, and a file keeps it.
            let (_, again) = calibrated.calibrated(&valid).unwrap();
            assert!((again - 1.0).abs() < 1e-3, "{head:?}: {again}");
            let file = tempfile::NamedTempFile::new().unwrap();
            calibrated.save(file.path()).unwrap();
            let loaded = Predictor::from_file(file.path(), &Device::Cpu).unwrap();
            assert_eq!(loaded.evaluate(&valid).unwrap().loss, after.loss);
        }
    }

    /// SciPy: `minimize_scalar` of the mean of `log_softmax` over three rows.
    #[test]
    fn the_minimum_is_that_of_the_loss() {
        let rows = vec![
            (vec![2.0, 0.0, -1.0], vec![1.0, 0.0, 0.0]),
            (vec![0.5, 1.5, 0.0], vec![0.0, 0.0, 1.0]),
            (vec![-1.0, 3.0, 0.5], vec![0.0, 1.0, 0.0]),
        ];
        let found = best(|temperature| loss(&rows, temperature, Task::Classes));
        assert!((found - EXPECTED).abs() < 1e-4, "{found}");
    }

    const EXPECTED: f64 = 1.273_054_5;

    #[test]
    fn samples_that_are_all_right_fit_no_temperature() {
        let right = vec![(vec![2.0, 0.0], vec![1.0, 0.0]), (vec![0.5, 1.5], vec![0.0, 1.0])];
        assert!(best(|temperature| loss(&right, temperature, Task::Classes)) < 1.01 * RANGE.0);
        let predictor = Predictor::load(Source::embedded(), &Device::Cpu).unwrap();
        let all = data(predictor.labels(), 100);
        let images: Vec<Tensor> = (0..3)
            .map(|i| match all.sample(i).unwrap() {
                crate::Sample::Tensor(image) => image,
                _ => unreachable!(),
            })
            .collect();
        let images = Tensor::stack(&images, 0).unwrap();
        let own = predictor.logits(&images).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
        let data = TensorDataset::new(images, own, predictor.labels().to_vec()).unwrap();
        let error = predictor.calibrated(&data).unwrap_err().to_string();
        assert!(error.contains("no temperature") && error.contains("3 samples"), "{error}");
    }

    /// Even where probabilities are 1 by rounding, a threshold can still be reached.
    #[test]
    fn a_threshold_is_moved_with_the_probabilities() {
        assert!((moved(0.5, 3.0) - 0.5).abs() < 1e-7 && (moved(0.8, 2.0) - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(moved(0.0, 2.0).to_bits(), 0);
        for temperature in [0.02, 0.5, 2.0, 50.0] {
            let threshold = moved(1.0, temperature);
            let sure = (1.0 / (1.0 + (-18.0 / temperature).exp())) as f32;
            assert!(threshold < 1.0 && threshold <= sure, "{temperature}: {threshold} {sure}");
        }
    }

    #[test]
    fn data_of_other_classes_is_refused() {
        let predictor = Predictor::load(Source::embedded(), &Device::Cpu).unwrap();
        assert!(predictor.calibrated(&data(&["a", "b"].map(String::from), 4)).is_err());
    }
}
