//! Layers made of Candle's operations.

use super::builder::{Builder, Module};
use crate::error::{Error, Result, shown};
use crate::ops::FeatureMap;
use crate::params::{Facts, TensorInit};
use candle_core::Tensor;

/// The tensors of a [`Layer::custom`](crate::Layer::custom).
pub struct LayerTensors<'a, 'b> {
    builder: &'a mut Builder<'b>,
    path: &'a str,
}

impl<'a, 'b> LayerTensors<'a, 'b> {
    pub(super) fn new(builder: &'a mut Builder<'b>, path: &'a str) -> Self {
        Self { builder, path }
    }

    /// A tensor of this shape, trained unless its block is frozen. Its name in files is `{layer}.{name}`. `init`:
    /// its values in a network without pretrained weights. Weight decay applies to tensors of rank 2 and more.
    ///
    /// # Errors
    /// If the weights lack the tensor or have it in another shape, and for an `init` that cannot be.
    pub fn get(&mut self, name: &str, shape: &[usize], init: TensorInit) -> Result<Tensor> {
        if name.is_empty() {
            return Err(Error::invalid(format!("tensor of {}", shown(self.path)), "its name is empty"));
        }
        init.check(&format!("tensor {}.{name}", self.path))?;
        let facts = Facts::parameter(init, shape.len());
        let slot = self.builder.slot(format!("{}.{name}", self.path), shape.to_vec(), facts)?;
        Ok(slot.tensor().clone())
    }
}

/// From images or a map (N, C, H, W) to another, or to features (N, D).
pub(crate) type Forward = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync>;

/// A closure over tensors (N, C, H, W), on any device.
pub(crate) struct Custom {
    pub forward: Forward,
}

impl Module for Custom {
    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let images = x.to_images()?;
        let y = (self.forward)(&images)?;
        // Features are a map of one pixel.
        let y = match y.rank() {
            2 => y.unsqueeze(2)?.unsqueeze(3)?,
            4 => y,
            _ => {
                let problem = format!("returned shape {:?}; maps are (N, C, H, W) and features (N, D)", y.dims());
                return Err(Error::invalid("custom layer", problem));
            }
        };
        if y.dims().first() != images.dims().first() {
            let problem =
                format!("returned shape {:?} for {:?}; it keeps the number of images", y.dims(), images.dims());
            return Err(Error::invalid("custom layer", problem));
        }
        Ok(FeatureMap::like(x, &y)?)
    }
}
