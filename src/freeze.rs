//! Which parts of a network are frozen.

use crate::blueprint::Blueprint;
use crate::error::{Error, Result, nearest, shown};
use crate::head::Head;
use crate::nn::BlockInfo;
use crate::params::{Declared, Kind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Which part of a network is frozen: never updated, computed without a graph, batch norms folded into convolutions.
///
/// The plan's version covers its serialised form.
///
/// ```
/// use candle_finetune::{Arch, Backbone, FreezePolicy};
/// use candle_finetune::candle_core::Device;
///
/// let backbone = Backbone::random(Arch::RESNET18, 1, &Device::Cpu)?;
/// // The stem and both blocks of layer1.
/// assert_eq!(FreezePolicy::UpTo("layer1".into()).frozen_blocks(&backbone)?, 3);
/// assert_eq!(FreezePolicy::First(3).frozen_blocks(&backbone)?, 3);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FreezePolicy {
    /// Everything is trained.
    Nothing,
    /// The whole backbone is frozen; only the head is trained.
    Backbone,
    /// The first k blocks are frozen; the stem is the first.
    First(usize),
    /// All but the last k blocks are frozen: the last k are trained.
    AllBut(usize),
    /// All blocks up to this stage or block are frozen (inclusive).
    UpTo(String),
    /// The tensors with these names, or whose names start with these and a dot, are frozen, in any block. The head's
    /// tensors can be named as well; their names start with the classifier's.
    Named(Vec<String>),
}

/// How batch norms in trainable blocks behave while training. In frozen blocks they are always frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BatchNormMode {
    /// Running statistics normalise and do not change; weight and bias are frozen.
    Frozen,
    /// Running statistics normalise and do not change; weight and bias are trained.
    FrozenStats,
    /// The batch's statistics normalise and update the running ones; weight and bias are trained.
    Train,
}

/// How a tensor takes part in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Frozen,
    Param,
    Buffer,
}

/// A policy applied to the blocks of one backbone.
pub(crate) struct Frozen {
    /// The number of leading blocks that are frozen entirely.
    pub prefix: usize,
    names: Vec<String>,
}

impl FreezePolicy {
    /// The first `k` blocks, by the name of the last of them.
    pub(crate) fn up_to(backbone: &crate::Backbone, k: usize) -> Self {
        let blocks = backbone.blocks();
        match k.checked_sub(1).and_then(|last| blocks.get(last)) {
            None => Self::Nothing,
            Some(_) if k == blocks.len() => Self::Backbone,
            Some(last) => Self::UpTo(last.name.clone()),
        }
    }

    /// The number of leading blocks that are frozen entirely.
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] for a name that the backbone does not have, [`Error::Invalid`] for more blocks than it
    /// has, [`Error::Unsupported`] for a part of a network that cannot be divided.
    pub fn frozen_blocks(&self, backbone: &crate::Backbone) -> Result<usize> {
        Ok(self.resolve_for_any_head(backbone.blueprint())?.prefix)
    }

    /// Refuses a phase with this policy and mode that the network does not support.
    pub(crate) fn check(&self, blueprint: &Blueprint, mode: BatchNormMode) -> Result<()> {
        let frozen = self.resolve_for_any_head(blueprint)?;
        let limits = blueprint.limits();
        let any = |role: Role| blueprint.declared().iter().any(|d| frozen.role(d, mode) == role);
        for (what, why, role) in [
            ("be trained", limits.learning, Role::Param),
            ("normalise by the statistics of a batch", limits.batch_statistics, Role::Buffer),
        ] {
            if let Some(why) = why.filter(|_| any(role)) {
                return Err(Error::unsupported(blueprint.name(), what, why));
            }
        }
        Ok(())
    }

    /// Resolves for an unknown head: accepts the tensor names of every kind of head.
    fn resolve_for_any_head(&self, blueprint: &Blueprint) -> Result<Frozen> {
        let heads: Vec<String> =
            [Head::linear(), Head::mlp(1)].iter().flat_map(|head| head.names(blueprint, 1)).collect();
        self.resolve(blueprint, &heads)
    }

    /// `head`: the names of the head's tensors.
    pub(crate) fn resolve(&self, blueprint: &Blueprint, head: &[String]) -> Result<Frozen> {
        let (blocks, declared) = (blueprint.blocks(), blueprint.declared());
        let n = blocks.len();
        let divided = || {
            let why = blueprint.limits().parts?;
            Some(Error::unsupported(blueprint.name(), "be frozen in part", why))
        };
        let at_most = |k: usize| {
            if k <= n {
                return Ok(k);
            }
            Err(divided().unwrap_or_else(|| {
                Error::invalid("freeze policy", format!("counts {k} blocks, but the backbone has {n}"))
            }))
        };
        let prefix = match self {
            Self::Nothing => 0,
            Self::Backbone => n,
            Self::First(k) => at_most(*k)?,
            Self::AllBut(k) => n - at_most(*k)?,
            Self::UpTo(name) => {
                blocks.iter().rposition(|b| b.name == *name || b.stage == *name).map(|i| i + 1).ok_or_else(|| {
                    let part = declared.iter().any(|d| covers(name, &d.name)).then(divided).flatten();
                    part.unwrap_or_else(|| unknown(name, blocks))
                })?
            }
            Self::Named(names) => {
                let tensors = || declared.iter().map(|d| &d.name).chain(head);
                if let Some(name) = names.iter().find(|name| !tensors().any(|tensor| covers(name, tensor))) {
                    return Err(nearest_tensors(name, tensors()));
                }
                let frozen = |i: usize| {
                    declared.iter().filter(|d| d.block == i).all(|d| names.iter().any(|n| covers(n, &d.name)))
                };
                let prefix = (0..n).take_while(|&i| frozen(i)).count();
                return Ok(Frozen { prefix, names: names.clone() });
            }
        };
        Ok(Frozen { prefix, names: vec![] })
    }
}

