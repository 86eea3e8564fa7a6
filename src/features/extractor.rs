//! The frozen network that computes features, and the cuts where they are taken.

use super::cache::FeatureCache;
use crate::backbone::{Backbone, Inner, Network, Profile};
use crate::data::{Dataset, Loader, Transform};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::nn::checksum;
use crate::ops::no_grad;
use crate::params::Declared;
use candle_core::{DType, Device, Tensor};
use std::cell::OnceCell;
use std::sync::Arc;

/// A place in a network where features are taken.
///
/// ```
/// use candle_finetune::Cut;
/// let cuts = [Cut::Boundary(3), Cut::Stages { pooled: 1 }];
/// # let _ = cuts;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cut {
    /// After this many blocks, at least one: their map (N, C, H, W), or the features (N, feature_dim) after all of
    /// them.
    Boundary(usize),
    /// After each stage of [`Backbone::stages`](crate::Backbone::stages).
    Stages {
        /// 1: the mean over all pixels, (N, C); after the last stage the features of
        /// [`Backbone::forward`](crate::Backbone::forward). 4: the means over a grid of 4 x 4 cells, (N, C, 4, 4), as
        /// PyTorch's `AdaptiveAvgPool2d(4)`.
        pooled: usize,
    },
}

/// Makes features of samples: a frozen network and the transform before it.
///
/// ```
/// use candle_finetune::{Arch, Backbone, FeatureExtractor, candle_core::Device};
/// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let extractor = FeatureExtractor::new(&backbone)?.workers(1);
/// # let _ = extractor;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub struct FeatureExtractor<'a> {
    network: &'a Network,
    weights: Vec<Weight>,
    /// The settings that features depend on besides weights and sample: layers and pooling, naming, input, type and
    /// device.
    setting: String,
    transform: Transform,
    /// The fingerprint of seed and augmentation, if samples are augmented at random.
    augmentation: Option<u64>,
    seed: u64,
    workers: Option<usize>,
    must_be_finite: bool,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

/// A tensor of the network.
pub(crate) struct Weight {
    /// Its block, from 0.
    block: usize,
    name: String,
    tensor: Tensor,
    sum: OnceCell<u64>,
}

impl Weight {
    /// `block` counts from 0.
    pub fn new(block: usize, name: &str, tensor: Tensor) -> Self {
        Self { block, name: name.to_string(), tensor, sum: OnceCell::new() }
    }

    /// The checksum, computed once.
    fn sum(&self) -> Result<u64> {
        match self.sum.get() {
            Some(sum) => Ok(*sum),
            None => Ok(*self.sum.get_or_init({
                let sum = checksum(&self.tensor)?;
                move || sum
            })),
        }
    }
}

/// One place of a [`Cut`]: the features taken there, and their origin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output {
    /// The block or stage before it.
    pub name: String,
    pub blocks: usize,
    /// Cells per side of the pooled map; `None` for the unpooled output of the blocks.
    pub grid: Option<usize>,
    /// The fingerprint of all that its features depend on besides the sample.
    pub made_by: u64,
}

impl<'a> FeatureExtractor<'a> {
    /// The backbone as it is, over images without augmentation.
    ///
    /// # Errors
    /// For an input specification that no transform can follow.
    pub fn new(backbone: &'a Backbone) -> Result<Self> {
        let Inner { profile, tensors, network, .. } = &*backbone.inner;
        let weight = |d: &Declared| Some(Weight::new(d.block, &d.name, tensors.get(&d.name)?.clone()));
        let weights = profile.blueprint.declared().iter().filter_map(weight).collect();
        Self::over(network, profile, weights)
    }

    /// The blocks of `network`, which hold `weights`; `profile` describes its input.
    pub(crate) fn over(network: &'a Network, profile: &Profile, weights: Vec<Weight>) -> Result<Self> {
        let Profile { blueprint, naming, spec, dtype, device, .. } = profile;
        let network_id = blueprint.identity();
        let setting = format!("{network_id:x} {naming:?} {spec:?} {dtype:?} {:?}", device.location());
        Ok(Self {
            network,
            weights,
            setting,
            transform: Transform::eval(spec)?,
            augmentation: None,
            seed: 0,
            workers: None,
            must_be_finite: true,
            dtype: *dtype,
            device: device.clone(),
        })
    }

    /// Sets the threads that decode images. The features do not depend on it.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets what is done to images, with the seed of its randomness; `augmentation` stands for both where it is random.
    pub(crate) fn transform(mut self, transform: Transform, seed: u64, augmentation: Option<u64>) -> Self {
        (self.transform, self.seed, self.augmentation) = (transform, seed, augmentation);
        self
    }

