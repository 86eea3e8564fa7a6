//! What layers hand to each other: an image-shaped value that knows its own layout.

use super::activation::Activation;
use super::device;
use super::filter::Filter;
use super::geometry::Padding;
use super::paper::{Sketch, mixed};
use super::real::Real;
use super::value::Value;
use candle_core::{DType, Result, Tensor, bail};

/// N images of C channels: NHWC over our own graph on the CPU, an NCHW tensor over Candle's operations elsewhere.
#[derive(Clone)]
pub(crate) enum FeatureMap {
    F32(Value<f32>),
    F64(Value<f64>),
    Device(Tensor),
    /// Sizes alone.
    Sketch(Sketch),
}

/// What follows the convolution's sum.
#[derive(Clone, Copy)]
pub(crate) enum Norm<'a> {
    /// A bias or nothing; also a frozen batch norm, folded into kernel and bias.
    None { bias: Option<&'a Tensor> },
    /// Batch norm with the batch's own statistics.
    Batch { gamma: &'a Tensor, beta: &'a Tensor, eps: f64 },
    /// Batch norm with the running statistics.
    Fixed { gamma: &'a Tensor, beta: &'a Tensor, mean: &'a Tensor, var: &'a Tensor, eps: f64 },
}

/// Convolution, norm, residual and activation as one step: y = act(norm(conv(x)) + residual).
#[derive(Clone, Copy)]
pub(crate) struct ConvStep<'a> {
    pub filter: &'a Filter,
    pub stride: usize,
    pub dilation: usize,
    pub groups: usize,
    pub padding: Padding,
    pub norm: Norm<'a>,
    pub act: Activation,
}

/// The statistics of one batch, as the running ones take them in: mean and unbiased variance per channel.
pub(crate) struct BatchMoments {
    pub mean: Tensor,
    pub var: Tensor,
}

/// Runs the same expression over either number type.
macro_rules! map {
    ($map:expr, $value:ident => $own:expr, $tensor:ident => $device:expr, $sketch:ident => $paper:expr) => {
        match $map {
            FeatureMap::F32($value) => Ok(Real::wrap($own?)),
            FeatureMap::F64($value) => Ok(Real::wrap($own?)),
            FeatureMap::Device($tensor) => Ok(FeatureMap::Device($device?)),
            FeatureMap::Sketch($sketch) => Ok(FeatureMap::Sketch($paper?)),
        }
    };
}

impl FeatureMap {
    /// From images (N, C, H, W) of f32 or f64 on any device.
    pub fn new(images: &Tensor) -> Result<Self> {
        if !images.device().is_cpu() {
            return Ok(Self::Device(images.clone()));
        }
        match images.dtype() {
            DType::F32 => Ok(Self::F32(Value::from_images(images)?)),
            DType::F64 => Ok(Self::F64(Value::from_images(images)?)),
            other => bail!("images are f32 or f64, and these are {other:?}"),
        }
    }

    /// Over Candle's own operations, whatever the device: the path of other devices, tested on the CPU.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the tests take this path on the CPU"))]
    pub fn on_device(images: &Tensor) -> Self {
        Self::Device(images.clone())
    }

    /// From a tensor (N, C, H, W) that was computed from `x.to_images()`, over the graph that `x` has.
    pub fn like(x: &Self, images: &Tensor) -> Result<Self> {
        match x {
            Self::Device(_) => Ok(Self::Device(images.clone())),
            Self::Sketch(_) => mixed(),
            Self::F32(_) | Self::F64(_) => Self::new(images),
        }
    }

    /// To images (N, C, H, W).
    pub fn to_images(&self) -> Result<Tensor> {
        match self {
            Self::F32(v) => v.to_images(),
            Self::F64(v) => v.to_images(),
            Self::Device(t) => Ok(t.clone()),
            Self::Sketch(_) => mixed(),
        }
    }

    /// (N, C, H, W)
    pub fn dims(&self) -> Result<(usize, usize, usize, usize)> {
        let nchw = |[n, h, w, c]: [usize; 4]| (n, c, h, w);
        match self {
            Self::F32(v) => Ok(nchw(v.dims)),
            Self::F64(v) => Ok(nchw(v.dims)),
            Self::Device(t) => t.dims4(),
            Self::Sketch(s) => Ok(s.dims()),
        }
    }

    /// Convolution, norm, residual and activation; the batch's statistics where the norm used them.
    pub fn conv_step(&self, step: &ConvStep, residual: Option<&Self>) -> Result<(Self, Option<BatchMoments>)> {
        fn own<T: Real>(
            x: &Value<T>,
            step: &ConvStep,
            residual: Option<&FeatureMap>,
        ) -> Result<(FeatureMap, Option<BatchMoments>)> {
            let residual = residual.map(same::<T>).transpose()?;
            let (y, moments) = x.conv_step(step, residual)?;
            Ok((T::wrap(y), moments))
        }
        match self {
            Self::F32(x) => own(x, step, residual),
            Self::F64(x) => own(x, step, residual),
            Self::Device(x) => {
                let residual = residual.map(|r| r.tensor()).transpose()?;
                let (y, moments) = device::conv_step(x, step, residual)?;
                Ok((Self::Device(y), moments))
            }
            Self::Sketch(x) => {
                let residual = residual.map(|r| r.sketch()).transpose()?;
                Ok((Self::Sketch(x.conv_step(step, residual)?), None))
            }
        }
    }

    /// The sketch that this is.
    pub fn into_sketch(self) -> Result<Sketch> {
        if let Self::Sketch(sketch) = self { Ok(sketch) } else { mixed() }
    }

