//! Layers as data, for networks that a user builds.

use super::builder::{Builder, Module};
use super::conv::{Conv, ConvSpec};
use super::custom::{Custom, Forward, LayerTensors};
use super::drop_path::skipping;
use super::linear::LinearLayer;
use crate::error::{Error, Result};
use crate::ops::{Activation, FeatureMap, Padding};
use candle_core::Tensor;
use std::fmt;
use std::sync::Arc;

/// A layer of a [`Block`](crate::Block), for your own networks.
///
/// All but [`Layer::custom`] run on the crate's own operations: fast on a CPU, with tested gradients, and counted in
/// [`Plan::forecast`](crate::Plan::forecast). Names of tensors follow the position: `block1.0.conv.weight` is the
/// kernel of the first layer of a sequence that is block `block1`.
#[derive(Clone)]
pub struct Layer(Kind);

#[derive(Clone)]
enum Kind {
    Conv(Conv2d),
    Linear(Linear),
    MaxPool { kernel: usize, stride: usize, padding: usize },
    AveragePool { kernel: usize, stride: usize },
    GlobalAveragePool,
    Sequential(Vec<Layer>),
    Residual { inner: Box<Layer>, shortcut: Option<Box<Layer>>, act: Activation },
    Custom(Arc<BuildCustom>),
}

type BuildCustom = dyn Fn(&mut LayerTensors<'_, '_>) -> Result<Forward> + Send + Sync;

impl Layer {
    /// The maximum over windows of `kernel` x `kernel` pixels, `stride` pixels apart, without padding.
    pub fn max_pool(kernel: usize, stride: usize) -> Self {
        Self(Kind::MaxPool { kernel, stride, padding: 0 })
    }

    /// As [`Layer::max_pool`], with `padding` pixels on all sides that never are the maximum.
    pub fn max_pool_padded(kernel: usize, stride: usize, padding: usize) -> Self {
        Self(Kind::MaxPool { kernel, stride, padding })
    }

    /// The mean over windows of `kernel` x `kernel` pixels, `stride` pixels apart, without padding.
    pub fn average_pool(kernel: usize, stride: usize) -> Self {
        Self(Kind::AveragePool { kernel, stride })
    }

    /// Global average pooling: the mean over all pixels, (N, C, H, W) to (N, C, 1, 1).
    pub fn global_average_pool() -> Self {
        Self(Kind::GlobalAveragePool)
    }

    /// Layers in order.
    pub fn sequential(layers: impl IntoIterator<Item = Layer>) -> Self {
        Self(Kind::Sequential(layers.into_iter().collect()))
    }

    /// relu(layer(x) + x): a residual block (He et al. 2015, arXiv 1512.03385). The layer keeps the shape.
    pub fn residual(layer: impl Into<Layer>) -> Self {
        Self(Kind::Residual { inner: Box::new(layer.into()), shortcut: None, act: Activation::Relu })
    }

    /// relu(layer(x) + shortcut(x)), for layers that change the shape.
    pub fn residual_with(layer: impl Into<Layer>, shortcut: impl Into<Layer>) -> Self {
        let shortcut = Some(Box::new(shortcut.into()));
        Self(Kind::Residual { inner: Box::new(layer.into()), shortcut, act: Activation::Relu })
    }

    /// A layer made of Candle's operations: `build` declares its tensors and returns a closure that maps an input
    /// (N, C, H, W) to (N, C, H, W) or to features (N, D).
    ///
    /// `build` runs when a phase begins, so whatever is computed from the tensors belongs into the closure: a value that
    /// `build` derives from them stays as it was while they are trained.
    ///
    /// It runs on Candle's graph, on the CPU as well. Some of Candle's own gradients are wrong or missing there, with
    /// candle-core 0.11: `max_pool2d` (wrong where windows overlap), convolutions whose stride leaves a rest of pixels
    /// (an error), `candle_nn::ops::{softmax_last_dim, layer_norm, rms_norm}` and `rotary_emb` (the gradient stops
    /// there). The first step of each phase is audited: a parameter that no gradient reaches is an error that names it.
    /// Memory is unknown to [`Plan::forecast`](crate::Plan::forecast).
    ///
    /// ```
    /// use candle_finetune::{Block, Layer, TensorInit};
    ///
    /// // A learnable scale per channel.
    /// let scale = Layer::custom(|tensors| {
    ///     let scale = tensors.get("scale", &[1, 16, 1, 1], TensorInit::Ones)?;
    ///     Ok(move |x: &candle_finetune::candle_core::Tensor| x.broadcast_mul(&scale))
    /// });
    /// let block = Block::new("scale", scale);
    /// # let _ = block;
    /// ```
    pub fn custom<B, F>(build: B) -> Self
    where
        B: Fn(&mut LayerTensors<'_, '_>) -> Result<F> + Send + Sync + 'static,
        F: Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync + 'static,
    {
        let build = move |tensors: &mut LayerTensors<'_, '_>| -> Result<Forward> { Ok(Box::new(build(tensors)?)) };
        Self(Kind::Custom(Arc::new(build)))
    }

