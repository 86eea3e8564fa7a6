//! The network that weights are loaded into.

use crate::arch::{Arch, Naming};
use crate::blueprint::Blueprint;
use crate::error::Result;
#[cfg(not(feature = "zoo"))]
use crate::error::{Error, shown};
use crate::input_spec::InputSpec;
use crate::params::Declared;
use std::fmt;

/// One of the crate's architectures, whose tensors have names in several libraries and whose images any number of
/// channels; or a blueprint as it is, a user's or one of the zoo.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Arch(Arch),
    Custom(Blueprint),
}

impl Wanted {
    /// The network that a file or a config calls by this name.
    pub fn named(name: &str) -> Result<Self> {
        if name.starts_with("zoo/") { of_zoo(name) } else { Ok(Self::Arch(name.parse()?)) }
    }

    pub fn of(blueprint: &Blueprint) -> Self {
        Arch::of(blueprint).map_or_else(|| Self::Custom(blueprint.clone()), Self::Arch)
    }

    /// Whether it is a user's own network, which the crate does not know by its name.
    pub fn is_users(&self) -> bool {
        matches!(self, Self::Custom(blueprint) if !blueprint.is_built_in())
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Arch(arch) => arch.name(),
            Self::Custom(blueprint) => blueprint.name(),
        }
    }

    pub fn arch(&self) -> Option<Arch> {
        if let Self::Arch(arch) = self { Some(*arch) } else { None }
    }

    /// The channels of images that weights have as a rule.
    pub fn usual_channels(&self) -> usize {
        match self {
            Self::Arch(_) => 3,
            Self::Custom(blueprint) => blueprint.input_spec().channels,
        }
    }

    /// The network for images of this many channels. A user's blueprint keeps its own.
    pub fn blueprint(&self, naming: Naming, channels: usize) -> Result<Blueprint> {
        match self {
            Self::Arch(arch) => arch.blueprint(naming, channels),
            Self::Custom(blueprint) => Ok(blueprint.clone()),
        }
    }

    /// Its tensors, for images of this many channels.
    pub fn declared(&self, channels: usize) -> Result<Vec<Declared>> {
        Ok(self.blueprint(Naming::Timm, channels)?.declared().to_vec())
    }

    pub fn classifier(&self) -> &str {
        match self {
            Self::Arch(arch) => arch.classifier(),
            Self::Custom(blueprint) => blueprint.classifier(),
        }
    }

    pub fn feature_dim(&self) -> usize {
        match self {
            Self::Arch(arch) => arch.feature_dim(),
            Self::Custom(blueprint) => blueprint.feature_dim(),
        }
    }

    /// The name of a tensor in a file of this naming.
    pub fn name_in(&self, naming: Naming, canonical: &str) -> String {
        match self {
            Self::Arch(arch) => arch.name_in(naming, canonical),
            Self::Custom(_) => canonical.to_string(),
        }
    }

    /// The preprocessing for weights of this naming.
    pub fn input_spec_in(&self, naming: Naming) -> InputSpec {
        match self {
            Self::Arch(arch) => arch.input_spec_in(naming),
            Self::Custom(blueprint) => blueprint.input_spec().clone(),
        }
    }

    /// Whether a file may hold this tensor although the backbone has no use for it.
    pub fn may_ignore(&self, name: &str) -> bool {
        matches!(self, Self::Arch(arch) if arch.may_ignore(name))
    }

    /// A library that the naming belongs to and that does not have this network.
    pub fn lacking(&self, naming: Naming) -> Option<&'static str> {
        let there = |known: fn(Arch) -> bool| self.arch().is_some_and(known);
        match naming {
            Naming::Torchvision => (!there(Arch::in_torchvision)).then_some("torchvision"),
            Naming::Transformers => (!there(Arch::in_transformers)).then_some("transformers"),
            Naming::Timm => None,
        }
    }
}

#[cfg(feature = "zoo")]
fn of_zoo(name: &str) -> Result<Wanted> {
    Ok(Wanted::Custom(name.parse::<crate::zoo::ZooModel>()?.blueprint()?))
}

#[cfg(not(feature = "zoo"))]
fn of_zoo(name: &str) -> Result<Wanted> {
    let why = "it is one of candle-transformers; enable the feature `zoo` of candle-finetune";
    Err(Error::unsupported(shown(name), "be loaded by this build", why))
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
