//! Where a network's tensors live while it is built: frozen, learning, or kept up to date on the side.

use crate::error::{Error, Result};
use crate::nn::Folded;
use crate::ops::Filter;
use candle_core::{Tensor, TensorId, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A tensor and its role.
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    /// Never changes. A plain tensor, so nothing is recorded for it.
    Frozen(Tensor),
    /// Learns by gradient.
    Param(Var),
    /// Changes outside the gradient: a batch norm's running statistics.
    Buffer(Var),
    /// Would learn, but has no numbers of its own: part of a sketch.
    Paper(Tensor),
}

impl Slot {
    /// The tensor, tracked if it learns.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Frozen(t) | Self::Paper(t) => t,
            Self::Param(v) | Self::Buffer(v) => v.as_tensor(),
        }
    }

    /// The tensor without the graph; shares storage.
    pub fn detached(&self) -> Tensor {
        match self {
            Self::Frozen(t) => t.clone(),
            Self::Paper(t) => t.detach(),
            Self::Param(v) | Self::Buffer(v) => v.as_detached_tensor(),
        }
    }
}

/// What a tensor is for: decides its role, its random start and whether weight decay applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A convolution's kernel.
    Kernel,
    /// A convolution's bias.
    Bias,
    /// A batch norm's weight.
    NormWeight,
    /// A batch norm's bias.
    NormBias,
    /// A batch norm's running mean.
    RunningMean,
    /// A batch norm's running variance.
    RunningVar,
}

/// One tensor of an architecture, as the building code asked for it.
#[derive(Debug, Clone)]
pub(crate) struct Declared {
    pub name: String,
    pub shape: Vec<usize>,
    pub kind: Kind,
    /// The index of its block.
    pub block: usize,
}

/// Answers a network's request for a tensor.
pub(crate) trait Provider {
    fn slot(&self, declared: &Declared) -> Result<Slot>;

    /// Whether the network will be used so often that packed copies of frozen weights are worth their memory.
    fn reused(&self) -> bool {
        true
    }
}

/// Slots by canonical name, sorted, so that every pass over them has one order.
pub(crate) type Slots = BTreeMap<String, Slot>;

/// Name and id of every learning parameter.
pub(crate) fn parameter_ids(slots: &Slots) -> impl Iterator<Item = (&str, TensorId)> {
    slots.iter().filter_map(|(name, slot)| match slot {
        Slot::Param(var) => Some((name.as_str(), var.id())),
        _ => None,
    })
}

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

    /// It lives for one evaluation, beside all that training keeps.
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
    let problem = format!("has shape {:?}, and the architecture wants {:?}", tensor.dims(), declared.shape);
    Err(Error::invalid(format!("tensor {}", declared.name), problem))
}

/// Shapes alone: what does this architecture consist of? The tensors it hands out hold one number each.
pub(crate) struct Shapes;

impl Provider for Shapes {
    fn slot(&self, declared: &Declared) -> Result<Slot> {
        let zero = Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu)?;
        Ok(Slot::Frozen(zero.broadcast_as(declared.shape.as_slice())?))
    }
}

/// A block: the unit of freezing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockInfo {
    /// The name, a prefix of the block's tensors as a rule: "layer1.0", "blocks.2.1"; the first is "stem".
    pub name: String,
    /// The stage it belongs to: "layer1", "blocks.2".
    pub stage: String,
    /// How many learnable parameters it holds.
    pub parameters: usize,
}

/// A part of a network: image in, image out.
pub(crate) trait Layer: Send + Sync {
    fn forward(&self, x: &crate::ops::FeatureMap) -> Result<crate::ops::FeatureMap>;
}

/// Collects the blocks of a network while an architecture's code builds it.
pub(crate) struct Builder<'a> {
    provider: &'a dyn Provider,
    /// Channels of the input images.
    pub channels: usize,
    pub blocks: Vec<BlockInfo>,
    pub layers: Vec<Box<dyn Layer>>,
    /// Every tensor asked for, in order.
    pub declared: Vec<Declared>,
    /// The folded convolutions, by name: what the audit watches.
    pub folded: Vec<(String, Arc<Folded>)>,
}

impl<'a> Builder<'a> {
    pub fn new(provider: &'a dyn Provider, channels: usize) -> Self {
        Self { provider, channels, blocks: vec![], layers: vec![], declared: vec![], folded: vec![] }
    }

    /// Adds a block. Every tensor that `build` asks for belongs to it, so each belongs to exactly one.
    pub fn block<L: Layer + 'static>(
        &mut self,
        name: impl Into<String>,
        stage: impl Into<String>,
        build: impl FnOnce(&mut Self) -> Result<L>,
    ) -> Result<()> {
        self.blocks.push(BlockInfo { name: name.into(), stage: stage.into(), parameters: 0 });
        let layer = build(self)?;
        self.layers.push(Box::new(layer));
        Ok(())
    }

    /// The weights of a convolution.
    pub fn filter(&self, tensor: Tensor) -> Filter {
        let filter = Filter::new(tensor);
        if self.provider.reused() { filter } else { filter.temporary() }
    }

    /// The tensor called `name` of this shape.
    pub fn slot(&mut self, name: String, shape: Vec<usize>, kind: Kind) -> Result<Slot> {
        let block = self.blocks.len().saturating_sub(1);
        let declared = Declared { name, shape, kind, block };
        let slot = self.provider.slot(&declared)?;
        if !matches!(kind, Kind::RunningMean | Kind::RunningVar)
            && let Some(block) = self.blocks.last_mut()
        {
            block.parameters += declared.shape.iter().product::<usize>();
        }
        self.declared.push(declared);
        Ok(slot)
    }
}
