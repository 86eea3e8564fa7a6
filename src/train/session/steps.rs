//! An epoch's beginning, and one step of its optimizer.

#[allow(clippy::wildcard_imports)] // one type in several files
use super::*;

/// One step of every learning parameter; the norm of the gradients before clipping.
pub(super) fn step(
    optimizer: &mut OptimizerState,
    slots: &Slots,
    gradients: &Gradients,
    current: &Current,
    clip: Option<f64>,
) -> Result<f64> {
    let learning: Vec<_> = slots
        .iter()
        .filter_map(|(name, slot)| match slot {
            Slot::Param(var) => Some((name, var, gradients.get(name)?)),
            _ => None,
        })
        .collect();
    let norm = global_norm(learning.iter().map(|(.., g)| *g))?;
    if !norm.is_finite() {
        return Err(current.audit.not_finite(&learning)?);
    }
    let scale = clip.filter(|&most| norm > most).map_or(1.0, |most| most / norm);
    let factor = current.factor();
    for (name, var, gradient) in learning {
        let Some(&group) = current.groups.get(name) else { continue };
        optimizer.step(&current.phase.optimizer, (name, var), gradient, group, factor, scale)?;
    }
    Ok(norm)
}

/// A new order of the samples, and the loader's threads unless features are kept.
pub(super) fn start_epoch(
    loader: &Loader,
    current: &Current,
    setup: &Setup,
    samples: usize,
    number: usize,
) -> Result<Epoch> {
    let mut order: Vec<usize> = (0..samples).collect();
    order.shuffle(&mut Seed(setup.seed).stream("shuffle", &[number as u64]));
    let batches = match &current.cache {
        Some(_) => None,
        None => {
            let view = setup.plan.views.map_or(number, |views| number % views.max(1));
            Some(loader.batches(order.clone(), view as u64, &setup.backbone.inner.device)?)
        }
    };
    Ok(Epoch { order, taken: 0, batches, progress: Progress::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Backbone, BatchNormMode, FineTuner, Optimizer, TensorDataset};

    #[test]
    fn the_weights_that_came_are_not_kept_beside_those_that_learn() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        let given = Arc::downgrade(&backbone.inner);
        let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let data = TensorDataset::new(images, vec![0, 1], vec!["a".into(), "b".into()]).unwrap();
        let phase = Phase::new(1, Optimizer::sgd(0.1)).batch_norm(BatchNormMode::Train);
        let session = FineTuner::new(backbone).plan(Plan::new(vec![phase])).session(&data).unwrap();
        assert!(given.upgrade().is_none());
        drop(session);
    }
}
