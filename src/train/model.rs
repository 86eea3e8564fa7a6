//! The session's own copy of backbone and head, with each tensor in its role for the phase.

use super::averages::Averages;
use super::learner::Group;
use super::snapshot::Snapshot;
use crate::backbone::{Backbone, Network, Profile, random_tensors};
use crate::blueprint::Blueprint;
use crate::error::{Error, Result};
use crate::features::Weight;
use crate::freeze::{BatchNormMode, Frozen, Role};
use crate::head::{Head, HeadKind};
use crate::inference::Inference;
use crate::metrics::Task;
use crate::ops::overwrite;
use crate::params::{Declared, Slot, Slots};
use crate::plan::{Init, Phase, Plan};
use crate::report::{ParameterCounts, StageParameters};
use crate::rng::Seed;
use candle_core::{Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};

/// The session's own copy of backbone and head.
pub(super) struct Model {
    /// Everything of the backbone except its weights.
    pub profile: Profile,
    pub head: Head,
    pub labels: Vec<String>,
    pub task: Task,
    pub slots: Slots,
    /// The names of tensors that have been trained or updated.
    trained: BTreeSet<String>,
}

/// A model in the roles of a phase.
pub(super) struct Entered {
    pub network: Network,
    pub frozen_blocks: usize,
    /// The trainable parameters, in the order of the names.
    pub parameters: Vec<(String, Var, Group)>,
    pub counts: ParameterCounts,
}

impl Model {
    /// The plan's initial weights with a new head. Trainable tensors are copied later; frozen ones stay shared.
    pub fn start(
        backbone: &Backbone,
        head: Head,
        labels: Vec<String>,
        task: Task,
        plan: &Plan,
        seed: u64,
    ) -> Result<Self> {
        let profile = backbone.inner.profile.clone();
        let tensors = match plan.init {
            Init::Pretrained => backbone.tensors().clone(),
            Init::Random => random_tensors(&profile.blueprint, seed, profile.dtype, &profile.device)?,
        };
        let slots: Slots = tensors.into_iter().map(|(name, t)| (name, Slot::Frozen(t))).collect();
        let mut trained = BTreeSet::new();
        let of_head = head.start(backbone, labels.len(), seed)?;
        trained.extend(of_head.iter().map(|(name, _)| name.clone()));
        let mut model = Self { profile, head, labels, task, slots, trained };
        model.set_head(of_head)?;
        Ok(model)
    }

    /// Sets the head's tensors.
    pub fn set_head(&mut self, tensors: Vec<(String, Tensor)>) -> Result<()> {
        for (name, tensor) in tensors {
            // An index, such as the columns of a head over all stages, is no parameter.
            let slot = if tensor.dtype().is_float() { Slot::Param(variable(&tensor)?) } else { Slot::Frozen(tensor) };
            self.slots.insert(name, slot);
        }
        Ok(())
    }

    /// How many parameters are trainable in the present roles.
    pub fn counts(&self) -> ParameterCounts {
        count(&self.slots, self.blueprint())
    }

    pub fn blueprint(&self) -> &Blueprint {
        &self.profile.blueprint
    }

    /// The names of the head's tensors.
    pub fn head_names(&self) -> Vec<String> {
        self.head.names(self.blueprint(), self.labels.len())
    }

