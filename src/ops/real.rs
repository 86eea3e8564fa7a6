//! What the kernels offer per number type: portable loops for any, fast ones for f32 and f64.

use super::activation::Activation;
use super::buffer::{Buffer, Number};
use super::conv;
use super::geometry::Geometry;
use super::gradient::{Gradient, Numbers};
use super::map::FeatureMap;
use super::norm;
use super::pool;
use super::portable;
use super::simd::Level;
use super::value::Value;
use candle_core::{CpuStorage, Result, Storage, Tensor, WithDType, bail};

/// What happens to a convolution's sum before it is stored: y = act(sum + bias + residual).
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a, T> {
    /// One number per output channel.
    pub bias: Option<&'a [T]>,
    /// As many numbers as the output.
    pub residual: Option<&'a [T]>,
    /// Identity, Relu or Relu6; others are applied in a pass of their own.
    pub act: Activation,
}

impl<T> Epilogue<'_, T> {
    /// Stores the bare sum.
    pub const NONE: Self = Epilogue { bias: None, residual: None, act: Activation::Identity };
}

/// How the gradient passes the activation of u = a z + b (+ residual): from the result y where it was kept,
/// else from u, computed again.
#[derive(Clone, Copy)]
pub(crate) struct Gate<'a, T> {
    pub act: Activation,
    pub a: &'a [T],
    pub b: &'a [T],
    pub y: Option<&'a [T]>,
}

/// A way to compute a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// Plain loops, any shape, any type.
    Portable,
    /// Tiles in registers (`conv::direct`), any shape; the backward order depends on stride and dilation.
    Direct { stride: usize, dilation: usize },
    /// 3x3 kernels by their values at so many points per axis (`conv::winograd`): 4 or 6.
    Winograd { points: usize },
    /// One kernel per channel (`conv::depthwise`).
    Depthwise,
    /// A kernel as large as the input, taken as it lies (`conv::dense`).
    Dense,
}

impl Algorithm {
    /// Whether the gradient of the input wants the kernel in an order of its own.
    pub fn turns(self) -> bool {
        matches!(self, Self::Direct { .. } | Self::Winograd { .. })
    }
}

/// Per channel: mean and biased variance.
pub(crate) struct Moments {
    pub mean: Vec<f64>,
    pub var: Vec<f64>,
}

