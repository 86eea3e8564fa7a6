//! The memory of a training step, forecast by a dry run.

use crate::backbone::{Backbone, Network, Profile};
use crate::error::{Error, Result};
use crate::freeze::{Frozen, Role};
use crate::head::Head;
use crate::ops::{StepMemory, Symbolic};
use crate::params::{Declared, Provider, Slot};
use crate::plan::{Phase, Plan};
use candle_core::{DType, Device, Var};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The memory of a training step on the CPU, in bytes, in the phase of the plan that takes most.
///
/// The dataset, its loader, cached features and the program itself come on top. Features of frozen blocks are counted
/// as if they were computed in every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Forecast {
    /// All weights, including the head's.
    pub weights: usize,
    /// The optimizer's moments.
    pub moments: usize,
    /// Images, activations, gradients and packed weights at the step's peak; `None` for a network with
    /// custom layers ([`Layer::custom`](crate::Layer::custom)).
    pub step: Option<usize>,
}

impl Forecast {
    /// The sum of all parts, if all are known.
    pub fn total(&self) -> Option<usize> {
        Some(self.weights + self.moments + self.step?)
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: usize| bytes as f64 / 1e6;
        match self.total() {
            Some(total) => write!(f, "{:.0} MB: ", mb(total))?,
            None => f.write_str("unknown: ")?,
        }
        write!(f, "weights {:.0} MB, optimizer {:.0} MB, step ", mb(self.weights), mb(self.moments))?;
        match self.step {
            Some(step) => write!(f, "{:.0} MB", mb(step)),
            None => f.write_str("unknown"),
        }
    }
}

impl Plan {
    /// The memory of a step of this plan, from a dry run in which the layers pass on sizes instead of images. Measured
    /// processes take within 15 % of it. `classes` is the dataset's number of classes, as in
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
    /// For a plan or head that could not run either, and for batches whose images take more than 16 GB.
    pub fn forecast(&self, backbone: &Backbone, head: Head, classes: usize) -> Result<Forecast> {
        self.check(backbone)?;
        head.check(backbone, classes)?;
        let phases: Vec<Forecast> =
            self.phases.iter().map(|phase| of_phase(self, phase, backbone, head, classes)).collect::<Result<_>>()?;
        let most = phases.into_iter().max_by_key(|f| f.weights + f.moments + f.step.unwrap_or(0));
        most.ok_or_else(|| Error::invalid("plan: phases", "there are none"))
    }
}

/// The largest batch of images that is forecast, in bytes.
const MOST: usize = 16 << 30;

fn of_phase(plan: &Plan, phase: &Phase, backbone: &Backbone, head: Head, classes: usize) -> Result<Forecast> {
    let Profile { blueprint, spec, dtype, .. } = &backbone.inner.profile;
    let size = dtype.size_in_bytes();
    let declared = blueprint.declared();
    let of_head = head.shapes(blueprint, classes);
    let frozen = phase.freeze.resolve(blueprint, &head.names(blueprint, classes))?;
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let all: usize = declared.iter().map(|d| elements(&d.shape)).chain(of_head.iter().map(|(_, s)| elements(s))).sum();
    let in_backbone = declared.iter().filter(|d| frozen.role(d, phase.batch_norm) == Role::Param);
    let in_head = of_head.iter().filter(|(name, _)| !frozen.names(name));
    let learns: Vec<usize> =
        in_backbone.map(|d| elements(&d.shape)).chain(in_head.map(|(_, shape)| elements(shape))).collect();
    let learning: usize = learns.iter().sum();

    let moments = phase.optimizer.moments() * learning * size;
    let (height, width) = spec.size;
    let images = [spec.channels, height, width, size].into_iter().try_fold(plan.batch_size, usize::checked_mul);
    let Some(images) = images.filter(|&bytes| bytes <= MOST) else {
        let problem = format!("{}; its images alone would take more than {} GB", plan.batch_size, MOST >> 30);
        return Err(Error::invalid("plan: batch_size", problem));
    };
    if blueprint.is_opaque() {
        return Ok(Forecast { weights: all * size, moments, step: None });
    }
    let provider = DryRun { frozen: &frozen, phase, dtype: *dtype };
    let network = Network::build(blueprint, &provider)?;
    let shape = (plan.batch_size, spec.channels, height, width);
    let step = |before: Option<&StepMemory>, moments: &[usize]| -> Result<StepMemory> {
        let features = network.dry_run(Symbolic::new(shape, *dtype, before))?;
        let logits = head.dry_run(features, blueprint, classes, *dtype, |name| frozen.names(name))?;
        Ok(logits.into_symbolic()?.backward(moments))
    };
    // In the second step the moments exist that the first one's update allocated.
    let per_element = phase.optimizer.moments();
    let made: Vec<usize> = learns.iter().flat_map(|&elements| vec![elements; per_element]).collect();
    let first = step(None, &made)?;
    let touched = first.touched().max(step(Some(&first), &[])?.touched());
    // The batch itself is held beside its copy in the kernels' layout.
    let step = images + touched.saturating_sub(moments);
    // At its start a session copies the trainable parameters, before it allocates moments.
    let step = step.max((learning * size).saturating_sub(moments));
    Ok(Forecast { weights: all * size, moments, step: Some(step) })
}

/// Tensors in the phase's roles whose storage is one element each: the dry run reads their shapes alone.
struct DryRun<'a> {
    frozen: &'a Frozen,
    phase: &'a Phase,
    dtype: DType,
}

impl Provider for DryRun<'_> {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let shape = declared.shape.as_slice();
        let zero = || Var::zeros(1, self.dtype, &Device::Cpu);
        Ok(match self.frozen.role(declared, self.phase.batch_norm) {
            Role::Frozen => Slot::Frozen(zero()?.detach().broadcast_as(shape)?),
            Role::Param => Slot::Symbolic(zero()?.broadcast_as(shape)?),
            Role::Buffer => Slot::Buffer(Var::zeros(shape, self.dtype, &Device::Cpu)?),
        })
    }
}