    /// Builds it; `path` is the beginning of its tensors' names.
    pub(crate) fn build(&self, b: &mut Builder<'_>, path: &str) -> Result<Box<dyn Module>> {
        Ok(match &self.0 {
            Kind::Conv(conv) => Box::new(conv.build(b, path)?),
            Kind::Linear(linear) => Box::new(linear.build(b, path)?),
            Kind::MaxPool { kernel, stride, padding } => {
                if 2 * padding.min(&usize::from(u8::MAX)) > *kernel {
                    let problem = format!("pads {padding} pixels around windows of {kernel}; at most half of a window");
                    return Err(Error::invalid(format!("max-pool {path}"), problem));
                }
                let (kernel, stride, padding) = (*kernel, *stride, Padding::Even(*padding));
                Box::new(Simple(move |x: &FeatureMap| Ok(x.max_pool(kernel, stride, padding)?)))
            }
            Kind::AveragePool { kernel, stride } => {
                let (kernel, stride) = (*kernel, *stride);
                Box::new(Simple(move |x: &FeatureMap| Ok(x.average_pool(kernel, stride)?)))
            }
            Kind::GlobalAveragePool => Box::new(Simple(|x: &FeatureMap| Ok(x.mean_pixels()?))),
            Kind::Sequential(layers) => {
                let numbered = layers.iter().enumerate();
                Box::new(Sequential(numbered.map(|(i, l)| l.build(b, &format!("{path}.{i}"))).collect::<Result<_>>()?))
            }
            Kind::Residual { inner, shortcut, act } => {
                let (before, last) = inner.build_residual(b, &format!("{path}.main"), *act)?;
                let shortcut =
                    shortcut.as_ref().map(|layer| layer.build(b, &format!("{path}.shortcut"))).transpose()?;
                Box::new(Residual { before, last, shortcut, act: *act })
            }
            Kind::Custom(build) => {
                b.opaque = true;
                let forward = build(&mut LayerTensors::new(b, path))?;
                Box::new(Custom { forward })
            }
        })
    }
}

impl Layer {
    /// The parts of a residual block's inner layer. A convolution without activation at its end takes the sum and the
    /// activation `act` into its own step, which saves two passes over memory.
    fn build_residual(&self, b: &mut Builder<'_>, path: &str, act: Activation) -> Result<ResidualParts> {
        let (layers, in_chain) = match &self.0 {
            Kind::Sequential(layers) => (layers.as_slice(), true),
            _ => (std::slice::from_ref(self), false),
        };
        let (mut before, mut last) = (vec![], None);
        for (i, layer) in layers.iter().enumerate() {
            let path = if in_chain { format!("{path}.{i}") } else { path.to_string() };
            match &layer.0 {
                Kind::Conv(conv) if i + 1 == layers.len() && conv.spec.act == Activation::Identity => {
                    let joined = Conv2d { spec: conv.spec.act(act), names: conv.names.clone() };
                    last = Some(joined.build(b, &path)?);
                }
                _ => before.push(layer.build(b, &path)?),
            }
        }
        Ok((before, last))
    }
}

impl Layer {
    /// What it computes as text, the same in every version of the crate, for saved files depend on it. A closure is
    /// "custom", whatever it computes.
    pub(crate) fn describe(&self) -> String {
        match &self.0 {
            Kind::Conv(Conv2d { spec, names }) => format!("conv({}{})", spec.describe(), names_of(names.as_ref())),
            Kind::Linear(Linear { inputs, outputs, act }) => format!("linear({inputs} {outputs} {})", act.name()),
            Kind::MaxPool { kernel, stride, padding } => format!("max_pool({kernel} {stride} {padding})"),
            Kind::AveragePool { kernel, stride } => format!("average_pool({kernel} {stride})"),
            Kind::GlobalAveragePool => "global_average".into(),
            Kind::Sequential(layers) => {
                format!("[{}]", layers.iter().map(Self::describe).collect::<Vec<_>>().join(", "))
            }
            Kind::Residual { inner, shortcut, act } => {
                let shortcut = shortcut.as_ref().map_or("identity".into(), |layer| layer.describe());
                format!("residual({} + {shortcut}, {})", inner.describe(), act.name())
            }
            Kind::Custom(_) => "custom".into(),
        }
    }
}