/// A number type with kernels. All data is NHWC, kernels are OIHW where they come from and go to tensors.
///
/// The provided methods are plain loops: the reference for all others.
pub(crate) trait Real: WithDType + Number {
    /// e^self
    fn exponential(self) -> Self;
    /// The square root.
    fn root(self) -> Self;
    /// The larger of two; NaN if `self` is.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self < other { other } else { self }
    }
    /// The smaller of two; NaN if `self` is.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self > other { other } else { self }
    }

    /// The feature map's value of this type, if it is of this type.
    fn of(map: &FeatureMap) -> Option<&Value<Self>>;
    /// A value of this type as a feature map.
    fn wrap(value: Value<Self>) -> FeatureMap;
    /// A gradient made of these numbers.
    fn gradient(numbers: Numbers<Self>) -> Gradient;
    /// The gradient's numbers, if they are of this type.
    fn of_gradient(gradient: &Gradient) -> Option<&Numbers<Self>>;
    /// A tensor's own numbers, if they are of this type.
    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]>;

    /// The algorithm for this geometry.
    fn algorithm(_: &Geometry) -> Algorithm {
        Algorithm::Portable
    }
    /// An OIHW kernel in the order in which the algorithm's loops want it: those of the result, or (`back`) those of the
    /// input's gradient.
    fn pack(_: Algorithm, w: &[Self], g: &Geometry, _back: bool) -> Buffer<Self> {
        portable::conv::pack(w, g)
    }
    /// y = act(conv(x, w) + bias + residual), `w` as `pack` made it.
    fn conv(_: Algorithm, x: &[Self], w: &[Self], g: &Geometry, e: &Epilogue<Self>, y: &mut [Self]) {
        portable::conv::forward(x, w, g, e, y);
    }
    /// The gradient of the input, written or added; `w` as `pack` made it for the way back.
    fn conv_input(_: Algorithm, dy: &[Self], w: &[Self], g: &Geometry, dx: &mut [Self], add: bool) {
        portable::conv::input_gradient(dy, w, g, dx, add);
    }
    /// The gradient of the OIHW kernel.
    fn conv_weight(x: &[Self], dy: &[Self], g: &Geometry, dw: &mut [Self]) {
        portable::conv::weight_gradient(x, dy, g, dw);
    }
    /// An input of `Algorithm::Dense` in the order of a kernel's rows.
    fn dense_order(x: &[Self], g: &Geometry) -> Buffer<Self>;
    /// The numbers from `from` on of the matrix whose row k, column c is the sum over the images of d[k] x[c].
    fn outer(d: &[Self], x: &[Self], images: usize, from: usize, out: &mut [Self]);

    /// Mean and biased variance of each of `c` channels.
    fn moments(x: &[Self], c: usize) -> Moments {
        portable::norm::moments(x, c)
    }
    /// y = act(a x + b + residual), a and b per channel.
    fn affine(x: &[Self], a: &[Self], b: &[Self], residual: Option<&[Self]>, act: Activation, y: &mut [Self]) {
        portable::norm::affine(x, a, b, residual, act, y);
    }
    /// x becomes act(a x + b): the same numbers as `affine` gives.
    fn affine_in_place(x: &mut [Self], a: &[Self], b: &[Self], act: Activation) {
        let y = Buffer::copy_of(x);
        Self::affine(&y, a, b, None, act, x);
    }
    /// Per channel, with g = gated dy: the sum of g, and of g (z - mean).
    fn gate_sums(z: &[Self], gate: &Gate<Self>, dy: &[Self], mean: &[Self]) -> (Vec<f64>, Vec<f64>) {
        portable::norm::gate_sums(z, gate, dy, mean)
    }
    /// With g = gated d: d becomes k0 g + k1 z + k2 (per channel), and `residual` g.
    fn gate_apply(z: &[Self], gate: &Gate<Self>, k: [&[Self]; 3], d: &mut [Self], residual: Option<&mut [Self]>) {
        portable::norm::gate_apply(z, gate, k, d, residual);
    }
    /// d becomes d times the activation's slope, told by its result; returns nothing else.
    fn gate_by_result(y: &[Self], act: Activation, d: &mut [Self]) {
        portable::norm::gate_by_result(y, act, d);
    }
    /// The sum of each of `c` channels.
    fn channel_sums(x: &[Self], c: usize) -> Vec<f64> {
        portable::norm::channel_sums(x, c)
    }

    /// Max-pool; `tap` receives which position of the window won (kernels of at most 255 taps).
    fn max_pool(x: &[Self], g: &Geometry, y: &mut [Self], tap: &mut [u8]) {
        portable::pool::max(x, g, y, tap);
    }
    /// The gradient of max-pool's input, written or added.
    fn max_pool_input(dy: &[Self], tap: &[u8], g: &Geometry, dx: &mut [Self], add: bool) {
        portable::pool::max_gradient(dy, tap, g, dx, add);
    }

    /// sum += g
    fn add_into(sum: &mut [Self], g: &[Self]) {
        portable::norm::add_into(sum, g);
    }
}

