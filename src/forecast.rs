//! The memory of a training step and the work of a training, known before it runs from a dry run.

mod rehearsal;
mod work;

pub use work::MultiplyAdds;
pub(crate) use work::{ImageWork, Work, Workload};

use crate::backbone::{Backbone, Profile};
use crate::error::{Error, Result};
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::head::Head;
use crate::ops::StepMemory;
use crate::optim::Optimizer;
use crate::plan::{Phase, Plan};
use rehearsal::Rehearsal;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The memory of a training step on the CPU, in bytes, in the phase of the plan that takes most, and that phase's
/// multiply-adds.
///
/// The dataset, its loader, cached features and the program itself come on top. Features of frozen blocks are counted
/// as if they were computed in every step. For a plan without phases, whose head is fitted and not trained, it is the
/// memory of a batch of features; the matrices of the fit come on top, less than 1.5 GB
/// ([`HeadStart`](crate::HeadStart)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Forecast {
    /// All weights, including the head's.
    pub weights: usize,
    /// The optimizer's moments, and as far as the plan has them averages of the weights, gradients that wait for their step,
    /// and the weights that L2-SP pulls back to: of what is trained in that phase.
    pub moments: usize,
    /// Images, activations, gradients and packed weights at the step's peak; `None` for a network with
    /// custom layers ([`Layer::custom`](crate::Layer::custom)).
    pub step: Option<usize>,
    /// The multiply-adds of an image in a step, forward and backward; `None` for a network with custom layers.
    #[serde(default)]
    pub multiply_adds: Option<MultiplyAdds>,
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
    /// processes take within 15 % of it. The same run counts the multiply-adds of an image. `classes` is the dataset's
    /// number of classes, as in [`FineTuner::session`](crate::FineTuner::session).
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
        let head = self.head(head)?;
        head.check(backbone, classes)?;
        if self.phases.is_empty() {
            return of_fit(backbone, head, classes);
        }
        let phases: Vec<Forecast> =
            self.phases.iter().map(|phase| of_phase(self, phase, backbone, head, classes)).collect::<Result<_>>()?;
        let most = phases.into_iter().max_by_key(|f| f.weights + f.moments + f.step.unwrap_or(0));
        most.ok_or_else(|| Error::invalid("plan: phases", "there are none"))
    }
}

/// Of a head that is fitted and not trained: its features are computed in batches. A head over all stages counts as if
/// it kept all columns.
fn of_fit(backbone: &Backbone, head: Head, classes: usize) -> Result<Forecast> {
    let phase = Phase::new(1, Optimizer::sgd(1.0)).freeze(FreezePolicy::Backbone).batch_norm(BatchNormMode::Frozen);
    let plan = Plan::new(vec![phase.clone()]).batch_size(BATCH);
    let linear = of_phase(&plan, &phase, backbone, Head::linear(), classes)?;
    let shapes = |head: Head| head.shapes(backbone.blueprint(), classes);
    let size = |shapes: Vec<(String, Vec<usize>)>| {
        shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>()
            * backbone.inner.profile.dtype.size_in_bytes()
    };
    Ok(Forecast { weights: linear.weights - size(shapes(Head::linear())) + size(shapes(head)), ..linear })
}

/// Images of a batch whose features are computed.
const BATCH: usize = 32;

/// The largest batch of images that is forecast, in bytes.
const MOST: usize = 16 << 30;

fn of_phase(plan: &Plan, phase: &Phase, backbone: &Backbone, head: Head, classes: usize) -> Result<Forecast> {
    let Profile { blueprint, spec, dtype, .. } = &backbone.inner.profile;
    let size = dtype.size_in_bytes();
    let rehearsal = Rehearsal::new(phase, backbone, head, classes)?;
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let of_head = head.shapes(blueprint, classes);
    let of_backbone = blueprint.declared().iter().map(|d| elements(&d.shape));
    let all: usize = of_backbone.chain(of_head.iter().map(|(_, s)| elements(s))).sum();
    let learns = rehearsal.learns();
    let learning: usize = learns.iter().sum();

    // Averages, the weights that a penalty pulls back to, and gradients that wait are as large as what is trained.
    let beside = usize::from(plan.ema.is_some()) + usize::from(plan.l2_sp > 0.0) + usize::from(plan.grad_accum > 1);
    let beside = beside * learning * size;
    let moments = phase.moments() * learning * size;
    let (height, width) = spec.size;
    let images = [spec.channels, height, width, size].into_iter().try_fold(plan.batch_size, usize::checked_mul);
    let Some(images) = images.filter(|&bytes| bytes <= MOST) else {
        let problem = format!("{}; its images alone would take more than {} GB", plan.batch_size, MOST >> 30);
        return Err(Error::invalid("plan: batch_size", problem));
    };
    if blueprint.is_opaque() {
        return Ok(Forecast { weights: all * size, moments: moments + beside, step: None, multiply_adds: None });
    }
    let step = |before: Option<&StepMemory>, moments: &[usize]| -> Result<StepMemory> {
        Ok(rehearsal.run(plan.batch_size, before)?.logits.backward(moments))
    };
    // In the second step the moments exist that the first one's update allocated.
    let per_element = phase.moments();
    let made: Vec<usize> = learns.iter().flat_map(|&elements| vec![elements; per_element]).collect();
    let first = step(None, &made)?;
    let touched = first.touched().max(step(Some(&first), &[])?.touched());
    // The batch itself is held beside its copy in the kernels' layout.
    let step = images + touched.saturating_sub(moments);
    // At its start a session copies the trainable parameters, before it allocates moments.
    let step = step.max((learning * size).saturating_sub(moments));
    let of_image = |all: u64| all / plan.batch_size as u64;
    let multiply_adds = MultiplyAdds { forward: of_image(first.forward), backward: of_image(first.backward) };
    let moments = moments + beside;
    Ok(Forecast { weights: all * size, moments, step: Some(step), multiply_adds: Some(multiply_adds) })
}