fn names_of(names: Option<&(String, String)>) -> String {
    names.map_or(String::new(), |(conv, norm)| format!(" {conv:?} {norm:?}"))
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// A convolution (N, inputs, H, W) to (N, outputs, H', W') followed by a batch norm or a bias, and an activation. As in
/// PyTorch it pads with zeros; by default (kernel - 1) / 2 pixels, so stride 1 keeps odd kernels' size.
///
/// ```
/// use candle_finetune::{Block, Conv2d};
/// let block = Block::new("stem", Conv2d::new(3, 32, 7).stride(2).batch_norm().relu());
/// # let _ = block;
/// ```
#[derive(Debug, Clone)]
pub struct Conv2d {
    spec: ConvSpec,
    names: Option<(String, String)>,
}

impl Conv2d {
    /// A convolution with a bias, kernels of `kernel` x `kernel` pixels and no activation.
    pub fn new(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { spec: ConvSpec::new(inputs, outputs, kernel).norm(None), names: None }
    }

    /// Sets the stride.
    pub fn stride(mut self, stride: usize) -> Self {
        self.spec = self.spec.stride(stride);
        self
    }

    /// Sets the number of groups: each output sees inputs / groups channels; groups = inputs is a depthwise
    /// convolution.
    pub fn groups(mut self, groups: usize) -> Self {
        self.spec = self.spec.groups(groups);
        self
    }

    /// Sets the zero padding on each side; by default (kernel - 1) / 2.
    pub fn padding(mut self, pixels: usize) -> Self {
        self.spec = self.spec.padding(Padding::Even(pixels));
        self
    }

    /// With a batch norm of epsilon 1e-5 in place of the bias (Ioffe and Szegedy 2015, arXiv 1502.03167).
    pub fn batch_norm(mut self) -> Self {
        self.spec = self.spec.norm(Some(1e-5));
        self
    }

    /// Followed by max(x, 0).
    pub fn relu(mut self) -> Self {
        self.spec = self.spec.act(Activation::Relu);
        self
    }

    /// Followed by x sigmoid(x).
    pub fn silu(mut self) -> Self {
        self.spec = self.spec.act(Activation::Silu);
        self
    }

    /// Sets the names of the convolution and its norm in files, in place of "conv" and "norm".
    pub fn names(mut self, conv: impl Into<String>, norm: impl Into<String>) -> Self {
        self.names = Some((conv.into(), norm.into()));
        self
    }

    fn build(&self, b: &mut Builder<'_>, path: &str) -> Result<Conv> {
        let (conv, norm) = self.names.as_ref().map_or(("conv", "norm"), |(conv, norm)| (conv, norm));
        self.spec.check(path)?;
        Conv::new(b, &format!("{path}.{conv}"), &format!("{path}.{norm}"), self.spec)
    }
}

impl From<Conv2d> for Layer {
    fn from(conv: Conv2d) -> Self {
        Self(Kind::Conv(conv))
    }
}

/// A fully connected layer over maps of one pixel: (N, inputs, 1, 1) to (N, outputs, 1, 1), with a bias.
///
/// ```
/// use candle_finetune::{Block, Layer, Linear};
/// let block = Block::new("neck", Layer::sequential([Layer::global_average_pool(), Linear::new(64, 128).relu().into()]));
/// # let _ = block;
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    inputs: usize,
    outputs: usize,
    act: Activation,
}

impl Linear {
    /// Without an activation.
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, act: Activation::Identity }
    }

    /// Followed by max(x, 0).
    pub fn relu(mut self) -> Self {
        self.act = Activation::Relu;
        self
    }

    fn build(&self, b: &mut Builder<'_>, path: &str) -> Result<LinearLayer> {
        LinearLayer::new(b, path, self.inputs, self.outputs, self.act)
    }
}

impl From<Linear> for Layer {
    fn from(linear: Linear) -> Self {
        Self(Kind::Linear(linear))
    }
}

/// An operation without tensors.
struct Simple<F>(F);

impl<F: Fn(&FeatureMap) -> Result<FeatureMap> + Send + Sync> Module for Simple<F> {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        (self.0)(x)
    }
}

struct Sequential(Vec<Box<dyn Module>>);

impl Module for Sequential {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        through(&self.0, x)
    }
}

/// The layers of a residual block, and its last convolution if that adds the shortcut and activates in one step.
type ResidualParts = (Vec<Box<dyn Module>>, Option<Conv>);

struct Residual {
    before: Vec<Box<dyn Module>>,
    /// The last convolution, which adds the shortcut and activates in one step.
    last: Option<Conv>,
    shortcut: Option<Box<dyn Module>>,
    act: Activation,
}

impl Module for Residual {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let y = through(&self.before, x)?;
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x)?,
            None => x.clone(),
        };
        match &self.last {
            Some(last) => last.join(&y, Some(&shortcut)),
            None => {
                let y = skipping(|| Ok(y.clone()))?.unwrap_or(y);
                Ok(y.add(&shortcut)?.activate(self.act)?)
            }
        }
    }
}

fn through(layers: &[Box<dyn Module>], x: &FeatureMap) -> Result<FeatureMap> {
    layers.iter().try_fold(x.clone(), |x, layer| layer.forward(&x))
}
