//! A network without weights.

mod block;

pub use block::Block;

use crate::error::{Error, Result, shown};
use crate::fingerprint::Fingerprint;
use crate::input_spec::InputSpec;
use crate::nn::{BlockInfo, Builder};
use crate::ops::{FeatureMap, Symbolic};
use crate::params::{Declared, Shapes};
use candle_core::DType;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Builds the blocks of a network out of a builder's tensors.
type Build = dyn Fn(&mut Builder<'_>) -> Result<()> + Send + Sync;

/// A network without weights: its name, blocks and tensors, the images that it takes and the features that it makes.
///
/// An [`Arch`](crate::Arch) of the crate is one by conversion. For your own network, make one from blocks of layers:
///
/// ```
/// use candle_finetune::candle_core::{DType, Device, Tensor};
/// use candle_finetune::{Backbone, Block, Blueprint, Conv2d, InputSpec, Layer};
///
/// let conv = |inputs, outputs| Conv2d::new(inputs, outputs, 3).batch_norm().relu();
/// let blocks = vec![
///     Block::new("stem", Layer::sequential([conv(3, 16).into(), Layer::max_pool(2, 2)])),
///     Block::new("block1", conv(16, 32).stride(2)),
///     Block::new("block2", Layer::residual(conv(32, 32))),
/// ];
/// let blueprint = Blueprint::from_blocks("small_cnn", InputSpec::new(32), 32, blocks)?;
/// let backbone = Backbone::random(&blueprint, 1, &Device::Cpu)?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(backbone.forward(&images)?.dims(), [2, 32]);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// A clone shares everything and is cheap.
#[derive(Clone)]
pub struct Blueprint {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    name: String,
    input: InputSpec,
    feature_dim: usize,
    classifier: String,
    pooling: Pooling,
    build: Arc<Build>,
    built_in: bool,
    /// What it consists of, as text: for a network of the crate which variant of it, otherwise the layers.
    layers: String,
    /// For a user's network with closures, which no text describes: a number of its own, the same for its clones.
    instance: u64,
    limits: Limits,
    // The fields below are recorded from a run of `build`.
    blocks: Vec<BlockInfo>,
    declared: Vec<Declared>,
    opaque: bool,
}

/// Limits of a network beyond those of its layers and tensors, each with the reason and the remedy. The
/// crate's own layers have no limits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Train: the backward pass does not reach all of its parameters.
    pub learning: Option<&'static str>,
    /// Normalise by the statistics of a batch.
    pub batch_statistics: Option<&'static str>,
    /// Freeze only some of its blocks.
    pub parts: Option<&'static str>,
    /// Take images of this height and width.
    pub sizes: Option<SizeRule>,
}

/// Why images of a height and width cannot be taken, given the default size; `None` for those that can.
pub(crate) type SizeRule = fn(size: (usize, usize), default: (usize, usize)) -> Option<&'static str>;

/// How the last feature map is pooled into a feature vector.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over all pixels: (N, C, H, W) to (N, C).
    #[default]
    Mean,
    /// The first pixel alone, where a transformer's blocks keep their class token.
    ClassToken,
    /// (mean of max(x, 1e-6)^p)^(1/p) over all pixels, p > 0 (Radenovic et al. 2017, arXiv 1711.02512): the mean of
    /// positive values for p = 1, close to the maximum for large p.
    GeneralizedMean(f64),
}

impl Pooling {
    /// A map of one pixel.
    pub(crate) fn apply(self, x: &FeatureMap) -> Result<FeatureMap> {
        Ok(match self {
            Self::Mean => x.mean_pixels()?,
            Self::ClassToken => x.class_token()?,
            Self::GeneralizedMean(p) => x.generalized_mean(p)?,
        })
    }
}

