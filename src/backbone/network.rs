//! A network built with given tensors frozen and others trainable.

use crate::blueprint::Blueprint;
use crate::error::{Error, Result};
use crate::nn::{BlockInfo, Builder, DropPath, Folded, Module, at_block, with_drop_path};
use crate::ops::{FeatureMap, Symbolic};
use crate::params::{Provider, Shapes};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// The blocks of a blueprint over tensors in their roles.
pub(crate) struct Network {
    blueprint: Blueprint,
    layers: Vec<Box<dyn Module>>,
    /// The folded convolutions of frozen blocks, by name.
    pub folded: Vec<(String, Arc<Folded>)>,
}

impl Network {
    pub fn build(blueprint: &Blueprint, provider: &dyn Provider) -> Result<Self> {
        let mut b = Builder::new(provider, blueprint.input_spec().channels);
        blueprint.build(&mut b)?;
        Ok(Self { blueprint: blueprint.clone(), layers: b.layers, folded: b.folded })
    }

    pub fn blocks(&self) -> &[BlockInfo] {
        self.blueprint.blocks()
    }

    /// Images (N, C, H, W) to features (N, D).
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.on_images(images, |x| self.rest(x, 0))
    }

    /// The output of the first `count` blocks for images: a map (N, C, H, W), or features (N, D) after all blocks.
    #[cfg(test)]
    pub fn prefix(&self, images: &Tensor, count: usize) -> Result<Tensor> {
        self.on_images(images, |x| {
            let x = through(&self.layers[..count], x)?;
            if count == self.layers.len() { self.features_of(x) } else { Ok(x.to_images()?) }
        })
    }

    /// Runs the first `last` blocks once; `visit` gets the map after each, with the number of blocks so far.
    pub fn each_map(
        &self,
        images: &Tensor,
        last: usize,
        mut visit: impl FnMut(usize, &FeatureMap) -> Result<()>,
    ) -> Result<()> {
        self.on_images(images, |mut x| {
            for (i, layer) in self.layers.iter().take(last).enumerate() {
                x = layer.forward(&x)?;
                visit(i + 1, &x)?;
            }
            Ok(())
        })
    }

    /// The input of [`Network::suffix`], from the map `x` of the first `count` blocks: a map (N, C, H, W), or features
    /// (N, D) after all blocks.
    pub fn handed_on(&self, x: &FeatureMap, count: usize) -> Result<Tensor> {
        if count == self.layers.len() { self.features_of(x.clone()) } else { Ok(x.to_images()?) }
    }

    /// The places after each stage: its name, and the number of blocks so far.
    pub fn stages(&self) -> impl Iterator<Item = (&str, usize)> {
        let blocks = self.blocks();
        let ends = move |i: &usize| blocks.get(i + 1).is_none_or(|next| next.stage != blocks[*i].stage);
        (0..blocks.len()).filter(ends).map(move |i| (blocks[i].stage.as_str(), i + 1))
    }

    /// The map `x` of the first `count` blocks, pooled to the means over a grid of `grid` x `grid` cells: (N, C) for
    /// one cell, otherwise (N, C, grid, grid). The one cell of the last block is the network's own pooling, the
    /// features.
    pub fn pooled(&self, x: &FeatureMap, count: usize, grid: usize) -> Result<Tensor> {
        match grid {
            1 if count == self.layers.len() => self.features_of(x.clone()),
            1 => averaged(x.clone()),
            _ => cells(x, grid),
        }
    }

    /// The columns of a head over all stages, (N, columns): the means of the stages, then their cells.
    pub fn columns(&self, images: &Tensor) -> Result<Tensor> {
        let (mut means, mut grids, mut stages) = (vec![], vec![], self.stages().peekable());
        self.each_map(images, self.layers.len(), |blocks, map| {
            if stages.next_if(|&(_, count)| count == blocks).is_some() {
                means.push(self.pooled(map, blocks, 1)?);
                grids.push(self.pooled(map, blocks, GRID)?.flatten_from(1)?);
            }
            Ok(())
        })?;
        means.extend(grids);
        Ok(Tensor::cat(&means, 1)?)
    }

    /// The blocks from `from` on, over the result of [`Network::handed_on`]: features (N, D).
    pub fn suffix(&self, x: &Tensor, from: usize) -> Result<Tensor> {
        if from == self.layers.len() {
            return Ok(x.clone());
        }
        self.rest(FeatureMap::new(x)?, from)
    }

    /// Features (N, D) of the map (N, C, H, W) after the first `from` blocks; the pooling alone after all of them.
    pub fn features_from_map(&self, map: &Tensor, from: usize) -> Result<Tensor> {
        self.rest(FeatureMap::new(map)?, from)
    }

    /// The output of each stage, averaged over its pixels: (N, channels), with the stage's name.
    pub fn stage_features(&self, images: &Tensor) -> Result<Vec<(String, Tensor)>> {
        self.on_images(images, |mut x| {
            let (mut features, mut stages) = (Vec::new(), self.stages().peekable());
            for (i, layer) in self.layers.iter().enumerate() {
                x = layer.forward(&x)?;
                if let Some((stage, count)) = stages.next_if(|&(_, count)| count == i + 1) {
                    features.push((stage.to_string(), self.pooled(&x, count, 1)?));
                }
            }
            Ok(features)
        })
    }

    /// Runs `f` on images (N, C, H, W). Images that the network cannot take are refused with what it takes; this is
    /// the one way in.
    fn on_images<T>(&self, images: &Tensor, f: impl FnOnce(FeatureMap) -> Result<T>) -> Result<T> {
        let (blueprint, channels) = (&self.blueprint, self.blueprint.input_spec().channels);
        match images.dims() {
            [n, c, h, w] if *c == channels && *n > 0 && *h > 0 && *w > 0 => {
                // The size is checked only after a failure, so that the check costs nothing.
                let too_small = |error| check_size(blueprint, (*h, *w)).err().unwrap_or(error);
                f(FeatureMap::new(images)?).map_err(too_small)
            }
            dims => Err(Error::invalid(
                "images",
                format!("have shape {dims:?}; {} takes (N, {channels}, height, width)", blueprint.name()),
            )),
        }
    }

    /// The blocks from number `from` on, and the pooling.
    fn rest(&self, x: FeatureMap, from: usize) -> Result<Tensor> {
        let mut numbered = self.layers.iter().enumerate().skip(from);
        let x = numbered.try_fold(x, |x, (i, layer)| {
            at_block(i, self.layers.len());
            layer.forward(&x)
        })?;
        self.features_of(x)
    }

    /// The features of the last block's map.
    fn features_of(&self, x: FeatureMap) -> Result<Tensor> {
        let features = self.blueprint.pooling().apply(&x)?.into_rows()?;
        let (made, said) = (features.dim(1)?, self.blueprint.feature_dim());
        if made != said {
            let problem = format!("its blocks return {made} features, but its feature_dim is {said}");
            return Err(Error::invalid(format!("blueprint {}", self.blueprint.name()), problem));
        }
        Ok(features)
    }

    /// All blocks and the pooling, by sizes alone; `visit` gets the map after each block, with the number of blocks so
    /// far.
    pub fn dry_run(&self, x: Symbolic, mut visit: impl FnMut(usize, &Symbolic)) -> Result<FeatureMap> {
        let mut x = FeatureMap::Symbolic(x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            if let FeatureMap::Symbolic(map) = &x {
                visit(i + 1, map);
            }
        }
        self.blueprint.pooling().apply(&x)
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

/// Cells on a side, of the grids of a head over all stages.
const GRID: usize = 4;

/// The number of residual branches that stochastic depth may skip; `None` for a network with closures.
pub(crate) fn residual_branches(blueprint: &Blueprint) -> Result<Option<usize>> {
    let settings = DropPath { probability: 0.0, seed: 0, forward: 0, first: 0 };
    let (maps, branches) = with_drop_path(settings, || spatial_blocks(blueprint));
    Ok(maps?.map(|_| branches))
}

/// For each block, whether its map has more than one pixel for images of the blueprint's own size; `None` for a network
/// with closures, whose sizes no dry run knows.
pub(crate) fn spatial_blocks(blueprint: &Blueprint) -> Result<Option<Vec<bool>>> {
    if blueprint.is_opaque() {
        return Ok(None);
    }
    let (channels, (height, width)) = (blueprint.input_spec().channels, blueprint.input_spec().size);
    let mut x = FeatureMap::Symbolic(Symbolic::new((1, channels, height, width), DType::F32, None));
    let mut spatial = vec![];
    for layer in &Network::build(blueprint, &Shapes)?.layers {
        x = layer.forward(&x)?;
        let (_, _, h, w) = x.dims()?;
        spatial.push(h * w > 1);
    }
    Ok(Some(spatial))
}

/// The longest side of an input in pixels.
const MAX_SIDE: usize = 1 << 14;

/// Refuses a size of images, height and width, at which nothing would be left for the last layers, or that no memory
/// holds.
pub(crate) fn check_size(blueprint: &Blueprint, (h, w): (usize, usize)) -> Result<()> {
    // As for images: a file may claim any size, and the memory of the check grows with it.
    if h > MAX_SIDE || w > MAX_SIDE {
        let problem = format!("{h} x {w} pixels; a side has {MAX_SIDE} at most");
        return Err(Error::invalid("input size", problem));
    }
    let (height, width) = blueprint.input_spec().size;
    if let Some(why) = blueprint.limits().sizes.and_then(|rule| rule((h, w), (height, width))) {
        let name = blueprint.name();
        let problem = format!("{h} x {w} pixels; {name} takes {why}; its own size is {height} x {width}");
        return Err(Error::invalid("input size", problem));
    }
    if blueprint.is_opaque() {
        // A dry run does not cover closures; they return their own errors.
        return Ok(());
    }
    let network = Network::build(blueprint, &Shapes)?;
    let channels = blueprint.input_spec().channels;
    let takes = |h: usize, w: usize| {
        h > 0 && w > 0 && network.dry_run(Symbolic::new((1, channels, h, w), DType::F32, None), |_, _| {}).is_ok()
    };
    if takes(h, w) {
        return Ok(());
    }
    /// No architecture needs more pixels than this on a side.
    const ENOUGH: usize = 256;
    let least = (1..ENOUGH).find(|&side| takes(side, side)).unwrap_or(ENOUGH);
    let problem =
        format!("{h} x {w} pixels are too few for {}, which takes {least} x {least} at least", blueprint.name());
    Err(Error::invalid("input size", problem))
}

#[cfg(test)]
fn through(layers: &[Box<dyn Module>], x: FeatureMap) -> Result<FeatureMap> {
    layers.iter().try_fold(x, |x, layer| layer.forward(&x))
}

/// The mean over all pixels: (N, C, H, W) to (N, C).
fn averaged(x: FeatureMap) -> Result<Tensor> {
    Ok(x.mean_pixels()?.into_rows()?)
}

/// The means over a grid of cells, (N, C, grid, grid): cell i covers the pixels from floor(i size / grid) to
/// ceil((i + 1) size / grid), so cells of small maps share pixels.
fn cells(map: &FeatureMap, grid: usize) -> Result<Tensor> {
    let mut images = map.to_images()?;
    for dim in [2, 3] {
        let size = images.dim(dim)?;
        let cell = |i: usize| {
            let (from, to) = (i * size / grid, ((i + 1) * size).div_ceil(grid));
            images.narrow(dim, from, to - from)?.mean_keepdim(dim)
        };
        images = Tensor::cat(&(0..grid).map(cell).collect::<candle_core::Result<Vec<_>>>()?, dim)?;
    }
    Ok(images)
}
