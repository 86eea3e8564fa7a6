//! Convolutions with their batch norm (or bias) and activation.

use super::builder::{Builder, Module};
use super::drop_path::skipping;
use super::folded::Folded;
use crate::error::{Error, Result};
use crate::ops::{Activation, ConvStep, FeatureMap, Filter, Norm, Padding};
use crate::params::{Facts, Slot};
use candle_core::{Tensor, Var};
use std::sync::Arc;

/// The weight of the new batch in running statistics, as PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// Larger settings of a convolution are refused: their products would not fit the machine's integers.
const MOST: usize = 1 << 16;

/// The facts of a convolution with its norm and activation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvSpec {
    pub inputs: usize,
    pub outputs: usize,
    pub kernel: usize,
    pub stride: usize,
    pub groups: usize,
    pub padding: Padding,
    /// The batch norm's epsilon; `None` for a convolution with a bias instead.
    pub norm: Option<f64>,
    /// A bias before the norm, which is redundant but there in some families.
    pub bias: bool,
    pub act: Activation,
    /// Whether its inputs are the channels of the images, so that it changes with their number.
    pub on_images: bool,
}

impl ConvSpec {
    /// A convolution with even padding (kernel - 1) / 2, a batch norm of epsilon 1e-5 and no activation.
    pub fn new(inputs: usize, outputs: usize, kernel: usize) -> Self {
        let padding = Padding::Even(kernel.saturating_sub(1) / 2);
        let act = Activation::Identity;
        Self {
            inputs,
            outputs,
            kernel,
            stride: 1,
            groups: 1,
            padding,
            norm: Some(1e-5),
            bias: false,
            act,
            on_images: false,
        }
    }
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }
    pub fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }
    pub fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }
    pub fn norm(mut self, eps: Option<f64>) -> Self {
        self.norm = eps;
        self
    }
    /// Over the images themselves: the first convolution of a network.
    pub fn on_images(mut self) -> Self {
        self.on_images = true;
        self
    }
    /// With a bias before the norm.
    pub fn biased(mut self) -> Self {
        self.bias = true;
        self
    }
    pub fn act(mut self, act: Activation) -> Self {
        self.act = act;
        self
    }

    /// Its settings as text, the same in every version of the crate.
    pub fn describe(&self) -> String {
        let Self { inputs, outputs, kernel, stride, groups, padding, norm, bias, act, on_images: _ } = self;
        let padding = match padding {
            Padding::Even(pixels) => pixels.to_string(),
            Padding::Same => "same".into(),
            Padding::Sides(sides) => format!("{sides:?}"),
        };
        let norm = norm.map_or("bias".into(), |eps| format!("batch norm {eps:e}{}", if *bias { " bias" } else { "" }));
        format!("{inputs} {outputs} {kernel} {stride} {groups} {padding} {norm} {}", act.name())
    }

    /// Refuses invalid settings; `place` is its name in messages.
    pub fn check(&self, place: &str) -> Result<()> {
        let Self { inputs, outputs, kernel, stride, groups, padding, .. } = *self;
        let large = |padding: Padding| matches!(padding, Padding::Even(pixels) if pixels > MOST);
        let problem = if [inputs, outputs, kernel, stride, groups].contains(&0) {
            "inputs, outputs, kernel, stride and groups are at least 1".to_string()
        } else if [inputs, outputs, kernel, stride].into_iter().any(|size| size > MOST) || large(padding) {
            format!("inputs, outputs, kernel, stride and padding are at most {MOST}")
        } else if inputs % groups != 0 || outputs % groups != 0 {
            format!("{groups} groups do not divide {inputs} inputs and {outputs} outputs")
        } else {
            return Ok(());
        };
        Err(Error::invalid(format!("convolution {place}"), problem))
    }
}

/// A convolution with its batch norm (or bias) and activation.
pub(crate) struct Conv {
    spec: ConvSpec,
    variant: Variant,
}

/// How the convolution and its norm are computed, chosen when the layer is built, from the roles of its tensors.
enum Variant {
    /// No norm.
    Biased { filter: Filter, bias: Tensor },
    /// All frozen: the norm folded into the convolution.
    Folded(Arc<Folded>),
    /// Running statistics; kernel, weight and bias may be trained.
    Fixed { filter: Filter, bias: Option<Tensor>, affine: [Tensor; 4] },
    /// The batch's statistics, which flow into the running ones.
    Batch { filter: Filter, bias: Option<Tensor>, affine: [Tensor; 2], running: [Var; 2] },
}

impl Module for Conv {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        Self::forward(self, x)
    }
}

