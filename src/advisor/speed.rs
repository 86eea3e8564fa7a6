//! How fast this machine trains a network: a forward pass and a training step of a few images, and their reading.

use super::candidate::{Candidate, hardest};
use crate::backbone::{Backbone, Network, Profile};
use crate::data::{Dataset, Loader, Targets, Transform};
use crate::error::Result;
use crate::forecast::Work;
use crate::freeze::Role;
use crate::head::Head;
use crate::ops::{Gradients, Moments, Rule, backward, release_pool, update};
use crate::params::{Slot, Slots};
use crate::plan::{Phase, Plan};
use candle_core::{Device, Tensor, Var};
use std::sync::Arc;
use std::time::Instant;

/// Seconds for each unit of a [`Work`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Speed {
    /// Per multiply-add of a forward pass without gradients.
    inference: f64,
    /// Per multiply-add of a training step; `None` if none was timed.
    training: Option<f64>,
    /// Per image that is read and prepared.
    image: f64,
    /// Per step, however little it computes.
    step: f64,
    /// Per element that is updated.
    update: f64,
}

/// Multiply-adds of the timed step, about: a tenth of a second on two cores. Fewer would leave the kernels too little to
/// do at a time.
const TIMED: u64 = 4_000_000_000;

/// Images of the timed step for a network whose multiply-adds are unknown.
const IMAGES: usize = 4;

/// Images whose reading is timed.
const READ: usize = 8;

/// Elements whose update is timed, at most; larger networks update in proportion.
const ELEMENTS: usize = 4 << 20;

impl Speed {
    /// Times what the candidates that can be run would do: the reading of a few images of `data`, and a forward pass and
    /// a training step of a few images, twice each, the first to warm up. Nothing random is drawn, and `backbone` stays
    /// as it is.
    pub fn measure(
        backbone: &Backbone,
        (head, classes): (Head, usize),
        candidates: &[Candidate],
        (data, workers): (&Arc<dyn Dataset>, Option<usize>),
    ) -> Result<Self> {
        let Some((plan, phase, image)) = hardest(candidates, backbone, (head, classes))? else {
            return Ok(Self::default());
        };
        let multiply_adds = image.forward().saturating_add(image.backward).max(1);
        let most = if backbone.blueprint().is_opaque() { IMAGES } else { (TIMED / multiply_adds) as usize };
        // Two at least: batch statistics need more than one value.
        let count = most.max(2).min(plan.batch_size);
        let images = pattern(count, backbone)?;
        let forward = timed(|| backbone.forward(&images))? / count as f64;
        let mut speed = Self {
            inference: forward / image.forward().max(1) as f64,
            image: reading(backbone, data, workers)?,
            step: Steps::of_head(backbone, plan.batch_size)?.time()?.step,
            ..Self::default()
        };
        if image.frozen_blocks < backbone.blocks().len() {
            let Times { step, update } = Steps::new(backbone, (head, classes), &plan, &phase, images)?.time()?;
            let network = step - speed.step - speed.inference * (count as f64 * image.prefix as f64);
            speed.training = Some(network.max(0.0) / count as f64 / image.training().max(1) as f64);
            speed.update = update;
        }
        // A head alone trains in far less memory.
        release_pool();
        Ok(speed)
    }

    /// Seconds that this work takes.
    pub fn seconds(&self, work: &Work) -> Option<f64> {
        // Not measured: no plan could be run.
        if self.inference == 0.0 {
            return None;
        }
        let training = self.training.unwrap_or(self.inference);
        Some(
            self.inference * work.inference as f64
                + training * work.training as f64
                + self.image * work.images as f64
                + self.step * work.steps as f64
                + self.update * work.updates as f64,
        )
    }
}

/// Seconds of the second of two runs: the first one touches new memory.
fn timed<T>(mut run: impl FnMut() -> Result<T>) -> Result<f64> {
    run()?;
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Images (N, C, H, W) of the network's size: a wave, since the time does not depend on what they show.
fn pattern(count: usize, backbone: &Backbone) -> Result<Tensor> {
    let Profile { spec, device, dtype, .. } = &backbone.inner.profile;
    let ((height, width), channels) = (spec.size, spec.channels);
    waves(&[count, channels, height, width])?.to_dtype(*dtype)?.to_device(device).map_err(Into::into)
}

fn waves(shape: &[usize]) -> Result<Tensor> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * 0.1).sin()).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Seconds per image to read and prepare some, spread over the data.
fn reading(backbone: &Backbone, data: &Arc<dyn Dataset>, workers: Option<usize>) -> Result<f64> {
    let count = data.len().min(READ);
    let order = (0..count).map(|i| i * data.len() / count).collect();
    // Alone in its batch, each is read by the next thread that is free.
    let loader = Loader::new(data, Transform::eval(backbone.input_spec())?).batch_size(1);
    let loader = workers.into_iter().fold(loader, Loader::workers);
    let begun = Instant::now();
    for batch in loader.batches(order, 0, backbone.device())? {
        batch?;
    }
    Ok(begun.elapsed().as_secs_f64() / count.max(1) as f64)
}