impl Blueprint {
    /// A network of your own: blocks in order, the first of which takes images as `input` describes them.
    ///
    /// `feature_dim` is the number of channels that the last block returns: its pixels are averaged to features
    /// (N, feature_dim). Blocks are the units of freezing.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a name occurs twice, a name is empty or "head", there are no blocks, or the layers do
    /// not fit each other, the images or `feature_dim`. Layers made of closures are checked when they first run.
    pub fn from_blocks(
        name: impl Into<String>,
        input: InputSpec,
        feature_dim: usize,
        blocks: Vec<Block>,
    ) -> Result<Self> {
        let name = name.into();
        if let Some(problem) = wrong_name(&name) {
            return Err(Error::invalid("blueprint's name", problem));
        }
        let mut seen = BTreeSet::from([CLASSIFIER]);
        for block in &blocks {
            let problem = wrong_name(block.name()).or_else(|| {
                let taken = !seen.insert(block.name()) || block.name().starts_with("head.");
                taken.then(|| format!("{} occurs twice, or is the head's", shown(block.name())))
            });
            if let Some(problem) = problem {
                return Err(Error::invalid(format!("blueprint {name}: block's name"), problem));
            }
        }
        let mut ended = BTreeSet::new();
        for pair in blocks.windows(2).filter(|pair| pair[0].stage_name() != pair[1].stage_name()) {
            ended.insert(pair[0].stage_name());
            if ended.contains(pair[1].stage_name()) {
                let problem = format!("the stage {} goes on after another began", shown(pair[1].stage_name()));
                return Err(Error::invalid(format!("blueprint {name}: block {}", shown(pair[1].name())), problem));
            }
        }
        if let Some(block) = blocks.iter().find(|b| b.stage_name() != b.name() && seen.contains(b.stage_name())) {
            let problem = format!("its stage is called {}, as another block or the head is", shown(block.stage_name()));
            return Err(Error::invalid(format!("blueprint {name}: block {}", shown(block.name())), problem));
        }
        let layers: Vec<String> = blocks.iter().map(Block::describe).collect();
        let build = move |b: &mut Builder<'_>| blocks.iter().try_for_each(|block| block.build(b));
        let blueprint =
            Self::new(name, input, feature_dim, CLASSIFIER, Kind::Custom(layers.join("; ")), Arc::new(build))?;
        blueprint.check()?;
        Ok(blueprint)
    }

    /// The same with another pooling; [`Pooling::Mean`] is the default.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an exponent that is not positive.
    pub fn pooled_by(self, pooling: Pooling) -> Result<Self> {
        if let Pooling::GeneralizedMean(p) = pooling
            && !(p > 0.0 && p.is_finite())
        {
            return Err(Error::invalid("pooling", format!("has the exponent {p}; use a positive one")));
        }
        Ok(Self { inner: Arc::new(Inner { pooling, ..(*self.inner).clone() }) })
    }

    /// The same with limits.
    #[cfg(feature = "zoo")]
    pub(crate) fn limited(self, limits: Limits) -> Self {
        Self { inner: Arc::new(Inner { limits, ..(*self.inner).clone() }) }
    }

    /// Runs the blocks without elements, to see that they fit each other, the images and the features. Closures cannot
    /// be run so.
    fn check(&self) -> Result<()> {
        let Inner { name, input, feature_dim, blocks, .. } = &*self.inner;
        if self.is_opaque() {
            return Ok(());
        }
        let (height, width) = input.size;
        let mut b = Builder::new(&Shapes, input.channels);
        self.build(&mut b)?;
        let mut x = FeatureMap::Symbolic(Symbolic::new((1, input.channels, height, width), DType::F32, None));
        for (layer, block) in b.layers.iter().zip(blocks) {
            let wrong =
                |error: Error| Error::invalid(format!("blueprint {name}: block {}", block.name), error.to_string());
            x = layer.forward(&x).map_err(wrong)?;
        }
        let (_, made, ..) = x.dims()?;
        if made == *feature_dim {
            return Ok(());
        }
        let problem = format!("its blocks return {made} features, but its feature_dim is {feature_dim}");
        Err(Error::invalid(format!("blueprint {name}"), problem))
    }

    /// The number of columns of a head over all stages: for each stage the mean and 4 x 4 cells of each channel. `None`
    /// if closures hide it.
    pub(crate) fn columns(&self) -> Option<usize> {
        let Inner { input, feature_dim, blocks, .. } = &*self.inner;
        if self.is_opaque() {
            return None;
        }
        let mut b = Builder::new(&Shapes, input.channels);
        self.build(&mut b).ok()?;
        let size = (1, input.channels, input.size.0, input.size.1);
        let (mut x, mut channels) = (FeatureMap::Symbolic(Symbolic::new(size, DType::F32, None)), vec![]);
        for (i, layer) in b.layers.iter().enumerate() {
            x = layer.forward(&x).ok()?;
            if blocks.get(i + 1).is_none_or(|next| next.stage != blocks[i].stage) {
                channels.push(x.dims().ok()?.1);
            }
        }
        let last = channels.last().copied().unwrap_or(0);
        Some(17 * channels.iter().sum::<usize>() + feature_dim - last)
    }

