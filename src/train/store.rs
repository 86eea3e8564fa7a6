//! The session's own copy of everything, in the roles of the phase.

use crate::error::Result;
use crate::freeze::{BatchNormMode, Frozen, Role};
use crate::ops::overwrite;
use crate::optim::Group;
use crate::params::{BlockInfo, Declared, Kind, Slot, Slots};
use crate::plan::Phase;
use crate::report::{ParameterCounts, StageReport};
use candle_core::{Tensor, Var};
use std::collections::BTreeMap;

/// Gives every tensor its role. What already has it stays as it is, so optimizer state keeps its meaning.
pub(super) fn assign(slots: &mut Slots, declared: &[Declared], frozen: &Frozen, mode: BatchNormMode) -> Result<()> {
    let backbone: BTreeMap<&str, &Declared> = declared.iter().map(|d| (d.name.as_str(), d)).collect();
    for (name, slot) in slots {
        let role = match backbone.get(name.as_str()) {
            Some(d) => frozen.role(d, mode),
            // The head learns, unless it is named.
            None if frozen.names(name) => Role::Frozen,
            None => Role::Param,
        };
        let new = match (role, &*slot) {
            (Role::Frozen, Slot::Frozen(_)) | (Role::Param, Slot::Param(_)) | (Role::Buffer, Slot::Buffer(_)) => {
                continue;
            }
            // A copy: the variable may go on living elsewhere.
            (Role::Frozen, slot) => Slot::Frozen(slot.detached().copy()?),
            (Role::Param, slot) => Slot::Param(variable(&slot.detached())?),
            (Role::Buffer, slot) => Slot::Buffer(variable(&slot.detached())?),
        };
        *slot = new;
    }
    Ok(())
}

/// A variable with a copy of the tensor's numbers.
pub(super) fn variable(t: &Tensor) -> Result<Var> {
    // Of a tensor that is no variable itself, this is a copy.
    Ok(Var::from_tensor(&t.detach())?)
}

/// How each learning tensor is stepped: earlier stages at smaller rates, decay for kernels and weights alone.
pub(super) fn groups(
    slots: &Slots,
    declared: &[Declared],
    blocks: &[BlockInfo],
    phase: &Phase,
) -> BTreeMap<String, Group> {
    let mut stages: Vec<&str> = blocks.iter().map(|b| b.stage.as_str()).collect();
    stages.dedup();
    let depth = |d: &Declared| stages.iter().position(|s| *s == blocks[d.block].stage).unwrap_or(0);
    let by_name: BTreeMap<&str, &Declared> = declared.iter().map(|d| (d.name.as_str(), d)).collect();
    let learning = slots.iter().filter(|(_, slot)| matches!(slot, Slot::Param(_)));
    learning
        .map(|(name, slot)| {
            let group = match by_name.get(name.as_str()) {
                Some(d) => {
                    let from_top = (stages.len() - depth(d)) as i32;
                    let lr_scale = phase.backbone_lr_scale * phase.layer_decay.powi(from_top);
                    Group { lr_scale, decays: d.kind == Kind::Kernel }
                }
                None => Group { lr_scale: 1.0, decays: slot.tensor().rank() > 1 },
            };
            (name.clone(), group)
        })
        .collect()
}