    /// Refuses a plan with a phase in which nothing would be trained.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let heads = self.head_names();
        for (i, phase) in plan.phases.iter().enumerate() {
            let frozen = phase.freeze.resolve(self.blueprint(), &heads)?;
            let learns = |d: &Declared| frozen.role(d, phase.batch_norm) == Role::Param;
            if heads.iter().all(|name| frozen.names(name)) && !self.blueprint().declared().iter().any(learns) {
                let problem = "freezes everything, the head too, so nothing would be trained";
                return Err(Error::invalid(format!("plan: phase {} freeze", i + 1), problem));
            }
        }
        Ok(())
    }

    /// Gives every tensor its role in the phase, and builds the network over them.
    pub fn enter(&mut self, phase: &Phase) -> Result<Entered> {
        let blueprint = self.blueprint().clone();
        let frozen = phase.freeze.resolve(&blueprint, &self.head_names())?;
        assign(&mut self.slots, blueprint.declared(), &frozen, phase.batch_norm)?;
        let moving = self.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Param(_) | Slot::Buffer(_)));
        self.trained.extend(moving.map(|(name, _)| name.clone()));
        let network = Network::build(&blueprint, &self.slots)?;
        let groups = groups(&self.slots, &blueprint, phase);
        let parameter = |(name, group): (String, Group)| match self.slots.get(&name) {
            Some(Slot::Param(variable)) => Some((name, variable.clone(), group)),
            _ => None,
        };
        let parameters = groups.into_iter().filter_map(parameter).collect();
        let counts = count(&self.slots, &blueprint);
        Ok(Entered { network, frozen_blocks: frozen.prefix, parameters, counts })
    }

    /// The backbone's tensors with their blocks, for features of frozen blocks.
    pub fn weights(&self) -> Vec<Weight> {
        let weight = |d: &Declared| Some(Weight::new(d.block, &d.name, self.slots.get(&d.name)?.detached()));
        self.blueprint().declared().iter().filter_map(weight).collect()
    }

    /// Logits (N, classes) of features (N, D), with a graph and dropout: of forward pass `forward` of the run.
    pub fn logits(&self, features: &Tensor, seed: u64, forward: u64) -> Result<Tensor> {
        self.head.forward(features, &self.slots, self.blueprint(), Some((Seed(seed), forward)))
    }

    /// The network as it is, frozen; must be dropped before the next step.
    pub fn inference(&self) -> Result<Inference> {
        self.inference_over(&self.slots)
    }

    /// The network over other tensors.
    pub fn inference_over(&self, slots: &Slots) -> Result<Inference> {
        let inference = Inference::of_slots(&self.profile, self.head, slots, self.labels.clone())?;
        Ok(inference.for_task(self.task, vec![]))
    }

    /// The names of the tensors of the first `blocks` blocks.
    pub fn names_before(&self, blocks: usize) -> impl Iterator<Item = &str> {
        self.blueprint().declared().iter().filter(move |d| d.block < blocks).map(|d| d.name.as_str())
    }

    /// A copy of every tensor.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.slots.iter().map(|(name, slot)| Ok((name.clone(), slot.detached().copy()?))).collect()
    }

    /// Every tensor as a value: copies of those that may change; frozen ones are shared.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let keep = |slot: &Slot| match slot {
            Slot::Frozen(t) => Ok(t.clone()),
            Slot::Param(_) | Slot::Buffer(_) | Slot::Symbolic(_) => slot.detached().copy(),
        };
        let tensors: BTreeMap<String, Tensor> =
            self.slots.iter().map(|(name, slot)| Ok((name.clone(), keep(slot)?))).collect::<Result<_>>()?;
        Ok(Snapshot { tensors, trained: self.trained.clone() })
    }

    /// The same with the averages in place of what they average.
    pub fn snapshot_over(&self, averages: &Averages) -> Result<Snapshot> {
        let mut snapshot = self.snapshot()?;
        snapshot.tensors.extend(averages.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
        Ok(snapshot)
    }

    /// Puts a snapshot back, in the present roles. Frozen tensors are replaced, never written to.
    pub fn restore(&mut self, from: &Snapshot) -> Result<()> {
        for (name, tensor) in &from.tensors {
            match self.slots.get_mut(name) {
                Some(Slot::Param(var) | Slot::Buffer(var)) => overwrite(var, tensor)?,
                Some(slot @ (Slot::Frozen(_) | Slot::Symbolic(_))) => *slot = Slot::Frozen(tensor.clone()),
                None => {}
            }
        }
        self.trained.clone_from(&from.trained);
        Ok(())
    }

    /// Puts a snapshot back, with everything frozen until the next phase is entered.
    pub fn reset(&mut self, from: &Snapshot) -> Result<()> {
        let heads = self.head_names();
        for (name, slot) in &mut self.slots {
            let Some(tensor) = from.tensors.get(name) else {
                return Err(Error::invalid("run state", format!("lacks the tensor {name}")));
            };
            let present = slot.tensor();
            // How many columns a head over all stages keeps is known when it is fitted.
            let fitted = self.head.kind == HeadKind::Stages && heads.contains(name);
            let same = tensor.dims() == present.dims() || fitted;
            if !same || tensor.dtype() != present.dtype() {
                let found = format!("{:?} {:?}", tensor.dtype(), tensor.dims());
                let problem = format!("has {name} as {found}, not {:?} {:?}", present.dtype(), present.dims());
                return Err(Error::invalid("run state", problem));
            }
            *slot = Slot::Frozen(tensor.to_device(&self.profile.device)?);
        }
        self.trained.clone_from(&from.trained);
        Ok(())
    }
}

/// Gives every tensor its role. A tensor that has it already stays the same variable.
fn assign(slots: &mut Slots, declared: &[Declared], frozen: &Frozen, mode: BatchNormMode) -> Result<()> {
    let backbone: BTreeMap<&str, &Declared> = declared.iter().map(|d| (d.name.as_str(), d)).collect();
    for (name, slot) in slots {
        let role = match backbone.get(name.as_str()) {
            Some(d) => frozen.role(d, mode),
            // The head is trained, unless it is named.
            None if frozen.names(name) => Role::Frozen,
            None => Role::Param,
        };
        let new = match (role, &*slot) {
            (Role::Frozen, Slot::Frozen(_)) | (Role::Param, Slot::Param(_)) | (Role::Buffer, Slot::Buffer(_)) => {
                continue;
            }
            // A copy: the variable may still be in use elsewhere.
            (Role::Frozen, slot) => Slot::Frozen(slot.detached().copy()?),
            (Role::Param, slot) => Slot::Param(variable(&slot.detached())?),
            (Role::Buffer, slot) => Slot::Buffer(variable(&slot.detached())?),
        };
        *slot = new;
    }
    Ok(())
}

