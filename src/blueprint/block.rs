//! The blocks that a user builds a network from.

use crate::error::Result;
use crate::nn::{Builder, Layer};

/// A named part of a [`Blueprint`](crate::Blueprint), the unit of freezing: a name and the layer that it consists of.
///
/// ```
/// use candle_finetune::{Block, Conv2d};
/// let block = Block::new("block1", Conv2d::new(16, 32, 3).batch_norm().relu()).stage("stage1");
/// # let _ = block;
/// ```
#[derive(Debug, Clone)]
pub struct Block {
    name: String,
    stage: Option<String>,
    layer: Layer,
}

impl Block {
    /// A block of one layer, or of several with [`Layer::sequential`]. Its tensors' names begin with the block's name.
    pub fn new(name: impl Into<String>, layer: impl Into<Layer>) -> Self {
        Self { name: name.into(), stage: None, layer: layer.into() }
    }

    /// Sets its stage; by default it is a separate stage. Layer decay is per stage.
    pub fn stage(mut self, stage: impl Into<String>) -> Self {
        self.stage = Some(stage.into());
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn stage_name(&self) -> &str {
        self.stage.as_ref().unwrap_or(&self.name)
    }

    /// Name, stage and layers as text, the same in every version of the crate.
    pub(crate) fn describe(&self) -> String {
        format!("{:?} {:?} {}", self.name, self.stage_name(), self.layer.describe())
    }

    pub(crate) fn build(&self, b: &mut Builder<'_>) -> Result<()> {
        b.block(&self.name, self.stage_name(), |b| self.layer.build(b, &self.name))
    }
}