/// The fast kernels, with this processor's best instructions.
macro_rules! fast_kernels {
    () => {
        fn algorithm(g: &Geometry) -> Algorithm {
            conv::algorithm(g)
        }
        fn pack(algorithm: Algorithm, w: &[Self], g: &Geometry, back: bool) -> Buffer<Self> {
            conv::pack(Level::chosen(), algorithm, w, g, back)
        }
        fn conv(algorithm: Algorithm, x: &[Self], w: &[Self], g: &Geometry, e: &Epilogue<Self>, y: &mut [Self]) {
            conv::forward(Level::chosen(), algorithm, x, w, g, e, y);
        }
        fn conv_input(algorithm: Algorithm, dy: &[Self], w: &[Self], g: &Geometry, dx: &mut [Self], add: bool) {
            conv::input_gradient(Level::chosen(), algorithm, dy, w, g, dx, add);
        }
        fn conv_weight(x: &[Self], dy: &[Self], g: &Geometry, dw: &mut [Self]) {
            conv::weight_gradient(Level::chosen(), conv::algorithm(g), x, dy, g, dw);
        }
        fn dense_order(x: &[Self], g: &Geometry) -> Buffer<Self> {
            conv::dense::in_order(x, g)
        }
        fn outer(d: &[Self], x: &[Self], images: usize, from: usize, out: &mut [Self]) {
            conv::dense::outer(Level::chosen(), d, x, images, from, out);
        }
        fn moments(x: &[Self], c: usize) -> Moments {
            norm::moments(Level::chosen(), x, c)
        }
        fn affine(x: &[Self], a: &[Self], b: &[Self], residual: Option<&[Self]>, act: Activation, y: &mut [Self]) {
            norm::affine(Level::chosen(), x, a, b, residual, act, y);
        }
        fn affine_in_place(x: &mut [Self], a: &[Self], b: &[Self], act: Activation) {
            norm::affine_in_place(Level::chosen(), x, a, b, act);
        }
        fn gate_sums(z: &[Self], gate: &Gate<Self>, dy: &[Self], mean: &[Self]) -> (Vec<f64>, Vec<f64>) {
            norm::gate_sums(Level::chosen(), z, gate, dy, mean)
        }
        fn gate_apply(z: &[Self], gate: &Gate<Self>, k: [&[Self]; 3], d: &mut [Self], residual: Option<&mut [Self]>) {
            norm::gate_apply(Level::chosen(), z, gate, k, d, residual);
        }
        fn gate_by_result(y: &[Self], act: Activation, d: &mut [Self]) {
            norm::gate_by_result(Level::chosen(), y, act, d);
        }
        fn channel_sums(x: &[Self], c: usize) -> Vec<f64> {
            norm::channel_sums(Level::chosen(), x, c)
        }
        fn max_pool(x: &[Self], g: &Geometry, y: &mut [Self], tap: &mut [u8]) {
            pool::max(Level::chosen(), x, g, y, tap);
        }
        fn max_pool_input(dy: &[Self], tap: &[u8], g: &Geometry, dx: &mut [Self], add: bool) {
            pool::max_gradient(Level::chosen(), dy, tap, g, dx, add);
        }
        fn add_into(sum: &mut [Self], g: &[Self]) {
            norm::add_into(Level::chosen(), sum, g);
        }
    };
}

impl Real for f32 {
    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    fn of(map: &FeatureMap) -> Option<&Value<Self>> {
        if let FeatureMap::F32(value) = map { Some(value) } else { None }
    }
    fn wrap(value: Value<Self>) -> FeatureMap {
        FeatureMap::F32(value)
    }
    fn gradient(numbers: Numbers<Self>) -> Gradient {
        Gradient::F32(numbers)
    }
    fn of_gradient(gradient: &Gradient) -> Option<&Numbers<Self>> {
        if let Gradient::F32(numbers) = gradient { Some(numbers) } else { None }
    }
    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F32(values) = storage { Some(values) } else { None }
    }
    fast_kernels!();
}

impl Real for f64 {
    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    fn of(map: &FeatureMap) -> Option<&Value<Self>> {
        if let FeatureMap::F64(value) = map { Some(value) } else { None }
    }
    fn wrap(value: Value<Self>) -> FeatureMap {
        FeatureMap::F64(value)
    }
    fn gradient(numbers: Numbers<Self>) -> Gradient {
        Gradient::F64(numbers)
    }
    fn of_gradient(gradient: &Gradient) -> Option<&Numbers<Self>> {
        if let Gradient::F64(numbers) = gradient { Some(numbers) } else { None }
    }
    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        if let CpuStorage::F64(values) = storage { Some(values) } else { None }
    }
    fast_kernels!();
}

/// Lets `f` read a tensor's numbers without copying them (a tensor that is not contiguous is made so first).
pub(crate) fn with_slice<T: WithDType, R>(t: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let t = if t.is_contiguous() { t.clone() } else { t.contiguous()? };
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(cpu), Some((from, to))) => f(&cpu.as_slice::<T>()?[from..to]),
        _ => bail!("a contiguous tensor on the CPU is expected"),
    }
}