/// Counts what learns and what is frozen.
pub(super) fn count(slots: &Slots, declared: &[Declared], blocks: &[BlockInfo]) -> ParameterCounts {
    let mut all = ParameterCounts::default();
    let statistic = |d: &Declared| matches!(d.kind, Kind::RunningMean | Kind::RunningVar);
    for d in declared.iter().filter(|d| !statistic(d)) {
        let stage = &blocks[d.block].stage;
        if all.stages.last().is_none_or(|s| s.name != *stage) {
            all.stages.push(StageReport { name: stage.clone(), learning: 0, frozen: 0 });
        }
        let size = d.shape.iter().product::<usize>();
        let learns = matches!(slots.get(&d.name), Some(Slot::Param(_)));
        if let Some(last) = all.stages.last_mut() {
            *(if learns { &mut last.learning } else { &mut last.frozen }) += size;
        }
    }
    let known: std::collections::BTreeSet<&str> = declared.iter().map(|d| d.name.as_str()).collect();
    let mut head = StageReport { name: "head".into(), learning: 0, frozen: 0 };
    for (_, slot) in slots.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        let learns = matches!(slot, Slot::Param(_));
        *(if learns { &mut head.learning } else { &mut head.frozen }) += slot.tensor().elem_count();
    }
    all.stages.push(head);
    all.learning = all.stages.iter().map(|s| s.learning).sum();
    all.frozen = all.stages.iter().map(|s| s.frozen).sum();
    all
}

/// Everything as it is: copies of what may change, and what is frozen shared.
pub(super) fn snapshot(slots: &Slots) -> Result<BTreeMap<String, Tensor>> {
    let keep = |slot: &Slot| match slot {
        Slot::Frozen(t) => Ok(t.clone()),
        Slot::Param(_) | Slot::Buffer(_) | Slot::Paper(_) => slot.detached().copy(),
    };
    slots.iter().map(|(name, slot)| Ok((name.clone(), keep(slot)?))).collect()
}

/// Puts a snapshot back. What is frozen is replaced, never written to.
pub(super) fn restore(slots: &mut Slots, from: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, tensor) in from {
        match slots.get_mut(name) {
            Some(Slot::Param(var) | Slot::Buffer(var)) => overwrite(var, tensor)?,
            Some(slot @ (Slot::Frozen(_) | Slot::Paper(_))) => *slot = Slot::Frozen(tensor.clone()),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Backbone, FreezePolicy, Optimizer};
    use candle_core::{DType, Device};

    /// Of a backbone with a linear head, in which everything learns.
    fn groups_of(phase: &Phase) -> BTreeMap<String, Group> {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        let declared = backbone.arch().declared(3).unwrap();
        let mut slots: Slots =
            backbone.tensors().iter().map(|(name, t)| (name.clone(), Slot::Frozen(t.clone()))).collect();
        for (name, shape) in [("linear.weight", vec![10, 64]), ("linear.bias", vec![10])] {
            let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            slots.insert(name.into(), Slot::Param(variable(&zeros).unwrap()));
        }
        let frozen = FreezePolicy::Nothing.resolve(backbone.blocks(), &declared, &[]).unwrap();
        assign(&mut slots, &declared, &frozen, BatchNormMode::Train).unwrap();
        groups(&slots, &declared, backbone.blocks(), phase)
    }

    /// Each stage learns at a share of the next one's rate, counted from the head.
    #[test]
    fn layer_decay_falls_stage_by_stage() {
        let phase = Phase::new(1, Optimizer::adamw(1.0)).backbone_lr_scale(0.1).layer_decay(0.5);
        let groups = groups_of(&phase);
        let scale = |name: &str| groups[name].lr_scale;
        for (name, expected) in [
            ("linear.weight", 1.0),
            ("linear.bias", 1.0),
            ("layer3.2.conv2.weight", 0.05),
            ("layer3.0.bn1.bias", 0.05),
            ("layer2.1.conv1.weight", 0.025),
            ("layer1.0.conv1.weight", 0.0125),
            ("conv1.weight", 0.00625),
            ("bn1.weight", 0.00625),
        ] {
            assert!((scale(name) - expected).abs() < 1e-12, "{name}: {}", scale(name));
        }
    }

    #[test]
    fn kernels_and_the_heads_matrix_decay_and_nothing_else() {
        let groups = groups_of(&Phase::new(1, Optimizer::adamw(1.0)));
        assert!(groups.len() > 50);
        for (name, group) in &groups {
            let matrix = name.contains("conv") || name == "linear.weight";
            assert_eq!(group.decays, matrix, "{name}");
        }
    }
}