/// A variable with a copy of the tensor.
fn variable(t: &Tensor) -> Result<Var> {
    // Candle copies here unless the tensor is a variable itself.
    Ok(Var::from_tensor(&t.detach())?)
}

/// How each trainable tensor is stepped: earlier stages at smaller rates, decay for kernels and weights alone.
fn groups(slots: &Slots, blueprint: &Blueprint, phase: &Phase) -> BTreeMap<String, Group> {
    let (blocks, declared) = (blueprint.blocks(), blueprint.declared());
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
                    Group { lr_scale, decays: d.facts.decays }
                }
                None => Group { lr_scale: 1.0, decays: slot.tensor().rank() > 1 },
            };
            (name.clone(), group)
        })
        .collect()
}

/// Counts trainable and frozen parameters.
fn count(slots: &Slots, blueprint: &Blueprint) -> ParameterCounts {
    let (blocks, declared) = (blueprint.blocks(), blueprint.declared());
    let mut all = ParameterCounts::default();
    for d in declared.iter().filter(|d| !d.facts.is_statistic()) {
        let stage = &blocks[d.block].stage;
        if all.stages.last().is_none_or(|s| s.name != *stage) {
            all.stages.push(StageParameters { name: stage.clone(), learning: 0, frozen: 0 });
        }
        let size = d.shape.iter().product::<usize>();
        let learns = matches!(slots.get(&d.name), Some(Slot::Param(_)));
        if let Some(last) = all.stages.last_mut() {
            *(if learns { &mut last.learning } else { &mut last.frozen }) += size;
        }
    }
    let known: std::collections::BTreeSet<&str> = declared.iter().map(|d| d.name.as_str()).collect();
    let mut head = StageParameters { name: "head".into(), learning: 0, frozen: 0 };
    for (_, slot) in slots.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        let learns = matches!(slot, Slot::Param(_));
        let parameters = if slot.tensor().dtype().is_float() { slot.tensor().elem_count() } else { 0 };
        *(if learns { &mut head.learning } else { &mut head.frozen }) += parameters;
    }
    all.stages.push(head);
    all.learning = all.stages.iter().map(|s| s.learning).sum();
    all.frozen = all.stages.iter().map(|s| s.frozen).sum();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Backbone, FreezePolicy, Optimizer, Recipe};
    use candle_core::{DType, Device};

    /// Of a backbone with a linear head, in which everything is trained.
    fn groups_of(phase: &Phase) -> BTreeMap<String, Group> {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        let blueprint = backbone.blueprint();
        let mut slots: Slots =
            backbone.tensors().iter().map(|(name, t)| (name.clone(), Slot::Frozen(t.clone()))).collect();
        for (name, shape) in [("linear.weight", vec![10, 64]), ("linear.bias", vec![10])] {
            let zeros = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            slots.insert(name.into(), Slot::Param(variable(&zeros).unwrap()));
        }
        let frozen = FreezePolicy::Nothing.resolve(blueprint, &[]).unwrap();
        assign(&mut slots, blueprint.declared(), &frozen, BatchNormMode::Train).unwrap();
        groups(&slots, blueprint, phase)
    }

    /// fastai: slice(1e-5, 1e-3); ULMFiT: 1/2.6 of the rate of the next; timm: 0.75 of it.
    #[test]
    fn recipes_have_the_rates_of_their_sources() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        for (recipe, last, first) in [
            (Recipe::FastaiFineTune, 1e-4, 1e-5),
            (Recipe::GradualUnfreezing, 1e-3 / 2.6, 1e-3 / 2.6f64.powi(4)),
            (Recipe::TimmLayerDecay, 5e-4 * 0.75, 5e-4 * 0.75f64.powi(4)),
        ] {
            let plan = recipe.plan(&backbone, 2);
            let phase = plan.phases.last().unwrap();
            let groups = groups_of(phase);
            let rate = |name: &str| phase.optimizer.lr * groups[name].lr_scale;
            for (name, expected) in [("layer3.2.conv2.weight", last), ("conv1.weight", first)] {
                assert!((rate(name) / expected - 1.0).abs() < 1e-9, "{recipe} {name}: {}", rate(name));
            }
        }
    }

    /// Each stage's rate is a fraction of the next one's, counted from the head.
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
