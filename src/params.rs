//! A tensor's role in a network: frozen, trainable or running statistic; and the facts of a declared tensor.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;

/// A tensor and its role.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// Frozen. A plain tensor, so nothing is recorded for it.
    Frozen(Tensor),
    /// Trainable.
    Param(Var),
    /// Changes outside the gradient: a batch norm's running statistics.
    Buffer(Var),
    /// Trainable, but without elements: part of a dry run.
    Symbolic(Tensor),
}

impl Slot {
    /// The tensor, tracked if it is trainable.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Frozen(t) | Self::Symbolic(t) => t,
            Self::Param(v) | Self::Buffer(v) => v.as_tensor(),
        }
    }

    /// The tensor without the graph; shares storage.
    pub fn detached(&self) -> Tensor {
        match self {
            Self::Frozen(t) => t.clone(),
            Self::Symbolic(t) => t.detach(),
            Self::Param(v) | Self::Buffer(v) => v.as_detached_tensor(),
        }
    }
}

/// The facts of a tensor besides its name and shape. The code that builds a layer states them once; roles, weight
/// decay, random initialisation, counting and loading read them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Facts {
    pub kind: Kind,
    /// How it is initialised without pretrained weights.
    pub init: TensorInit,
    /// Whether weight decay applies.
    pub decays: bool,
    /// The dimension of the images' channels, for the tensor that is applied to the images.
    pub image_channels: Option<usize>,
}

/// The tensor's kind, which determines its role while the layer's block is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Trained with its block: kernels, matrices, biases, and the weight and bias of a layer norm.
    Parameter,
    /// The weight or bias of a batch norm: `BatchNormMode` decides whether it is trained.
    BatchNormAffine,
    /// The running mean of a batch norm.
    RunningMean,
    /// The running variance of a batch norm.
    RunningVariance,
}

/// The values that a tensor starts with in a network without pretrained weights.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum TensorInit {
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// All this value.
    Constant(f64),
    /// Normal with this standard deviation and mean 0.
    Normal(f64),
    /// Uniform in (-bound, bound).
    Uniform(f64),
}

impl TensorInit {
    /// Refuses values that no tensor can start with; `what` is the tensor.
    pub(crate) fn check(self, what: &str) -> Result<()> {
        let problem = match self {
            Self::Constant(value) if !value.is_finite() => format!("starts as {value}; it must be finite"),
            Self::Normal(size) | Self::Uniform(size) if !(size.is_finite() && size >= 0.0) => {
                format!("starts at random within {size}; that must be finite and not negative")
            }
            _ => return Ok(()),
        };
        Err(Error::invalid(what, problem))
    }
}

impl Facts {
    const fn new(kind: Kind, init: TensorInit, decays: bool) -> Self {
        Self { kind, init, decays, image_channels: None }
    }

    pub const BIAS: Self = Self::new(Kind::Parameter, TensorInit::Zeros, false);
    pub const BATCH_NORM_WEIGHT: Self = Self::new(Kind::BatchNormAffine, TensorInit::Ones, false);
    pub const BATCH_NORM_BIAS: Self = Self::new(Kind::BatchNormAffine, TensorInit::Zeros, false);
    pub const RUNNING_MEAN: Self = Self::new(Kind::RunningMean, TensorInit::Zeros, false);
    pub const RUNNING_VARIANCE: Self = Self::new(Kind::RunningVariance, TensorInit::Ones, false);

    /// A kernel followed by a ReLU, from He's normal distribution over the fan-out (He et al. 2015, arXiv 1502.01852).
    pub fn kernel(fan_out: usize) -> Self {
        Self::new(Kind::Parameter, TensorInit::Normal((2.0 / fan_out.max(1) as f64).sqrt()), true)
    }

    /// A trainable tensor of another layer: those of rank 2 and more decay, as weight decay is meant for matrices.
    pub fn parameter(init: TensorInit, rank: usize) -> Self {
        Self::new(Kind::Parameter, init, rank > 1)
    }

    /// Is applied to the images, whose channels are dimension `dim`.
    pub fn over_images(mut self, dim: usize) -> Self {
        self.image_channels = Some(dim);
        self
    }

    /// Whether it is a statistic: no gradient and no optimizer reach it.
    pub fn is_statistic(&self) -> bool {
        matches!(self.kind, Kind::RunningMean | Kind::RunningVariance)
    }
}

/// One tensor of a network, as the code that builds it declares it.
#[derive(Debug, Clone)]
pub(crate) struct Declared {
    pub name: String,
    pub shape: Vec<usize>,
    pub facts: Facts,
    /// The index of its block.
    pub block: usize,
}

impl Declared {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Provides the tensors that a network declares.
pub(crate) trait Provider {
    fn slot(&self, declared: &Declared) -> Result<Slot>;

    /// Whether the network will be used so often that packed copies of frozen weights are worth their memory.
    fn reused(&self) -> bool {
        true
    }
}

/// Slots by canonical name, sorted, so that every pass over them has one order.
pub(crate) type Slots = BTreeMap<String, Slot>;

/// A store as it is.
impl Provider for Slots {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let slot = self.get(&declared.name).ok_or_else(|| missing(declared))?;
        checked(declared, slot.tensor())?;
        Ok(slot.clone())
    }
}

/// Everything frozen: evaluation of weights that will change again.
pub(crate) struct AllFrozen<'a>(pub &'a Slots);

impl Provider for AllFrozen<'_> {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let slot = self.0.get(&declared.name).ok_or_else(|| missing(declared))?;
        checked(declared, slot.tensor())?;
        Ok(Slot::Frozen(slot.detached()))
    }

    /// It lives for one evaluation, beside training's own memory.
    fn reused(&self) -> bool {
        false
    }
}

/// Plain tensors, everything frozen.
impl Provider for BTreeMap<String, Tensor> {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let tensor = self.get(&declared.name).ok_or_else(|| missing(declared))?;
        checked(declared, tensor)?;
        Ok(Slot::Frozen(tensor.clone()))
    }
}

fn missing(declared: &Declared) -> Error {
    Error::invalid(format!("tensor {}", declared.name), "is missing from the weights")
}

fn checked(declared: &Declared, tensor: &Tensor) -> Result<()> {
    if tensor.dims() == declared.shape {
        return Ok(());
    }
    let problem = format!("has shape {:?}, but the network needs {:?}", tensor.dims(), declared.shape);
    Err(Error::invalid(format!("tensor {}", declared.name), problem))
}

/// Shapes alone, to record a network's blocks and tensors. Its tensors hold one element each.
pub(crate) struct Shapes;

impl Provider for Shapes {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let zero = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
        Ok(Slot::Frozen(zero.broadcast_as(declared.shape.as_slice())?))
    }
}
