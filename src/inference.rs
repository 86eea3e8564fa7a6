//! Evaluates a frozen network over data; training's validation and predictors share it, so that their results agree to
//! the bit.

mod class_map;

pub(crate) use class_map::ClassMap;

use crate::backbone::{Backbone, Network, Profile};
use crate::blueprint::Blueprint;
use crate::data::{Dataset, Image, Loader, Targets, Transform};
use crate::error::{Error, Result};
use crate::head::{Head, HeadKind};
use crate::metrics::{Evaluation, Scores, THRESHOLD, Task};
use crate::ops::no_grad;
use crate::params::{AllFrozen, Slots};
use candle_core::{DType, Device, Tensor};
use std::iter::repeat;
use std::sync::Arc;

/// Samples per batch. Fixed, because a device's matrix product may round differently for other sizes.
pub(crate) const BATCH: usize = 32;

/// A network and a head, frozen.
pub(crate) struct Inference {
    blueprint: Blueprint,
    network: Network,
    head: Head,
    slots: Slots,
    transform: Transform,
    pub labels: Vec<String>,
    /// The prediction task: one class per sample, or lists of labels.
    pub task: Task,
    /// The probability from which each label counts as predicted; a half, if there are none.
    pub thresholds: Vec<f32>,
    device: Device,
    dtype: DType,
}

impl Inference {
    /// With the backbone's own tensors; `slots` holds the head's.
    pub fn new(backbone: &Backbone, head: Head, slots: Slots, labels: Vec<String>) -> Result<Self> {
        let inner = &backbone.inner;
        let network = Network::build(&inner.profile.blueprint, &inner.tensors)?;
        Self::with(&inner.profile, network, head, slots, labels)
    }

    /// With the current tensors in `slots`, backbone and head. They must not change during its lifetime.
    pub fn of_slots(profile: &Profile, head: Head, slots: &Slots, labels: Vec<String>) -> Result<Self> {
        let network = Network::build(&profile.blueprint, &AllFrozen(slots))?;
        Self::with(profile, network, head, slots.clone(), labels)
    }

    fn with(profile: &Profile, network: Network, head: Head, slots: Slots, labels: Vec<String>) -> Result<Self> {
        let transform = Transform::eval(&profile.spec)?;
        let (device, dtype) = (profile.device.clone(), profile.dtype);
        let (blueprint, task, thresholds) = (profile.blueprint.clone(), Task::Classes, vec![]);
        Ok(Self { blueprint, network, head, slots, transform, labels, task, thresholds, device, dtype })
    }

    /// The same for another task.
    pub fn for_task(self, task: Task, thresholds: Vec<f32>) -> Self {
        Self { task, thresholds, ..self }
    }

    /// Without samples.
    pub fn scores(&self) -> Scores {
        Scores::new(self.task).thresholds(self.thresholds.clone())
    }

    /// The probability from which each label counts as predicted.
    pub fn thresholds(&self) -> impl Iterator<Item = f32> {
        self.thresholds.iter().copied().chain(repeat(THRESHOLD)).take(self.labels.len())
    }

    /// The labels that these probabilities predict, maybe none.
    pub fn labels_of(&self, probabilities: &[f32]) -> Vec<u32> {
        let reaches = (0u32..).zip(probabilities.iter().zip(self.thresholds()));
        reaches.filter(|(_, (p, threshold))| *p >= threshold).map(|(class, _)| class).collect()
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn head(&self) -> Head {
        self.head
    }

    /// The head's tensors by name.
    pub fn head_tensors(&self) -> Vec<(String, Tensor)> {
        let names = self.head.names(&self.blueprint, self.labels.len());
        names.into_iter().filter_map(|n| self.slots.get(&n).map(|s| (n.clone(), s.detached()))).collect()
    }

    /// An image as the network's input: (C, H, W), normalised.
    pub fn prepare(&self, image: &Image) -> Result<Tensor> {
        self.transform.apply(image, 0, 0, 0)
    }

    /// Logits (N, classes) of images (N, C, H, W).
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        self.logits_from(&images.to_dtype(self.dtype)?, 0)
    }

    /// Logits from the output of the first `from` blocks.
    pub fn logits_from(&self, x: &Tensor, from: usize) -> Result<Tensor> {
        no_grad(|| {
            let features = match (self.head.kind, from) {
                (HeadKind::Stages, 0) => self.network.columns(x)?,
                (HeadKind::Stages, _) => return Err(Error::invalid("head", "over all stages needs images")),
                (_, 0) => self.network.features(x)?,
                _ => self.network.suffix(x, from)?,
            };
            Ok(self.head.forward(&features.detach(), &self.slots, &self.blueprint, None)?.detach())
        })
    }

    /// Runs over labelled data. `workers`: the threads that make batches, the loader's default if `None`.
    pub fn evaluate(&self, data: &Arc<dyn Dataset>, workers: Option<usize>) -> Result<Evaluation> {
        let mut scores = self.scores();
        self.each(data, workers, |logits, targets| scores.add(logits, targets))?;
        Ok(scores.evaluation())
    }

    /// Calls `take` with the logits and the targets of each batch of labelled data, in its order.
    pub fn each(
        &self,
        data: &Arc<dyn Dataset>,
        workers: Option<usize>,
        mut take: impl FnMut(&Tensor, &Targets) -> Result<()>,
    ) -> Result<()> {
        Self::check(&self.labels, data)?;
        let loader = Loader::new(data, self.transform.clone()).batch_size(BATCH);
        let loader = workers.into_iter().fold(loader, Loader::workers);
        for batch in loader.batches((0..data.len()).collect(), 0, &self.device)? {
            let batch = batch?;
            take(&self.logits(batch.images()?)?, &batch.targets)?;
        }
        Ok(())
    }

    /// Refuses data that cannot be evaluated: no samples, or other classes.
    pub fn check(known: &[String], data: &dyn Dataset) -> Result<()> {
        if data.is_empty() {
            return Err(Error::invalid("dataset", "holds no samples; there is nothing to evaluate"));
        }
        let given = data.classes();
        if given == known {
            return Ok(());
        }
        let at = given.iter().zip(known).take_while(|(a, b)| a == b).count();
        let name = |names: &[String]| names.get(at).map_or("missing".into(), |name| format!("{name:?}"));
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;
    use crate::params::Slot;

    /// A validation within a training run leaves no packed copy of the network in memory.
    #[test]
    fn a_network_for_one_evaluation_keeps_no_packed_weights() {
        let backbone = Backbone::load(Source::embedded(), &Device::Cpu).unwrap();
        let slots: Slots = backbone.tensors().iter().map(|(name, t)| (name.clone(), Slot::Frozen(t.clone()))).collect();
        let images = Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let temporary = Inference::of_slots(&backbone.inner.profile, Head::linear(), &slots, vec![]).unwrap();
        let reused = Inference::new(&backbone, Head::linear(), slots.clone(), vec![]).unwrap();
        let features = |inference: &Inference| {
            no_grad(|| inference.network.features(&images)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(features(&temporary), features(&reused));
        let packed = |inference: &Inference| {
            let sums = inference.network.checksums().unwrap();
            sums.iter().filter(|(name, _)| name.contains("packed")).count()
        };
        assert!(packed(&temporary) == 0 && packed(&reused) > 0);
    }
}