    /// Records the blocks and tensors that `build` declares.
    pub(crate) fn new(
        name: impl Into<String>,
        input: InputSpec,
        feature_dim: usize,
        classifier: impl Into<String>,
        kind: Kind,
        build: Arc<Build>,
    ) -> Result<Self> {
        let (name, classifier) = (name.into(), classifier.into());
        let wrong = |problem: String| Error::invalid(format!("blueprint {name}"), problem);
        let mut recorder = Builder::new(&Shapes, input.channels);
        build(&mut recorder)?;
        let Builder { blocks, declared, opaque, .. } = recorder;
        if blocks.is_empty() || feature_dim == 0 {
            return Err(wrong("has no blocks, or no features".into()));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = declared.iter().find(|d| !seen.insert(d.name.as_str())) {
            return Err(wrong(format!("the tensor {} occurs twice", shown(&twice.name))));
        }
        let (built_in, layers) = match kind {
            Kind::BuiltIn(variant) => (true, variant),
            Kind::Custom(layers) => (false, layers),
        };
        static INSTANCES: AtomicU64 = AtomicU64::new(1);
        let instance = if opaque && !built_in { INSTANCES.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let inner = Inner {
            name,
            input,
            feature_dim,
            classifier,
            pooling: Pooling::default(),
            build,
            built_in,
            layers,
            instance,
            limits: Limits::default(),
            blocks,
            declared,
            opaque,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Its name; saved predictors carry it.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The images that it is made for.
    pub fn input_spec(&self) -> &InputSpec {
        &self.inner.input
    }

    /// The number of features per image.
    pub fn feature_dim(&self) -> usize {
        self.inner.feature_dim
    }

    /// The name of the classifier on top: a linear head's tensors are `{classifier}.weight` and `{classifier}.bias`.
    pub fn classifier(&self) -> &str {
        &self.inner.classifier
    }

    /// The blocks in order: the units of freezing.
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.inner.blocks
    }

    /// How pixels become features.
    pub fn pooling(&self) -> Pooling {
        self.inner.pooling
    }

    /// Every tensor in the order in which they are built.
    pub(crate) fn declared(&self) -> &[Declared] {
        &self.inner.declared
    }

    /// The tensor that is applied to the images, and the dimension of their channels in it.
    pub(crate) fn over_images(&self) -> Option<(&str, usize)> {
        self.declared().iter().find_map(|d| Some((d.name.as_str(), d.facts.image_channels?)))
    }

    /// Its limits.
    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The variant of one of the crate's networks, or the layers of another.
    pub(crate) fn layers(&self) -> &str {
        &self.inner.layers
    }

    /// Equal for networks of equal name, layers and pooling, in every process. Closures count as one layer each,
    /// whatever they compute.
    pub(crate) fn structure(&self) -> u64 {
        self.print().finish()
    }

    /// As [`Blueprint::structure`], and different for networks with closures that are not clones of each other.
    pub(crate) fn identity(&self) -> u64 {
        self.print().number(self.inner.instance).finish()
    }

    fn print(&self) -> Fingerprint {
        let Inner { name, built_in, layers, pooling, .. } = &*self.inner;
        let print = Fingerprint::new("blueprint").text(name).number((*built_in).into()).text(layers);
        match pooling {
            Pooling::Mean => print.text("mean"),
            Pooling::ClassToken => print.text("class token"),
            Pooling::GeneralizedMean(p) => print.text("generalized mean").floats(&[*p]),
        }
    }

    /// Whether the crate has it under this name: a built-in architecture, or a network of the zoo.
    pub(crate) fn is_built_in(&self) -> bool {
        self.inner.built_in
    }

    /// Whether it has layers that no dry run can look into: closures over tensors.
    pub(crate) fn is_opaque(&self) -> bool {
        self.inner.opaque
    }

    /// Builds the blocks out of the builder's tensors.
    pub(crate) fn build(&self, b: &mut Builder<'_>) -> Result<()> {
        (self.inner.build)(b)
    }
}

/// Whose network it is.
pub(crate) enum Kind {
    /// The crate's, of this variant.
    BuiltIn(String),
    /// A user's, of these layers.
    Custom(String),
}

/// The classifier's name in networks that have no other.
const CLASSIFIER: &str = "head";

fn wrong_name(name: &str) -> Option<String> {
    (name.is_empty() || name.len() > 200).then(|| "is empty, or longer than 200 bytes".to_string())
}

impl From<&Blueprint> for Blueprint {
    fn from(blueprint: &Blueprint) -> Self {
        blueprint.clone()
    }
}

impl fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let i = &self.inner;
        write!(f, "Blueprint({}, {} blocks, {} tensors)", i.name, i.blocks.len(), i.declared.len())
    }
}

/// Of a conversion that cannot fail: a blueprint is one already.
impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
