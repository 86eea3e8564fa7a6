//! Evaluation and prediction: an all-frozen network, no graph. One code for training's validation and for what is
//! saved, so that their figures agree to the bit.

use crate::arch::Arch;
use crate::backbone::{Backbone, Network};
use crate::data::{Dataset, Image, Loader, Targets, Transform, largest};
use crate::error::{Error, Result};
use crate::head::Head;
use crate::metrics::Evaluation;
use crate::ops::no_grad;
use crate::params::{AllFrozen, Slots};
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

/// Samples per batch. Fixed, because a device's matrix product may round differently for other sizes.
pub(crate) const BATCH: usize = 32;

/// A network and a head, frozen.
pub(crate) struct Inference {
    arch: Arch,
    network: Network,
    head: Head,
    slots: Slots,
    transform: Transform,
    pub labels: Vec<String>,
    device: Device,
    dtype: DType,
}

impl Inference {
    /// With the backbone's own tensors; `slots` holds the head's.
    pub fn new(backbone: &Backbone, head: Head, slots: Slots, labels: Vec<String>) -> Result<Self> {
        let inner = &backbone.inner;
        let network = Network::build(inner.arch, inner.naming, inner.spec.channels, &inner.tensors)?;
        Self::with(backbone, network, head, slots, labels)
    }

    /// With the tensors in `slots`, backbone and head, as they are now. They must not change while this lives.
    pub fn of_slots(backbone: &Backbone, head: Head, slots: &Slots, labels: Vec<String>) -> Result<Self> {
        let inner = &backbone.inner;
        let network = Network::build(inner.arch, inner.naming, inner.spec.channels, &AllFrozen(slots))?;
        Self::with(backbone, network, head, slots.clone(), labels)
    }

    fn with(backbone: &Backbone, network: Network, head: Head, slots: Slots, labels: Vec<String>) -> Result<Self> {
        let inner = &backbone.inner;
        let transform = Transform::eval(&inner.spec)?;
        let (device, dtype) = (inner.device.clone(), inner.dtype);
        Ok(Self { arch: inner.arch, network, head, slots, transform, labels, device, dtype })
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// The head's tensors by name.
    pub fn head_tensors(&self) -> Vec<(String, Tensor)> {
        let names = self.head.names(self.arch, self.labels.len());
        names.into_iter().filter_map(|n| self.slots.get(&n).map(|s| (n.clone(), s.detached()))).collect()
    }

    /// An image as the network wants it: (C, H, W), normalised.
    pub fn prepare(&self, image: &Image) -> Result<Tensor> {
        self.transform.apply(image, 0, 0, 0)
    }

    /// Logits (N, classes) of images (N, C, H, W).
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.logits_from(&images.to_dtype(self.dtype)?, 0)
    }

    /// Logits of what the first `from` blocks made.
    pub fn logits_from(&self, x: &Tensor, from: usize) -> Result<Tensor> {
        no_grad(|| {
            let features = if from == 0 { self.network.features(x)? } else { self.network.suffix(x, from)? };
            Ok(self.head.forward(&features.detach(), &self.slots, self.arch, None)?.detach())
        })
    }

    /// `workers`: the threads that make batches, the loader's own choice if `None`.
    pub fn evaluate(&self, data: &Arc<dyn Dataset>, workers: Option<usize>) -> Result<Evaluation> {
        Self::check(&self.labels, data)?;
        let loader = Loader::new(data, self.transform.clone()).batch_size(BATCH);
        let loader = workers.into_iter().fold(loader, Loader::workers);
        let mut evaluation = Evaluation::new();
        for batch in loader.batches((0..data.len()).collect(), 0, &self.device)? {
            let batch = batch?;
            Self::judge(&self.logits(&batch.images)?, &batch.targets, &mut evaluation)?;
        }
        Ok(evaluation.close())
    }

    /// Refuses data that cannot be evaluated: none, or of other classes.
    pub fn check(known: &[String], data: &dyn Dataset) -> Result<()> {
        if data.is_empty() {
            return Err(Error::invalid("dataset", "holds no samples; there is nothing to evaluate"));
        }
        let given = data.classes();
        if given == known {
            return Ok(());
        }
        let at = given.iter().zip(known).take_while(|(a, b)| a == b).count();
        let name = |names: &[String]| names.get(at).map_or("not there".into(), |name| format!("{name:?}"));
        let problem = format!(
            "has {} classes and the network {}; class {at} is {}, and the network's is {}; give it the predictor's \
             labels, in their order",
            given.len(),
            known.len(),
            name(given),
            name(known)
        );
        Err(Error::invalid("dataset", problem))
    }

    /// Counts a batch: the cross entropy -sum(t log softmax(logits)), and whether the likeliest class is the target's.
    /// Logits that are not finite have no likeliest class.
    pub fn judge(logits: &Tensor, targets: &Targets, evaluation: &mut Evaluation) -> Result<()> {
        if matches!(targets, Targets::Labels(_)) {
            let problem =
                "are lists of labels; evaluate counts one class per sample and does not support multi-label targets";
            return Err(Error::invalid("targets", problem));
        }
        let rows = logits.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let truths = targets.dense(logits.dim(1)?, &Device::Cpu)?.to_vec2::<f32>()?;
        for ((row, truth), class) in rows.iter().zip(&truths).zip(targets.classes()?) {
            let most = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
            let log_sum = row.iter().map(|v| (v - most).exp()).sum::<f64>().ln() + most;
            let weighted = row.iter().zip(truth).filter(|(_, t)| **t != 0.0);
            let loss = weighted.map(|(v, &t)| f64::from(t) * (log_sum - v)).sum();
            let predicted = row.iter().all(|v| v.is_finite()).then(|| largest(row));
            evaluation.count(class as usize, predicted, if predicted.is_some() { loss } else { f64::NAN });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;
    use crate::params::Slot;

    /// Beside all that training keeps, an evaluation leaves no packed copy of the network.
    #[test]
    fn what_lives_for_one_evaluation_keeps_no_packed_weights() {
        let backbone = Backbone::load(Source::embedded(), &Device::Cpu).unwrap();
        let slots: Slots = backbone.tensors().iter().map(|(name, t)| (name.clone(), Slot::Frozen(t.clone()))).collect();
        let images = Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let passing = Inference::of_slots(&backbone, Head::linear(), &slots, vec![]).unwrap();
        let lasting = Inference::new(&backbone, Head::linear(), slots.clone(), vec![]).unwrap();
        let features = |inference: &Inference| {
            no_grad(|| inference.network.features(&images)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(features(&passing), features(&lasting));
        let packed = |inference: &Inference| {
            let sums = inference.network.checksums().unwrap();
            sums.iter().filter(|(name, _)| name.contains("packed")).count()
        };
        assert!(packed(&passing) == 0 && packed(&lasting) > 0);
    }
}