    fn sketch(&self) -> Result<&Sketch> {
        if let Self::Sketch(sketch) = self { Ok(sketch) } else { mixed() }
    }

    fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Device(t) => Ok(t),
            _ => bail!("maps of one step must live on one device"),
        }
    }

    pub fn activate(&self, act: Activation) -> Result<Self> {
        map!(self, v => v.activate(act), t => device::activate(t, act), _s => mixed())
    }

    /// Max-pool over `kernel` x `kernel` pixels.
    pub fn max_pool(&self, kernel: usize, stride: usize, padding: Padding) -> Result<Self> {
        map!(self, v => v.max_pool(kernel, stride, padding), t => device::max_pool(t, kernel, stride, padding),
             s => s.max_pool(kernel, stride, padding))
    }

    /// Average pool over `kernel` x `kernel` pixels, no padding.
    pub fn average_pool(&self, kernel: usize, stride: usize) -> Result<Self> {
        map!(self, v => v.average_pool(kernel, stride), t => device::average_pool(t, kernel, stride), _s => mixed())
    }

    /// Averages down (or repeats up) to `rows` x `columns` pixels.
    pub fn adaptive_average(&self, rows: usize, columns: usize) -> Result<Self> {
        map!(self, v => v.adaptive_average(rows, columns), t => device::adaptive_average(t, rows, columns),
             s => candle_core::Result::Ok(s.average(rows, columns)))
    }

    /// The mean over all pixels, as an image of one pixel.
    pub fn mean_pixels(&self) -> Result<Self> {
        map!(self, v => v.mean_pixels(), t => t.mean_keepdim((2, 3)), s => candle_core::Result::Ok(s.average(1, 1)))
    }

    /// Every `stride`-th pixel, with zero channels around.
    pub fn subsample(&self, stride: usize, before: usize, after: usize) -> Result<Self> {
        map!(self, v => v.subsample(stride, before, after), t => device::subsample(t, stride, before, after),
             s => candle_core::Result::Ok(s.subsample(stride, before, after)))
    }

    /// Every channel times a factor of its own per image; `factors` has one pixel.
    pub fn scale(&self, factors: &Self) -> Result<Self> {
        match self {
            Self::F32(v) => Ok(Self::F32(v.scale(same(factors)?)?)),
            Self::F64(v) => Ok(Self::F64(v.scale(same(factors)?)?)),
            Self::Device(t) => Ok(Self::Device(t.broadcast_mul(factors.tensor()?)?)),
            Self::Sketch(s) => Ok(Self::Sketch(s.scale(factors.sketch()?))),
        }
    }

    /// The sum of two maps of one shape.
    pub fn add(&self, other: &Self) -> Result<Self> {
        match self {
            Self::F32(v) => Ok(Self::F32(v.add(same(other)?)?)),
            Self::F64(v) => Ok(Self::F64(v.add(same(other)?)?)),
            Self::Device(t) => Ok(Self::Device((t + other.tensor()?)?)),
            Self::Sketch(_) => mixed(),
        }
    }

    /// All numbers of an image in one row: (N, H * W * C), an ordinary tensor. For maps of one pixel.
    pub fn into_rows(self) -> Result<Tensor> {
        match self {
            Self::F32(v) => v.into_rows(),
            Self::F64(v) => v.into_rows(),
            Self::Device(t) => t.flatten_from(1),
            Self::Sketch(_) => mixed(),
        }
    }
}

/// A fully connected layer, y = act(x w^T + bias): features (N, C), weights (K, C), bias (K).
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, act: Activation) -> Result<Tensor> {
    let filter = Filter::new(weight.clone());
    let step = matrix_step(&filter, Some(bias), act);
    match x.dtype() {
        _ if !x.device().is_cpu() => device::linear(x, weight, bias, act),
        DType::F32 => Value::<f32>::from_rows(x)?.conv_step(&step, None)?.0.into_rows(),
        DType::F64 => Value::<f64>::from_rows(x)?.conv_step(&step, None)?.0.into_rows(),
        other => bail!("features are f32 or f64, and these are {other:?}"),
    }
}

/// The same over a map of one pixel.
pub(crate) fn linear_step(x: &FeatureMap, filter: &Filter, bias: &Tensor, act: Activation) -> Result<FeatureMap> {
    if let FeatureMap::Device(t) = x {
        let y = device::linear(&t.flatten_from(1)?, filter.tensor(), bias, act)?;
        return Ok(FeatureMap::Device(y.unsqueeze(2)?.unsqueeze(3)?));
    }
    Ok(x.conv_step(&matrix_step(filter, Some(bias), act), None)?.0)
}

/// A fully connected layer over a sketch of one pixel. A bias and an activation take no memory worth counting.
pub(crate) fn linear_sketch(x: &FeatureMap, weight: Tensor) -> Result<FeatureMap> {
    Ok(x.conv_step(&matrix_step(&Filter::new(weight), None, Activation::Identity), None)?.0)
}

fn matrix_step<'a>(filter: &'a Filter, bias: Option<&'a Tensor>, act: Activation) -> ConvStep<'a> {
    let (norm, padding) = (Norm::None { bias }, Padding::Even(0));
    ConvStep { filter, stride: 1, dilation: 1, groups: 1, padding, norm, act }
}

fn same<T: Real>(map: &FeatureMap) -> Result<&Value<T>> {
    match T::of(map) {
        Some(value) => Ok(value),
        None => bail!("maps of one step must have one number type and live on one device"),
    }
}
