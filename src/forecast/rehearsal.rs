//! A dry run of a phase: its layers pass on sizes instead of images.

use crate::backbone::{Backbone, Network, Profile};
use crate::error::Result;
use crate::freeze::{Frozen, Role};
use crate::head::Head;
use crate::ops::{StepMemory, Symbolic};
use crate::params::{Declared, Provider, Slot};
use crate::plan::Phase;
use candle_core::{DType, Device, Var};

/// A phase whose layers pass on sizes.
pub(super) struct Rehearsal<'a> {
    phase: &'a Phase,
    backbone: &'a Backbone,
    head: Head,
    classes: usize,
    pub frozen: Frozen,
}

/// The end of a forward pass of sizes.
pub(super) struct Rehearsed {
    pub logits: Symbolic,
    /// Multiply-adds of the frozen blocks.
    pub prefix: u64,
    /// Elements of the map that they return, or of the features if all are frozen.
    pub boundary: usize,
}

impl<'a> Rehearsal<'a> {
    pub fn new(phase: &'a Phase, backbone: &'a Backbone, head: Head, classes: usize) -> Result<Self> {
        let blueprint = backbone.blueprint();
        let frozen = phase.freeze.resolve(blueprint, &head.names(blueprint, classes))?;
        Ok(Self { phase, backbone, head, classes, frozen })
    }

    /// The elements of each tensor that learns.
    pub fn learns(&self) -> Vec<usize> {
        let blueprint = self.backbone.blueprint();
        let of_head = self.head.shapes(blueprint, self.classes);
        let roles = |d: &&Declared| self.frozen.role(d, self.phase.batch_norm) == Role::Param;
        let in_backbone = blueprint.declared().iter().filter(roles).map(Declared::elements);
        let in_head = of_head.iter().filter(|(name, _)| !self.frozen.names(name));
        in_backbone.chain(in_head.map(|(_, shape)| shape.iter().product())).collect()
    }

    /// Whether every kernel and matrix of the backbone learns.
    pub fn learns_entirely(&self) -> bool {
        let kernels = self.backbone.blueprint().declared().iter().filter(|d| d.shape.len() > 1);
        kernels.into_iter().all(|d| self.frozen.role(d, self.phase.batch_norm) == Role::Param)
    }

    /// A forward pass of a batch, after the step `before`.
    pub fn run(&self, batch_size: usize, before: Option<&StepMemory>) -> Result<Rehearsed> {
        let Profile { blueprint, spec, dtype, .. } = &self.backbone.inner.profile;
        let network = Network::build(blueprint, &DryRun { frozen: &self.frozen, phase: self.phase, dtype: *dtype })?;
        let ((height, width), frozen_blocks) = (spec.size, self.frozen.prefix);
        let images = Symbolic::new((batch_size, spec.channels, height, width), *dtype, before);
        let (mut prefix, mut boundary) = (0, blueprint.feature_dim());
        let features = network.dry_run(images, |blocks, map| {
            if blocks == frozen_blocks {
                prefix = map.multiply_adds();
                if blocks < blueprint.blocks().len() {
                    let (_, c, h, w) = map.dims();
                    boundary = c * h * w;
                }
            }
        })?;
        let frozen = |name: &str| self.frozen.names(name);
        let logits = self.head.dry_run(features, blueprint, self.classes, *dtype, frozen)?;
        Ok(Rehearsed { logits: logits.into_symbolic()?, prefix, boundary })
    }
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
