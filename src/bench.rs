//! For this crate's own benchmarks: single operations on images, not part of the API.

use crate::error::Result;
use crate::ops::{Activation, ConvStep, FeatureMap, Filter, Norm, Padding, backward};
use candle_core::{Device, Tensor, Var};

/// A convolution with batch norm and ReLU, over its own data.
pub struct ConvCase {
    images: Var,
    weight: Var,
    affine: [Var; 2],
    stride: usize,
    groups: usize,
    kernel: usize,
}

impl ConvCase {
    /// `batch` images of `size` x `size` pixels, from `inputs` to `outputs` channels.
    pub fn new(
        batch: usize,
        size: usize,
        (inputs, outputs): (usize, usize),
        (kernel, stride, groups): (usize, usize, usize),
    ) -> Result<Self> {
        let images = wave(&[batch, inputs, size, size])?;
        let weight = wave(&[outputs, inputs / groups, kernel, kernel])?;
        let affine = [wave(&[outputs])?, wave(&[outputs])?];
        Ok(Self { images, weight, affine, stride, groups, kernel })
    }

    /// Multiplications and additions of the forward pass.
    pub fn flops(&self) -> u64 {
        let (x, w) = (self.images.dims(), self.weight.dims());
        let side = x[2].div_ceil(self.stride);
        let per_pixel = w.iter().product::<usize>();
        (2 * x[0] * side * side * per_pixel) as u64
    }

    /// The images (N, C, H, W), the kernel (K, C / groups, KH, KW), padding, stride and groups, for a comparison.
    pub fn parts(&self) -> (&Var, &Var, usize, usize, usize) {
        (&self.images, &self.weight, (self.kernel - 1) / 2, self.stride, self.groups)
    }

    /// As frozen blocks run it: a bias, ReLU, no graph.
    pub fn frozen(&self) -> Result<FrozenCase> {
        let images = FeatureMap::new(&self.images.as_detached_tensor())?;
        let filter = Filter::new(self.weight.as_detached_tensor());
        let bias = self.affine[1].as_detached_tensor();
        Ok(FrozenCase { images, filter, bias, stride: self.stride, groups: self.groups, kernel: self.kernel })
    }

    /// Forward and backward with the batch's statistics, as a trainable block runs them: gradients of images,
    /// kernel, scale and shift.
    pub fn learning(&self) -> Result<()> {
        let filter = Filter::new(self.weight.as_tensor().clone());
        let [gamma, beta] = &self.affine;
        let norm = Norm::Batch { gamma: gamma.as_tensor(), beta: beta.as_tensor(), eps: 1e-5 };
        let step = step(&filter, norm, self.stride, self.groups, self.kernel);
        let (y, _) = FeatureMap::new(self.images.as_tensor())?.conv_step(&step, None)?;
        backward(&y.mean_pixels()?.into_rows()?.mean_all()?, [])?;
        Ok(())
    }
}

/// [`ConvCase::frozen`]: the kernel is packed once.
pub struct FrozenCase {
    images: FeatureMap,
    filter: Filter,
    bias: Tensor,
    stride: usize,
    groups: usize,
    kernel: usize,
}

impl FrozenCase {
    /// One forward pass.
    pub fn forward(&self) -> Result<()> {
        let norm = Norm::None { bias: Some(&self.bias) };
        self.images.conv_step(&step(&self.filter, norm, self.stride, self.groups, self.kernel), None)?;
        Ok(())
    }
}

/// Forward and backward of the max-pool of a ResNet's stem: 3 x 3 pixels, stride 2.
pub fn max_pool(images: &Var) -> Result<()> {
    let y = FeatureMap::new(images.as_tensor())?.max_pool(3, 2, Padding::Even(1))?;
    backward(&y.mean_pixels()?.into_rows()?.mean_all()?, [])?;
    Ok(())
}

/// Deterministic elements of mean zero and about unit size.
pub fn wave(shape: &[usize]) -> Result<Var> {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7).sin() * 1.4).collect();
    Ok(Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?)
}

fn step<'a>(filter: &'a Filter, norm: Norm<'a>, stride: usize, groups: usize, kernel: usize) -> ConvStep<'a> {
    let padding = Padding::Even((kernel - 1) / 2);
    ConvStep { filter, stride, dilation: 1, groups, padding, norm, act: Activation::Relu }
}
