//! A network as it is built for one assignment of roles.

use crate::arch::{Arch, Naming};
use crate::error::{Error, Result};
use crate::nn::Folded;
use crate::ops::{FeatureMap, Symbolic};
use crate::params::{BlockInfo, Builder, Layer, Provider, Shapes};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// The blocks of a backbone over tensors in their roles.
pub(crate) struct Network {
    arch: Arch,
    naming: Naming,
    channels: usize,
    pub blocks: Vec<BlockInfo>,
    layers: Vec<Box<dyn Layer>>,
    /// The folded convolutions of frozen blocks, by name.
    pub folded: Vec<(String, Arc<Folded>)>,
}

impl Network {
    pub fn build(arch: Arch, naming: Naming, channels: usize, provider: &dyn Provider) -> Result<Self> {
        let mut b = Builder::new(provider, channels);
        arch.build(&mut b, naming)?;
        Ok(Self { arch, naming, channels, blocks: b.blocks, layers: b.layers, folded: b.folded })
    }

    /// The names of the blocks without anything behind them.
    pub fn outline(&self) -> Self {
        Self { blocks: self.blocks.clone(), layers: vec![], folded: vec![], ..*self }
    }

    /// Images (N, C, H, W) to features (N, D).
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.on_images(images, |x| self.rest(x, 0))
    }

    /// What the first `count` blocks make of images: a map (N, C, H, W), or features (N, D) after all blocks.
    pub fn prefix(&self, images: &Tensor, count: usize) -> Result<Tensor> {
        self.on_images(images, |x| {
            let x = through(&self.layers[..count], x)?;
            if count == self.layers.len() { pooled(x) } else { Ok(x.to_images()?) }
        })
    }

    /// The rest of the way from what `prefix` made: features (N, D).
    pub fn suffix(&self, x: &Tensor, from: usize) -> Result<Tensor> {
        if from == self.layers.len() {
            return Ok(x.clone());
        }
        self.rest(FeatureMap::new(x)?, from)
    }

    /// What each stage makes of images, averaged over its pixels: (N, channels), with the stage's name.
    pub fn stage_features(&self, images: &Tensor) -> Result<Vec<(String, Tensor)>> {
        self.on_images(images, |mut x| {
            let mut stages = Vec::new();
            for (i, (layer, block)) in self.layers.iter().zip(&self.blocks).enumerate() {
                x = layer.forward(&x)?;
                if self.blocks.get(i + 1).is_none_or(|next| next.stage != block.stage) {
                    stages.push((block.stage.clone(), pooled(x.clone())?));
                }
            }
            Ok(stages)
        })
    }

    /// Runs `f` on images (N, C, H, W). Images that the network cannot take are refused with what it takes; this is
    /// the one way in.
    fn on_images<T>(&self, images: &Tensor, f: impl FnOnce(FeatureMap) -> Result<T>) -> Result<T> {
        let (arch, channels) = (self.arch, self.channels);
        match images.dims() {
            [n, c, h, w] if *c == channels && *n > 0 && *h > 0 && *w > 0 => {
                // Only what failed is asked whether its size was the reason, so that the check costs nothing.
                let too_small = |error| check_size(arch, self.naming, channels, (*h, *w)).err().unwrap_or(error);
                f(FeatureMap::new(images)?).map_err(too_small)
            }
            dims => Err(Error::invalid(
                "images",
                format!("have shape {dims:?}; {arch} takes (N, {channels}, height, width)"),
            )),
        }
    }

    /// The blocks from number `from` on, and the mean over all pixels.
    fn rest(&self, x: FeatureMap, from: usize) -> Result<Tensor> {
        pooled(through(&self.layers[from..], x)?)
    }

    /// All blocks and the mean over all pixels, by sizes alone.
    pub fn sketch(&self, x: Symbolic) -> Result<FeatureMap> {
        Ok(through(&self.layers, FeatureMap::Symbolic(x))?.mean_pixels()?)
    }

    /// The checksums of every folded convolution and of its packed copies, as far as they are made, by name.
    pub fn checksums(&self) -> Result<Vec<(String, u64)>> {
        let mut all = Vec::new();
        for (name, folded) in &self.folded {
            let sums = folded.checksums()?;
            all.extend(sums.into_iter().map(|(what, sum)| (format!("{name} ({what})"), sum)));
        }
        Ok(all)
    }
}

/// The longest side of an input in pixels.
const MAX_SIDE: usize = 1 << 14;

/// Refuses a size of images, height and width, at which nothing would be left for the last layers, or that no memory
/// holds.
pub(crate) fn check_size(arch: Arch, naming: Naming, channels: usize, (h, w): (usize, usize)) -> Result<()> {
    // As for images: a file may say any size, and the memory of the check grows with it.
    if h > MAX_SIDE || w > MAX_SIDE {
        let problem = format!("{h} x {w} pixels; a side has {MAX_SIDE} at most");
        return Err(Error::invalid("input size", problem));
    }
    let network = Network::build(arch, naming, channels, &Shapes)?;
    let takes = |h: usize, w: usize| {
        h > 0 && w > 0 && network.sketch(Symbolic::new((1, channels, h, w), DType::F32, None)).is_ok()
    };
    if takes(h, w) {
        return Ok(());
    }
    /// No architecture needs more pixels than this on a side.
    const ENOUGH: usize = 256;
    let least = (1..ENOUGH).find(|&side| takes(side, side)).unwrap_or(ENOUGH);
    let problem = format!("{h} x {w} pixels are too few for {arch}, which takes {least} x {least} at least");
    Err(Error::invalid("input size", problem))
}

fn through(layers: &[Box<dyn Layer>], x: FeatureMap) -> Result<FeatureMap> {
    layers.iter().try_fold(x, |x, layer| layer.forward(&x))
}

/// The mean over all pixels: (N, C, H, W) to (N, C).
fn pooled(x: FeatureMap) -> Result<Tensor> {
    Ok(x.mean_pixels()?.into_rows()?)
}
