//! The gradients of batches that wait for their step.

use crate::error::{Error, Result};
use crate::ops::{Gradient, Gradients};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// The sum of the gradients of some batches, each weighted by its samples, for a step of several batches.
#[derive(Default)]
pub(super) struct Pending {
    gradients: Gradients,
    pub sums: PendingSums,
}

/// What is summed beside the gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct PendingSums {
    pub batches: usize,
    pub samples: usize,
    loss: f64,
}

impl Pending {
    /// Adds a batch with its mean loss and gradients.
    pub fn add(&mut self, gradients: Gradients, samples: usize, loss: f64) -> Result<()> {
        for (name, gradient) in gradients {
            let gradient = gradient.scaled(samples as f64)?;
            let sum = match self.gradients.remove(&name) {
                Some(sum) => sum.add(gradient)?,
                None => gradient,
            };
            self.gradients.insert(name, sum);
        }
        let PendingSums { batches, samples: all, loss: sum } = self.sums;
        self.sums = PendingSums { batches: batches + 1, samples: all + samples, loss: sum + loss * samples as f64 };
        Ok(())
    }

    /// The mean gradients and the mean loss over all samples; nothing waits afterwards.
    pub fn take(&mut self) -> Result<(Gradients, f64)> {
        let Self { gradients, sums } = std::mem::take(self);
        let share = 1.0 / sums.samples.max(1) as f64;
        let mean = |(name, gradient): (String, Gradient)| Ok((name, gradient.scaled(share)?));
        Ok((gradients.into_iter().map(mean).collect::<Result<_>>()?, sums.loss * share))
    }

    pub fn is_empty(&self) -> bool {
        self.sums.batches == 0
    }

    /// Copies of the sums; `like` gives the tensor of each name.
    pub fn state(&self, like: impl Fn(&str) -> Option<Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let copy = |(name, gradient): (&String, &Gradient)| {
            let tensor = like(name)?;
            Some(gradient.to_tensor(tensor.shape()).map(|copy| (name.clone(), copy)).map_err(Error::from))
        };
        self.gradients.iter().filter_map(copy).collect()
    }

    /// From the result of [`Pending::state`].
    pub fn restored(
        sums: PendingSums,
        tensors: &BTreeMap<String, Tensor>,
        like: impl Fn(&str) -> Option<Tensor>,
    ) -> Result<Self> {
        let mut gradients = Gradients::new();
        for (name, tensor) in tensors {
            let Some(own) = like(name).filter(|own| own.dims() == tensor.dims() && own.dtype() == tensor.dtype())
            else {
                return Err(Error::invalid("run state", format!("has a gradient of {name} that does not fit it")));
            };
            gradients.insert(name.clone(), Gradient::of_tensor(&tensor.to_device(own.device())?)?);
        }
        Ok(Self { gradients, sums })
    }
}
