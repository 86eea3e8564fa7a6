//! What a training step will take, known before it runs.

use crate::backbone::{Backbone, Network, Profile};
use crate::error::{Error, Result};
use crate::freeze::{Frozen, Role};
use crate::head::Head;
use crate::ops::{Aftermath, Sketch};
use crate::params::{Declared, Provider, Slot};
use crate::plan::{Phase, Plan};
use candle_core::{DType, Device, Var};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The memory of a training step on the CPU, in bytes: of the plan's phase that needs most.
///
/// What the dataset itself, its loader and kept features take comes on top, and so does the program. Features of frozen
/// blocks are counted as if they were computed in each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Forecast {
    /// All weights, those of the head included.
    pub weights: usize,
    /// What the optimizer keeps.
    pub moments: usize,
    /// Images, activations, gradients and packed weights at the step's fullest moment.
    pub step: usize,
}

impl Forecast {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.moments + self.step
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        write!(f, "{:.0} MB: weights {:.0}, ", mb(self.total()), mb(self.weights))?;
        write!(f, "optimizer {:.0}, step {:.0}", mb(self.moments), mb(self.step))
    }
}

impl Plan {
    /// What a step of this plan will take in memory, without running it: the layers pass on sizes instead of images.
    /// Within 15 % of what a process takes, by measurement. `classes` is the dataset's number of them, as in
    /// [`FineTuner::session`](crate::FineTuner::session).
    ///
    /// ```
    /// use candle_finetune::{Arch, Backbone, Head, Strategy};
    /// use candle_finetune::candle_core::Device;
    /// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// let plan = Strategy::LargeSimilar.plan(&backbone, 5000);
    /// let (few, many) = (plan.clone().batch_size(8), plan.batch_size(64));
    /// let forecast = |plan: candle_finetune::Plan| plan.forecast(&backbone, Head::linear(), 10);
    /// assert!(forecast(few)?.total() < forecast(many)?.total());
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// For a plan or head that could not run either, and for batches of more than 16 GB of images.
    pub fn forecast(&self, backbone: &Backbone, head: Head, classes: usize) -> Result<Forecast> {
        self.check(backbone)?;
        head.check(backbone, classes)?;
        let phases: Vec<Forecast> =
            self.phases.iter().map(|phase| of_phase(self, phase, backbone, head, classes)).collect::<Result<_>>()?;
        let most = phases.into_iter().max_by_key(Forecast::total);
        most.ok_or_else(|| Error::invalid("plan: phases", "there are none"))
    }
}

/// Bytes of a batch's images beyond which nothing is foreseen.
const MOST: usize = 16 << 30;

fn of_phase(plan: &Plan, phase: &Phase, backbone: &Backbone, head: Head, classes: usize) -> Result<Forecast> {
    let Profile { blueprint, spec, dtype, .. } = &backbone.inner.profile;
    let size = dtype.size_in_bytes();
    let declared = blueprint.declared();
    let of_head = head.shapes(blueprint, classes);
    let frozen = phase.freeze.resolve(blueprint, &head.names(blueprint, classes))?;
    let numbers = |shape: &[usize]| shape.iter().product::<usize>();
    let all: usize = declared.iter().map(|d| numbers(&d.shape)).chain(of_head.iter().map(|(_, s)| numbers(s))).sum();
    let in_backbone = declared.iter().filter(|d| frozen.role(d, phase.batch_norm) == Role::Param);
    let in_head = of_head.iter().filter(|(name, _)| !frozen.names(name));
    let learns: Vec<usize> =
        in_backbone.map(|d| numbers(&d.shape)).chain(in_head.map(|(_, shape)| numbers(shape))).collect();
    let learning: usize = learns.iter().sum();

    let provider = OnPaper { frozen: &frozen, phase, dtype: *dtype };
    let network = Network::build(blueprint, &provider)?;
    let (height, width) = spec.size;
    let images = [spec.channels, height, width, size].into_iter().try_fold(plan.batch_size, usize::checked_mul);
    let Some(images) = images.filter(|&bytes| bytes <= MOST) else {
        let problem = format!("{}; its images alone would take more than {} GB", plan.batch_size, MOST >> 30);
        return Err(Error::invalid("plan: batch_size", problem));
    };
    let shape = (plan.batch_size, spec.channels, height, width);
    let step = |before: Option<&Aftermath>, moments: &[usize]| -> Result<Aftermath> {
        let features = network.sketch(Sketch::new(shape, *dtype, before))?;
        let logits = head.sketch(features, blueprint, classes, *dtype, |name| frozen.names(name))?;
        Ok(logits.into_sketch()?.back(moments))
    };
    // The second step finds the moments that the first one's update made.
    let per_number = phase.optimizer.moments();
    let made: Vec<usize> = learns.iter().flat_map(|&numbers| vec![numbers; per_number]).collect();
    let first = step(None, &made)?;
    let touched = first.touched().max(step(Some(&first), &[])?.touched());
    let moments = per_number * learning * size;
    // The batch itself lies beside the copy in the layout of the kernels.
    let step = images + touched.saturating_sub(moments);
    // At its start a session copies what learns, before there are moments and steps.
    let step = step.max((learning * size).saturating_sub(moments));
    Ok(Forecast { weights: all * size, moments, step })
}

/// Tensors in the phase's roles that hold one number each.
struct OnPaper<'a> {
    frozen: &'a Frozen,
    phase: &'a Phase,
    dtype: DType,
}

impl Provider for OnPaper<'_> {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let shape = declared.shape.as_slice();
        let zero = || Var::zeros(1, self.dtype, &Device::Cpu);
        Ok(match self.frozen.role(declared, self.phase.batch_norm) {
            Role::Frozen => Slot::Frozen(zero()?.detach().broadcast_as(shape)?),
            Role::Param => Slot::Paper(zero()?.broadcast_as(shape)?),
            Role::Buffer => Slot::Buffer(Var::zeros(shape, self.dtype, &Device::Cpu)?),
        })
    }
}
