//! The exponential moving average of the weights.

use crate::error::Result;
use crate::params::{Slot, Slots};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// The moving averages of all tensors that have been trained or updated, by name: parameters and running statistics.
#[derive(Debug, Clone, Default)]
pub(super) struct Averages {
    pub tensors: BTreeMap<String, Tensor>,
}

impl Averages {
    /// After step `step` of the run, from 1. A tensor that learns for the first time begins with its present value.
    pub fn update(&mut self, slots: &Slots, decay: f64, step: usize) -> Result<()> {
        let decay = warmed_up(decay, step);
        for (name, slot) in slots {
            let moves = matches!(slot, Slot::Param(_) | Slot::Buffer(_));
            let now = slot.detached();
            match self.tensors.get_mut(name) {
                Some(average) => *average = (average.affine(decay, 0.0)? + now.affine(1.0 - decay, 0.0)?)?,
                None if moves => {
                    self.tensors.insert(name.clone(), now.copy()?);
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The slots with the averages in place of what they average, all of it frozen.
    pub fn over(&self, slots: &Slots) -> Slots {
        let of = |(name, slot): (&String, &Slot)| {
            let tensor = self.tensors.get(name).cloned().unwrap_or_else(|| slot.detached());
            (name.clone(), Slot::Frozen(tensor))
        };
        slots.iter().map(of).collect()
    }
}

/// The decay at a step: early on the average would otherwise consist of the initial weights (as in TensorFlow's
/// `ExponentialMovingAverage` with `num_updates`, and in timm's `ModelEmaV3` with warmup).
fn warmed_up(decay: f64, step: usize) -> f64 {
    let step = step as f64;
    decay.min((1.0 + step) / (10.0 + step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn averages_follow_their_formula() {
        let var = Var::new(&[1f64, 10.0], &Device::Cpu).unwrap();
        let frozen = Tensor::new(&[5f64], &Device::Cpu).unwrap();
        let mut slots = Slots::new();
        slots.insert("w".into(), Slot::Param(var.clone()));
        slots.insert("f".into(), Slot::Frozen(frozen));
        let mut averages = Averages::default();
        let values = |averages: &Averages| averages.tensors["w"].to_vec1::<f64>().unwrap();
        averages.update(&slots, 0.5, 1).unwrap();
        assert_eq!(values(&averages), [1.0, 10.0], "it begins with the first value");
        var.set(&Tensor::new(&[4f64, 4.0], &Device::Cpu).unwrap()).unwrap();
        // Step 2: a decay of 3 / 12.
        averages.update(&slots, 0.5, 2).unwrap();
        assert_eq!(values(&averages), [0.25 + 3.0, 2.5 + 3.0]);
        // Step 98: of 99 / 108, so the decay's own.
        averages.update(&slots, 0.5, 98).unwrap();
        assert_eq!(values(&averages), [3.625, 4.75]);
        assert_eq!(averages.tensors.keys().collect::<Vec<_>>(), ["w"]);
        // What is frozen now was trained before, and its average goes on to approach it.
        slots.insert("w".into(), Slot::Frozen(var.as_tensor().copy().unwrap()));
        averages.update(&slots, 0.5, 99).unwrap();
        assert_eq!(values(&averages), [3.8125, 4.375]);
        let over = averages.over(&slots);
        assert!(matches!(&over["w"], Slot::Frozen(t) if t.to_vec1::<f64>().unwrap() == [3.8125, 4.375]));
        assert!(matches!(&over["f"], Slot::Frozen(t) if t.to_vec1::<f64>().unwrap() == [5.0]));
    }
}