impl Conv {
    /// Builds from the tensors `{conv}.weight` and, with a norm, `{norm}.{weight, bias, running_mean, running_var}`;
    /// without one, or if the specification has one, `{conv}.bias`.
    pub fn new(b: &mut Builder, conv: &str, norm: &str, spec: ConvSpec) -> Result<Self> {
        let ConvSpec { inputs, outputs: k, kernel, groups, .. } = spec;
        // In a depthwise convolution every kernel has a separate fan-out.
        let fan_out = if groups > 1 && groups == inputs { kernel * kernel } else { k * kernel * kernel };
        let facts = Facts::kernel(fan_out);
        let facts = if spec.on_images { facts.over_images(1) } else { facts };
        let weight = b.slot(format!("{conv}.weight"), vec![k, inputs / groups, kernel, kernel], facts)?;
        let filter = b.filter(weight.tensor().clone());
        let Some(eps) = spec.norm else {
            let bias = b.slot(format!("{conv}.bias"), vec![k], Facts::BIAS)?;
            return Ok(Self { spec, variant: Variant::Biased { filter, bias: bias.tensor().clone() } });
        };
        let bias = if spec.bias { Some(b.slot(format!("{conv}.bias"), vec![k], Facts::BIAS)?) } else { None };
        let mut get = |suffix: &str, facts| b.slot(format!("{norm}.{suffix}"), vec![k], facts);
        let gamma = get("weight", Facts::BATCH_NORM_WEIGHT)?;
        let beta = get("bias", Facts::BATCH_NORM_BIAS)?;
        let mean = get("running_mean", Facts::RUNNING_MEAN)?;
        let var = get("running_var", Facts::RUNNING_VARIANCE)?;
        let all = [&weight, &gamma, &beta, &mean, &var].into_iter().chain(&bias);
        let all_frozen = all.into_iter().all(|slot| matches!(slot, Slot::Frozen(_)));
        let bias = bias.map(|slot| slot.tensor().clone());
        let variant = if let (Slot::Buffer(mean), Slot::Buffer(var)) = (&mean, &var) {
            let affine = [gamma.tensor().clone(), beta.tensor().clone()];
            Variant::Batch { filter, bias, affine, running: [mean.clone(), var.clone()] }
        } else {
            let affine = [&gamma, &beta, &mean, &var].map(|s| s.tensor().clone());
            if all_frozen {
                let folded = Arc::new(Folded::new(filter, bias, affine, eps));
                b.folded.push((conv.to_string(), folded.clone()));
                Variant::Folded(folded)
            } else {
                Variant::Fixed { filter, bias, affine }
            }
        };
        Ok(Self { spec, variant })
    }

    /// y = act(norm(conv(x)))
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.join(x, None)
    }

    /// y = act(norm(conv(x)) + residual). In training, samples may skip the convolution and all before it in the branch.
    pub fn join(&self, x: &FeatureMap, residual: Option<&FeatureMap>) -> Result<FeatureMap> {
        let act = self.spec.act;
        if let Some(residual) = residual
            && let Some(y) = skipping(|| self.step(x, None, Activation::Identity))?
        {
            return Ok(y.add(residual)?.activate(act)?);
        }
        self.step(x, residual, act)
    }

    #[allow(clippy::eq_op)] // a bias less itself: nothing in value, and reached by the gradient
    fn step(&self, x: &FeatureMap, residual: Option<&FeatureMap>, act: Activation) -> Result<FeatureMap> {
        let ConvSpec { stride, groups, padding, norm, .. } = self.spec;
        let eps = norm.unwrap_or_default();
        let run = |filter: &Filter, norm: Norm| {
            x.conv_step(&ConvStep { filter, stride, dilation: 1, groups, padding, norm, act }, residual)
        };
        match &self.variant {
            Variant::Biased { filter, bias } => Ok(run(filter, Norm::None { bias: Some(bias) })?.0),
            Variant::Folded(folded) => {
                let (filter, bias) = folded.get()?;
                Ok(run(filter, Norm::None { bias: Some(bias) })?.0)
            }
            Variant::Fixed { filter, bias, affine: [gamma, beta, mean, var] } => {
                // The bias passes through the norm: gamma (z + bias - mean) / sqrt(var + eps) + beta.
                let moved = match bias {
                    Some(bias) => Some((beta + ((bias * gamma)? / (var.detach() + eps)?.sqrt()?)?)?),
                    None => None,
                };
                let beta = moved.as_ref().unwrap_or(beta);
                Ok(run(filter, Norm::Fixed { gamma, beta, mean, var, eps })?.0)
            }
            Variant::Batch { filter, bias, affine: [gamma, beta], running: [mean, var] } => {
                // The batch's mean takes the bias away again. Its gradient is zero, but it has one. (A difference,
                // because Candle drops the gradient where it multiplies by the scalar 0.)
                let moved = match bias {
                    Some(bias) => Some((beta + (bias - bias)?)?),
                    None => None,
                };
                let beta = moved.as_ref().unwrap_or(beta);
                let (y, moments) = run(filter, Norm::Batch { gamma, beta, eps })?;
                if let Some(moments) = moments {
                    let with_bias = bias.as_ref().map(|bias| &moments.mean + bias.detach()).transpose()?;
                    blend(mean, with_bias.as_ref().unwrap_or(&moments.mean))?;
                    blend(var, &moments.var)?;
                }
                Ok(y)
            }
        }
    }
}

/// running = (1 - momentum) running + momentum new
fn blend(running: &Var, new: &Tensor) -> Result<()> {
    let old = running.as_detached_tensor();
    Ok(running.set(&((old * (1.0 - MOMENTUM))? + (new * MOMENTUM)?)?)?)
}
