//! Layers: tensors in their roles, and which operation they go through. All arithmetic is in `ops`.

use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::ops::{Activation, ConvStep, FeatureMap, Filter, Norm, Padding, with_slice};
use crate::params::{Builder, Kind, Slot};
use candle_core::{DType, Device, Tensor, Var};
use std::sync::{Arc, OnceLock};

/// The share of the new batch in running statistics, as PyTorch's default.
const MOMENTUM: f64 = 0.1;

/// The facts of a convolution and what follows it.
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
}

impl ConvSpec {
    /// A convolution with even padding (kernel - 1) / 2, a batch norm of epsilon 1e-5 and no activation.
    pub fn new(inputs: usize, outputs: usize, kernel: usize) -> Self {
        let padding = Padding::Even((kernel - 1) / 2);
        let act = Activation::Identity;
        Self { inputs, outputs, kernel, stride: 1, groups: 1, padding, norm: Some(1e-5), bias: false, act }
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
    /// With a bias before the norm.
    pub fn biased(mut self) -> Self {
        self.bias = true;
        self
    }
    pub fn act(mut self, act: Activation) -> Self {
        self.act = act;
        self
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
    /// Running statistics; kernel, weight and bias may learn.
    Fixed { filter: Filter, bias: Option<Tensor>, affine: [Tensor; 4] },
    /// The batch's statistics, which flow into the running ones.
    Batch { filter: Filter, bias: Option<Tensor>, affine: [Tensor; 2], running: [Var; 2] },
}

/// A frozen convolution whose batch norm is folded into kernel and bias at the first forward.
pub(crate) struct Folded {
    filter: Filter,
    bias: Option<Tensor>,
    /// weight, bias, running mean, running variance
    affine: [Tensor; 4],
    eps: f64,
    once: OnceLock<(Filter, Tensor)>,
}

impl Folded {
    /// gamma (w x + bias - mean) / sqrt(var + eps) + beta, as one kernel and bias. Computed in f64, rounded once.
    fn get(&self) -> Result<&(Filter, Tensor)> {
        if let Some(folded) = self.once.get() {
            return Ok(folded);
        }
        // On the CPU, since not every device knows f64.
        let wide = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
        let [gamma, beta, mean, var] = &self.affine;
        let a = (wide(gamma)? / (wide(var)? + self.eps)?.sqrt()?)?;
        let shift = match &self.bias {
            Some(bias) => (wide(bias)? - wide(mean)?)?,
            None => wide(mean)?.neg()?,
        };
        let bias = (wide(beta)? + (shift * &a)?)?.to_dtype(beta.dtype())?.to_device(beta.device())?;
        let folded = (self.filter.times(a), bias);
        Ok(self.once.get_or_init(|| folded))
    }

    /// Sums over the bits of the folded bias and of every copy of the folded kernel, with what they are of; none before
    /// the first forward.
    pub fn checksums(&self) -> Result<Vec<(String, u64)>> {
        let Some((filter, bias)) = self.once.get() else { return Ok(vec![]) };
        let mut sums = vec![("folded bias".to_string(), checksum(bias)?)];
        if let Some(product) = filter.kept_product() {
            sums.push(("folded kernel".to_string(), checksum(product)?));
        }
        sums.extend(filter.packed_sums());
        Ok(sums)
    }
}

/// A checksum of the bits of a float tensor, in order.
pub(crate) fn checksum(t: &Tensor) -> Result<u64> {
    let t = t.to_device(&Device::Cpu)?;
    let sum = Fingerprint::new("tensor");
    let sum = match t.dtype() {
        DType::F64 => with_slice::<f64, _>(&t, |v| Ok(sum.floats(v))),
        _ => with_slice::<f32, _>(&t, |v| Ok(sum.floats(v))),
    };
    Ok(sum?.finish())
}

impl Conv {
    /// Builds from the tensors `{conv}.weight` and, with a norm, `{norm}.{weight, bias, running_mean, running_var}`;
    /// without one, or where the specification says so, `{conv}.bias`.
    pub fn new(b: &mut Builder, conv: &str, norm: &str, spec: ConvSpec) -> Result<Self> {
        let ConvSpec { inputs, outputs: k, kernel, groups, .. } = spec;
        let weight = b.slot(format!("{conv}.weight"), vec![k, inputs / groups, kernel, kernel], Kind::Kernel)?;
        let filter = b.filter(weight.tensor().clone());
        let Some(eps) = spec.norm else {
            let bias = b.slot(format!("{conv}.bias"), vec![k], Kind::Bias)?;
            return Ok(Self { spec, variant: Variant::Biased { filter, bias: bias.tensor().clone() } });
        };
        let bias = if spec.bias { Some(b.slot(format!("{conv}.bias"), vec![k], Kind::Bias)?) } else { None };
        let mut get = |suffix: &str, kind| b.slot(format!("{norm}.{suffix}"), vec![k], kind);
        let gamma = get("weight", Kind::NormWeight)?;
        let beta = get("bias", Kind::NormBias)?;
        let mean = get("running_mean", Kind::RunningMean)?;
        let var = get("running_var", Kind::RunningVar)?;
        let all = [&weight, &gamma, &beta, &mean, &var].into_iter().chain(&bias);
        let all_frozen = all.into_iter().all(|slot| matches!(slot, Slot::Frozen(_)));
        let bias = bias.map(|slot| slot.tensor().clone());
        let variant = if let (Slot::Buffer(mean), Slot::Buffer(var)) = (&mean, &var) {
            let affine = [gamma.tensor().clone(), beta.tensor().clone()];
            Variant::Batch { filter, bias, affine, running: [mean.clone(), var.clone()] }
        } else {
            let affine = [&gamma, &beta, &mean, &var].map(|s| s.tensor().clone());
            if all_frozen {
                let folded = Arc::new(Folded { filter, bias, affine, eps, once: OnceLock::new() });
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

    /// y = act(norm(conv(x)) + residual)
    #[allow(clippy::eq_op)] // a bias less itself: nothing in value, and reached by the gradient
    pub fn join(&self, x: &FeatureMap, residual: Option<&FeatureMap>) -> Result<FeatureMap> {
        let ConvSpec { stride, groups, padding, act, norm, .. } = self.spec;
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
                // because Candle cuts the graph where it multiplies by the number 0.)
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
