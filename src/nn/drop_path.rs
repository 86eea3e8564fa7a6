//! Stochastic depth: in training, a sample skips a residual branch at random (Huang et al. 2016, arXiv 1603.09382).
//!
//! Which pass through the network it is, and which block, is known to those who run it and not to its layers, so it is
//! kept here while a pass runs on this thread.

use crate::error::Result;
use crate::ops::FeatureMap;
use crate::rng::Seed;
use candle_core::{DType, Device, Tensor};
use rand::RngExt;
use std::cell::RefCell;

/// The settings of one pass through a network in training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DropPath {
    /// The probability of the last block, in [0, 1).
    pub probability: f64,
    pub seed: u64,
    /// The number of the pass in the run.
    pub forward: u64,
    /// Blocks before this are frozen, and skip nothing.
    pub first: usize,
}

/// A pass in progress.
struct Pass {
    settings: DropPath,
    /// The block that runs, and how many there are.
    block: (usize, usize),
    /// Branches of this block so far, and of all blocks.
    branches: (u64, usize),
}

thread_local! {
    static PASS: RefCell<Option<Pass>> = const { RefCell::new(None) };
}

/// Runs `f`, in which residual branches are skipped by these settings. Returns its result with the number of branches
/// that might have been.
pub(crate) fn with_drop_path<R>(settings: DropPath, f: impl FnOnce() -> R) -> (R, usize) {
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            PASS.set(None);
        }
    }
    PASS.set(Some(Pass { settings, block: (0, 1), branches: (0, 0) }));
    let end = End;
    let result = f();
    let branches = PASS.with_borrow(|pass| pass.as_ref().map_or(0, |pass| pass.branches.1));
    drop(end);
    (result, branches)
}

/// Notes that block `number` of `all` runs next.
pub(crate) fn at_block(number: usize, all: usize) {
    PASS.with_borrow_mut(|pass| {
        if let Some(pass) = pass {
            (pass.block, pass.branches.0) = ((number, all), 0);
        }
    });
}

/// The output of a residual branch with the samples that skip it at zero and the others scaled up, so that the mean stays;
/// `None` where no sample may skip it. `y` makes the output.
pub(crate) fn skipping(y: impl FnOnce() -> Result<FeatureMap>) -> Result<Option<FeatureMap>> {
    let drawn = PASS.with_borrow_mut(|pass| {
        let pass = pass.as_mut().filter(|pass| pass.block.0 >= pass.settings.first)?;
        let DropPath { probability, seed, forward, .. } = pass.settings;
        let (block, blocks) = pass.block;
        pass.branches = (pass.branches.0 + 1, pass.branches.1 + 1);
        let probability = probability * block as f64 / (blocks.max(2) - 1) as f64;
        let stream = Seed(seed).stream("drop path", &[forward, block as u64, pass.branches.0]);
        (probability > 0.0).then_some((probability, stream))
    });
    let Some((probability, mut stream)) = drawn else { return Ok(None) };
    let y = y()?;
    let (n, c, _, _) = y.dims()?;
    let kept = (1.0 / (1.0 - probability)) as f32;
    let factors: Vec<f32> = (0..n).map(|_| if stream.random::<f64>() < probability { 0.0 } else { kept }).collect();
    Ok(Some(y.scale(&constants(&y, factors, (n, c))?)?))
}

/// A map of one pixel with a constant for each image, beside `y`.
fn constants(y: &FeatureMap, values: Vec<f32>, (n, c): (usize, usize)) -> Result<FeatureMap> {
    let like = |device: &Device, dtype: DType| -> Result<Tensor> {
        let column = Tensor::from_vec(values, (n, 1, 1, 1), device)?.to_dtype(dtype)?;
        Ok(column.broadcast_as((n, c, 1, 1))?.contiguous()?)
    };
    Ok(match y {
        FeatureMap::F64(_) => FeatureMap::new(&like(&Device::Cpu, DType::F64)?)?,
        FeatureMap::Device(t) => FeatureMap::like(y, &like(t.device(), t.dtype())?)?,
        FeatureMap::F32(_) | FeatureMap::Symbolic(_) => FeatureMap::new(&like(&Device::Cpu, DType::F32)?)?,
    })
}
