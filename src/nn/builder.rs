//! Collects the blocks and tensors of a network under construction.

use super::folded::Folded;
use crate::error::{Error, Result, shown};
use crate::ops::{FeatureMap, Filter};
use crate::params::{Declared, Facts, Provider, Slot};
use candle_core::Tensor;
use std::sync::Arc;

/// A block: the unit of freezing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockInfo {
    /// The name, a prefix of the block's tensors as a rule: "layer1.0", "blocks.2.1"; the first is "stem".
    pub name: String,
    /// Its stage: "layer1", "blocks.2".
    pub stage: String,
    /// How many trainable parameters it holds.
    pub parameters: usize,
}

/// A part of a network: image in, image out.
pub(crate) trait Module: Send + Sync {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap>;
}

impl Module for Box<dyn Module> {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.as_ref().forward(x)
    }
}

/// Elements of one tensor, at most; more are taken for a mistake.
const MOST_ELEMENTS: usize = 1 << 36;

/// Collects the blocks of a network while an architecture's code builds it.
pub(crate) struct Builder<'a> {
    provider: &'a dyn Provider,
    /// Channels of the input images.
    pub channels: usize,
    pub blocks: Vec<BlockInfo>,
    pub layers: Vec<Box<dyn Module>>,
    /// Every declared tensor, in order.
    pub declared: Vec<Declared>,
    /// The folded convolutions, by name, for the audit.
    pub folded: Vec<(String, Arc<Folded>)>,
    /// Whether a layer is custom, so that a dry run does not cover it.
    pub opaque: bool,
}

impl<'a> Builder<'a> {
    pub fn new(provider: &'a dyn Provider, channels: usize) -> Self {
        Self { provider, channels, blocks: vec![], layers: vec![], declared: vec![], folded: vec![], opaque: false }
    }

    /// Adds a block with every tensor that `build` declares, so each tensor is in exactly one block.
    pub fn block<L: Module + 'static>(
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
    pub fn slot(&mut self, name: String, shape: Vec<usize>, facts: Facts) -> Result<Slot> {
        let elements = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
        if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            let problem = format!("has shape {shape:?}; at most {MOST_ELEMENTS} elements are possible");
            return Err(Error::invalid(format!("tensor {}", shown(&name)), problem));
        }
        let block = self.blocks.len().saturating_sub(1);
        let declared = Declared { name, shape, facts, block };
        let slot = self.provider.slot(&declared)?;
        if !facts.is_statistic()
            && let Some(block) = self.blocks.last_mut()
        {
            block.parameters += declared.shape.iter().product::<usize>();
        }
        self.declared.push(declared);
        Ok(slot)
    }
}