/// Training steps on copies of the weights.
struct Steps<'a> {
    backbone: &'a Backbone,
    head: Head,
    /// `None`: the input is features already.
    network: Option<Network>,
    slots: Slots,
    variables: Vec<(String, Var)>,
    plan: Plan,
    input: Tensor,
    classes: usize,
}

/// Seconds of a step.
struct Times {
    /// Without the update, but for that of a head.
    step: f64,
    /// Of the update, per element.
    update: f64,
}

impl<'a> Steps<'a> {
    /// Steps of the whole network in the roles of a phase.
    fn new(
        backbone: &'a Backbone,
        (head, classes): (Head, usize),
        plan: &Plan,
        phase: &Phase,
        input: Tensor,
    ) -> Result<Self> {
        let blueprint = backbone.blueprint();
        let frozen = phase.freeze.resolve(blueprint, &head.names(blueprint, classes))?;
        let mut slots = Slots::new();
        for declared in blueprint.declared() {
            let Some(tensor) = backbone.tensors().get(&declared.name) else { continue };
            let copy = || Var::from_tensor(&tensor.detach());
            let slot = match frozen.role(declared, phase.batch_norm) {
                Role::Frozen => Slot::Frozen(tensor.clone()),
                Role::Param => Slot::Param(copy()?),
                Role::Buffer => Slot::Buffer(copy()?),
            };
            slots.insert(declared.name.clone(), slot);
        }
        let network = Some(Network::build(blueprint, &slots)?);
        Self { backbone, head, network, slots, variables: vec![], plan: plan.clone(), input, classes }.with_head()
    }

    /// Steps of a head of two classes on cached features, whose time is nearly all overhead.
    fn of_head(backbone: &'a Backbone, batch_size: usize) -> Result<Self> {
        let Profile { device, dtype, .. } = &backbone.inner.profile;
        let features = waves(&[batch_size.max(1), backbone.feature_dim()])?.to_dtype(*dtype)?.to_device(device)?;
        let (head, plan) = (Head::linear(), Plan::new(vec![]));
        let slots = Slots::new();
        Self { backbone, head, network: None, slots, variables: vec![], plan, input: features, classes: 2 }.with_head()
    }

    fn with_head(mut self) -> Result<Self> {
        for (name, tensor) in self.head.start(self.backbone, self.classes, 0)? {
            self.slots.insert(name, Slot::Param(Var::from_tensor(&tensor.detach())?));
        }
        let learning = self.slots.iter().filter_map(|(name, slot)| match slot {
            Slot::Param(variable) => Some((name.clone(), variable.clone())),
            _ => None,
        });
        self.variables = learning.collect();
        Ok(self)
    }

    /// Forward, loss and backward.
    fn gradients(&self) -> Result<Gradients> {
        let features = match &self.network {
            Some(network) => network.features(&self.input)?,
            None => {
                // As the rows of a cache are joined.
                let rows = (0..self.input.dim(0)?).map(|row| self.input.narrow(0, row, 1));
                Tensor::cat(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?
            }
        };
        let logits = self.head.forward(&features, &self.slots, self.backbone.blueprint(), None)?;
        let labels = (0..self.input.dim(0)?).map(|i| (i % self.classes) as u32).collect();
        let loss = self.plan.loss.forward(&logits, &Targets::Classes(labels))?;
        let ids = self.variables.iter().map(|(name, variable)| (name.as_str(), variable.id()));
        let gradients = backward(&loss, ids)?;
        self.backbone.device().synchronize()?;
        Ok(gradients)
    }

    fn time(self) -> Result<Times> {
        let mut gradients = None;
        let step = timed(|| {
            gradients = Some(self.gradients()?);
            Ok(())
        })?;
        let Some(gradients) = gradients else { return Ok(Times { step, update: 0.0 }) };
        let (mut updated, mut elements) = (vec![], 0);
        for (name, variable) in &self.variables {
            if let Some(gradient) = gradients.get(name)
                && elements + variable.elem_count() <= ELEMENTS
            {
                elements += variable.elem_count();
                updated.push((variable, gradient, Moments::zeros(variable, 2)?));
            }
        }
        let seconds = timed(|| {
            for (variable, gradient, moments) in &mut updated {
                gradient.square_sum()?;
                let rule = Rule::AdamW { lr: 1e-6, betas: (0.9, 0.999), eps: 1e-8, decay: 0.0, step: 1 };
                update(variable, gradient, moments, rule, 1.0)?;
            }
            self.backbone.device().synchronize().map_err(Into::into)
        })?;
        let step = if self.network.is_none() { step + seconds } else { step };
        Ok(Times { step, update: seconds / elements.max(1) as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two units of each kind of work, at speeds of which each has a digit of its own.
    #[test]
    fn seconds_are_the_sum_over_all_kinds_of_work() {
        let speed = Speed { inference: 0.5, training: Some(5.0), image: 50.0, step: 500.0, update: 5_000.0 };
        let work = Work { inference: 2, training: 2, images: 2, steps: 2, updates: 2, uncounted: false };
        assert_eq!(speed.seconds(&work), Some(11_111.0));
        // Without a timed step the head's few products count as others.
        assert_eq!(Speed { training: None, ..speed }.seconds(&work), Some(11_102.0));
        assert_eq!(Speed::default().seconds(&work), None);
    }
}
