//! Two further figures of how far images are from the pretraining data: the shift of the statistics that batch norms
//! remember, and where in the network the gradients are largest. The advisor does not use them; the page of the grid
//! compares them with what it uses.

use crate::run::Failure;
use candle_finetune::candle_core::{DType, Tensor};
use candle_finetune::{
    Backbone, BatchNormMode, Dataset, FineTuner, HeadStart, Loss, Optimizer, Phase, Plan, candle_core,
};
use std::collections::BTreeMap;

/// The figures of one batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shift {
    /// How far the batch's mean and variance are from the remembered ones: Jeffreys' divergence of the two normal
    /// distributions, the mean over all channels of all batch norms. 0 for networks without them. Each layer is given the
    /// normalised output of those before it, so that a shift counts where it arises.
    pub divergence: f64,
    /// The share of the first half of the blocks in the sum over all blocks of the relative gradient norm, |gradient| /
    /// |weight| (Lee et al. 2023, arXiv 2210.11466: the layers with the largest are worth tuning).
    pub early: f64,
}

/// Images that are looked at, at most.
const IMAGES: usize = 64;

/// What batch norms take over of a batch's statistics.
const MOMENTUM: f64 = 0.1;

/// What batch norms add to a variance: below it, a channel is constant.
const EPSILON: f64 = 1e-5;

/// By one forward and backward pass of a batch of training images, behind a fitted head.
pub fn shift<D: Dataset + Clone + 'static>(backbone: &Backbone, data: &D, seed: u64) -> Result<Shift, Failure> {
    let phase = Phase::new(1, Optimizer::sgd(1e-3)).batch_norm(BatchNormMode::Train);
    let plan = Plan::new(vec![phase]).head_start(HeadStart::Probe).batch_size(IMAGES.min(data.len()));
    let mut session = FineTuner::new(backbone.clone()).plan(plan).seed(seed).session(data)?;
    session.fit_head()?;
    let before = session.tensors()?;
    if !session.next_phase()? || !session.next_epoch()? {
        return Err("no epoch".into());
    }
    let batch = session.next_batch()?.ok_or("no batch")?;
    let logits = session.forward(&batch)?;
    let gradients = session.gradients(&Loss::cross_entropy().forward(&logits, &batch.targets)?.backward()?)?;
    let divergence = divergence(&before, &session.tensors()?)?;

    let mut blocks = vec![(0.0, 0usize); backbone.blocks().len()];
    for (name, gradient) in &gradients {
        // Kernels of convolutions: biases start at 0 and have no relative gradient, and the head is none of the blocks.
        if gradient.rank() < 4 {
            continue;
        }
        let block = backbone.blocks().iter().position(|block| name.starts_with(&format!("{}.", block.name)));
        // The stem's are named by themselves.
        let (sum, count) = &mut blocks[block.unwrap_or(0)];
        (*sum, *count) = (*sum + norm(gradient)? / norm(&before[name])?.max(f64::MIN_POSITIVE), *count + 1);
    }
    let means: Vec<f64> = blocks.iter().map(|&(sum, count)| sum / count.max(1) as f64).collect();
    let all = means.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    Ok(Shift { divergence, early: means[..means.len() / 2].iter().sum::<f64>() / all })
}

/// Jeffreys' divergence of the statistics of a batch, by which the running ones have moved, from those before: the mean
/// over all channels.
fn divergence(before: &BTreeMap<String, Tensor>, after: &BTreeMap<String, Tensor>) -> candle_core::Result<f64> {
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (mut sum, mut channels) = (0.0, 0usize);
    for name in before.keys().filter(|name| name.ends_with("running_mean")) {
        let of_variance = name.replace("running_mean", "running_var");
        let (means, moved) = (values(&before[name])?, values(&after[name])?);
        let (variances, scaled) = (values(&before[&of_variance])?, values(&after[&of_variance])?);
        for channel in 0..means.len() {
            let old = variances[channel] + EPSILON;
            let new = (variances[channel] + (scaled[channel] - variances[channel]) / MOMENTUM).max(0.0) + EPSILON;
            let square = ((moved[channel] - means[channel]) / MOMENTUM).powi(2);
            sum += f64::midpoint((new + square) / old, (old + square) / new) - 1.0;
            channels += 1;
        }
    }
    Ok(sum / channels.max(1) as f64)
}

fn norm(tensor: &Tensor) -> candle_core::Result<f64> {
    Ok(tensor.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
}