    /// Sets whether features that are not finite are an error (yes by default), since nothing can be learned from
    /// them. A validation counts them.
    pub(crate) fn must_be_finite(mut self, must: bool) -> Self {
        self.must_be_finite = must;
        self
    }

    /// The fingerprint of all that features at a cut depend on besides the sample, as `cache` stores them.
    pub(crate) fn made_by(&self, cut: Cut, cache: &FeatureCache) -> Result<u64> {
        Ok(self.outputs(&[cut], cache.stored(self.dtype))?.first().map_or(0, |output| output.made_by))
    }

    /// The number of blocks of its network.
    pub(crate) fn blocks(&self) -> usize {
        self.network.blocks().len()
    }

    /// Whether samples are augmented at random.
    pub(super) fn is_random(&self) -> bool {
        self.augmentation.is_some()
    }

    pub(super) fn refuses_what_is_not_finite(&self) -> bool {
        self.must_be_finite
    }

    /// The key of view `view` of the sample that has `origin`; 0 where views are not random.
    pub(super) fn view(&self, view: usize, origin: usize) -> u64 {
        self.augmentation
            .map_or(0, |augmentation| Fingerprint::new("view").number(augmentation).numbers(&[view, origin]).finish())
    }

    pub(super) fn loader(&self, dataset: &Arc<dyn Dataset>, batch_size: usize) -> Loader {
        let loader = Loader::new(dataset, self.transform.clone()).batch_size(batch_size).seed(self.seed);
        self.workers.into_iter().fold(loader, Loader::workers)
    }

    /// The outputs of these cuts, whose features are stored as `stored`.
    pub(super) fn outputs(&self, cuts: &[Cut], stored: DType) -> Result<Vec<Output>> {
        let blocks = self.network.blocks();
        let mut outputs = Vec::new();
        let mut add = |name: &str, blocks, grid| {
            outputs.push(Output { name: name.to_string(), blocks, grid, made_by: 0 });
        };
        for cut in cuts {
            match *cut {
                Cut::Boundary(k) => match k.checked_sub(1).and_then(|last| blocks.get(last)) {
                    Some(block) => add(&block.name, k, None),
                    None => {
                        let problem = format!("after {k} blocks; the backbone has {}; use at least 1", blocks.len());
                        return Err(Error::invalid("cut", problem));
                    }
                },
                Cut::Stages { pooled: pooled @ (1 | 4) } => {
                    for (stage, count) in self.network.stages() {
                        // The network's own features: the same rows as those of the boundary after all blocks.
                        let own = pooled == 1 && count == blocks.len();
                        add(stage, count, (!own).then_some(pooled));
                    }
                }
                Cut::Stages { pooled } => {
                    return Err(Error::invalid("cut", format!("stages pooled to {pooled} x {pooled}; use 1 or 4")));
                }
            }
        }
        let last = outputs.iter().map(|output| output.blocks).max().unwrap_or(0);
        let used = self.weights.iter().filter(|weight| weight.block < last);
        let sums: Vec<(usize, &str, u64)> =
            used.map(|weight| Ok((weight.block, weight.name.as_str(), weight.sum()?))).collect::<Result<_>>()?;
        for output in &mut outputs {
            let sums: Vec<_> = sums.iter().filter(|(block, ..)| *block < output.blocks).collect();
            let print = Fingerprint::new("features").text(&self.setting).text(&format!("{stored:?}"));
            let print = print.numbers(&[output.blocks, output.grid.unwrap_or(0)]);
            let weight = |print: Fingerprint, (_, name, sum): &&(usize, &str, u64)| print.text(name).number(*sum);
            output.made_by = sums.iter().fold(print, weight).finish();
        }
        Ok(outputs)
    }

    /// The features of images (N, C, H, W) at each of the outputs, in one pass.
    pub(super) fn run(&self, images: &Tensor, outputs: &[&Output]) -> Result<Vec<Tensor>> {
        let images = images.to_dtype(self.dtype)?;
        let last = outputs.iter().map(|output| output.blocks).max().unwrap_or(0);
        let mut made: Vec<Option<Tensor>> = vec![None; outputs.len()];
        no_grad(|| {
            self.network.each_map(&images, last, |blocks, map| {
                for (made, output) in made.iter_mut().zip(outputs).filter(|(_, output)| output.blocks == blocks) {
                    *made = Some(match output.grid {
                        None => self.network.handed_on(map, blocks)?,
                        Some(grid) => self.network.pooled(map, blocks, grid)?,
                    });
                }
                Ok(())
            })
        })?;
        Ok(made.into_iter().flatten().collect())
    }
}