/// Whether `name` is the tensor's or that of a module that contains it; prefixes end at dots.
fn covers(name: &str, tensor: &str) -> bool {
    tensor.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn unknown(name: &str, blocks: &[BlockInfo]) -> Error {
    let mut known: Vec<String> = vec![];
    for block in blocks {
        for name in [&block.stage, &block.name] {
            if !known.contains(name) {
                known.push(name.clone());
            }
        }
    }
    Error::UnknownBlock { name: name.to_string(), known }
}

/// The error for a name that owns no tensor, with the most similar names of tensors and modules.
fn nearest_tensors<'a>(name: &str, tensors: impl Iterator<Item = &'a String>) -> Error {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for tensor in tensors {
        known.insert(tensor);
        known.extend(tensor.match_indices('.').map(|(dot, _)| &tensor[..dot]));
    }
    Error::UnknownBlock { name: shown(name), known: nearest(name, known, 5) }
}

impl Frozen {
    /// Whether a tensor, of the backbone or the head, is frozen by its name.
    pub fn names(&self, tensor: &str) -> bool {
        self.names.iter().any(|name| covers(name, tensor))
    }

    /// The role of a tensor.
    pub fn role(&self, d: &Declared, mode: BatchNormMode) -> Role {
        if d.block < self.prefix || self.names(&d.name) {
            return Role::Frozen;
        }
        // Mean and variance go together: a norm takes both from the batch or both from its running statistics.
        if let (true, Some((norm, _))) = (d.facts.is_statistic(), d.name.rsplit_once('.'))
            && (self.names(&format!("{norm}.running_mean")) || self.names(&format!("{norm}.running_var")))
        {
            return Role::Frozen;
        }
        match (d.facts.kind, mode) {
            (Kind::RunningMean | Kind::RunningVariance, BatchNormMode::Train) => Role::Buffer,
            (Kind::RunningMean | Kind::RunningVariance, _) | (Kind::BatchNormAffine, BatchNormMode::Frozen) => {
                Role::Frozen
            }
            (Kind::Parameter | Kind::BatchNormAffine, _) => Role::Param,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Backbone};
    use candle_core::Device;

    #[test]
    fn policies_count_blocks() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        let count = |policy: FreezePolicy| policy.frozen_blocks(&backbone);
        assert_eq!(backbone.blocks().len(), 10);
        assert_eq!(count(FreezePolicy::Nothing).unwrap(), 0);
        assert_eq!(count(FreezePolicy::Backbone).unwrap(), 10);
        assert_eq!(count(FreezePolicy::First(1)).unwrap(), 1);
        assert_eq!(count(FreezePolicy::AllBut(1)).unwrap(), 9);
        assert_eq!(count(FreezePolicy::UpTo("layer1".into())).unwrap(), 4);
        assert_eq!(count(FreezePolicy::UpTo("layer2.0".into())).unwrap(), 5);
        let named = |names: &[&str]| FreezePolicy::Named(names.iter().map(ToString::to_string).collect());
        assert_eq!(count(named(&["conv1", "bn1", "layer1"])).unwrap(), 4);
        assert_eq!(count(named(&["conv1", "layer1"])).unwrap(), 0);
        assert_eq!(count(named(&["conv1", "bn1", "layer1.0", "layer3"])).unwrap(), 2);
        let error = count(FreezePolicy::UpTo("layer9".into())).unwrap_err().to_string();
        assert!(error.contains("layer9") && error.contains("layer3.2"), "{error}");
        assert!(count(named(&["layer1.1", "layer"])).is_err(), "prefixes end at dots");
        assert!(count(FreezePolicy::First(11)).is_err());
    }
}
