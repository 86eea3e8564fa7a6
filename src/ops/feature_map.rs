//! The image-shaped value that layers pass on; it knows its own layout.

use super::gradient::Differentiable;
use super::memory_model::Symbolic;
use super::value::Value;
use candle_core::{DType, Result, Tensor, bail};

/// N images of C channels.
#[derive(Clone)]
pub(crate) enum FeatureMap {
    /// On the CPU: NHWC over our own graph.
    F32(Value<f32>),
    /// The same in f64.
    F64(Value<f64>),
    /// Elsewhere: an NCHW tensor over Candle's operations.
    Device(Tensor),
    /// In a dry run: sizes without elements.
    Symbolic(Symbolic),
}

/// An operation on N feature maps, in its three forms, which are in one file of `op`.
pub(super) trait Operation<const N: usize> {
    /// The CPU form; records its gradient.
    fn cpu<T: Differentiable>(&self, inputs: [&Value<T>; N]) -> Result<Value<T>>;
    /// The composed form, of those operations of Candle whose gradients are right.
    fn device(&self, inputs: [&Tensor; N]) -> Result<Tensor>;
    /// The symbolic form: what the CPU form allocates, saves for backward, and allocates there.
    fn symbolic(&self, inputs: [&Symbolic; N]) -> Result<Symbolic>;
}

impl FeatureMap {
    /// Runs an operation in the form of its inputs.
    pub(super) fn apply<const N: usize>(operation: &impl Operation<N>, inputs: [&Self; N]) -> Result<Self> {
        if let Some(inputs) = all(inputs, |map| if let Self::F32(v) = map { Some(v) } else { None }) {
            return Ok(Self::F32(operation.cpu(inputs)?));
        }
        if let Some(inputs) = all(inputs, |map| if let Self::F64(v) = map { Some(v) } else { None }) {
            return Ok(Self::F64(operation.cpu(inputs)?));
        }
        if let Some(inputs) = all(inputs, |map| if let Self::Device(t) = map { Some(t) } else { None }) {
            return Ok(Self::Device(operation.device(inputs)?));
        }
        if let Some(inputs) = all(inputs, |map| if let Self::Symbolic(s) = map { Some(s) } else { None }) {
            return Ok(Self::Symbolic(operation.symbolic(inputs)?));
        }
        bail!("the maps of one operation must have one element type and live on one device")
    }

    /// From images (N, C, H, W) of f32 or f64 on any device.
    pub fn new(images: &Tensor) -> Result<Self> {
        if !images.device().is_cpu() {
            return Ok(Self::Device(images.clone()));
        }
        match images.dtype() {
            DType::F32 => Ok(Self::F32(Value::from_images(images)?)),
            DType::F64 => Ok(Self::F64(Value::from_images(images)?)),
            other => bail!("images must be f32 or f64, but these are {other:?}"),
        }
    }

    /// For the composed form on any device: the path of other devices, tested on the CPU.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the tests take this path on the CPU"))]
    pub fn on_device(images: &Tensor) -> Self {
        Self::Device(images.clone())
    }

    /// From a tensor (N, C, H, W) that was computed from `x.to_images()`, over the graph that `x` has.
    pub fn like(x: &Self, images: &Tensor) -> Result<Self> {
        match x {
            Self::Device(_) => Ok(Self::Device(images.clone())),
            Self::Symbolic(_) => no_elements(),
            Self::F32(_) | Self::F64(_) => Self::new(images),
        }
    }

    /// To images (N, C, H, W).
    pub fn to_images(&self) -> Result<Tensor> {
        match self {
            Self::F32(v) => v.to_images(),
            Self::F64(v) => v.to_images(),
            Self::Device(t) => Ok(t.clone()),
            Self::Symbolic(_) => no_elements(),
        }
    }

    /// (N, C, H, W)
    pub fn dims(&self) -> Result<(usize, usize, usize, usize)> {
        let nchw = |[n, h, w, c]: [usize; 4]| (n, c, h, w);
        match self {
            Self::F32(v) => Ok(nchw(v.dims)),
            Self::F64(v) => Ok(nchw(v.dims)),
            Self::Device(t) => t.dims4(),
            Self::Symbolic(s) => Ok(s.dims()),
        }
    }

    /// The symbolic map that this is.
    pub fn into_symbolic(self) -> Result<Symbolic> {
        if let Self::Symbolic(symbolic) = self { Ok(symbolic) } else { bail!("this map is not symbolic") }
    }

    /// All elements of an image in one row: (N, H * W * C), an ordinary tensor. For maps of one pixel.
    pub fn into_rows(self) -> Result<Tensor> {
        match self {
            Self::F32(v) => v.into_rows(),
            Self::F64(v) => v.into_rows(),
            Self::Device(t) => t.flatten_from(1),
            Self::Symbolic(_) => no_elements(),
        }
    }
}

/// The results of `of` for all maps, if it has one for each.
fn all<'a, V, const N: usize>(
    maps: [&'a FeatureMap; N],
    of: impl Fn(&'a FeatureMap) -> Option<&'a V>,
) -> Option<[&'a V; N]> {
    let first = of(maps.first()?)?;
    maps.iter().all(|map| of(map).is_some()).then(|| maps.map(|map| of(map).unwrap_or(first)))
}

fn no_elements<T>() -> Result<T> {
    bail!("a symbolic map has no elements")
}
