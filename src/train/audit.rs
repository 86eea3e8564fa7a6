//! Checks that trainable parameters get gradients and frozen tensors do not change.

use super::learner::Learners;
use crate::backbone::Network;
use crate::error::{Error, Result};
use crate::nn::checksum;
use crate::ops::Gradients;
use crate::params::{Slot, Slots};
use std::collections::BTreeMap;

/// Checksums of a phase's frozen tensors, from when it began.
pub(super) struct Audit {
    phase: usize,
    frozen: Sums,
    /// Checksums of the folded convolutions before the first step.
    folded: Option<Sums>,
}

/// Checksums by name.
type Sums = BTreeMap<String, u64>;

impl Audit {
    /// `wanted`: whether frozen tensors are compared.
    pub fn begin(phase: usize, slots: &Slots, wanted: bool) -> Result<Self> {
        let frozen = if wanted { sums(slots)? } else { Sums::new() };
        Ok(Self { phase, frozen, folded: None })
    }

    /// After the first backward pass: every trainable parameter got a gradient. Returns those whose gradient is exactly
    /// zero.
    pub fn gradients(&self, learners: &Learners, gradients: &Gradients) -> Result<Vec<String>> {
        let (mut unreached, mut zero) = (vec![], vec![]);
        for learner in learners.iter() {
            let name = || learner.name.clone();
            match learner.gradient(gradients) {
                None => unreached.push(name()),
                Some(gradient) if gradient.square_sum()? == 0.0 => zero.push(name()),
                Some(_) => {}
            }
        }
        if unreached.is_empty() {
            return Ok(zero);
        }
        Err(Error::Audit { phase: self.phase, unreached, changed: vec![] })
    }

    /// Before the first step: notes the checksums of the folded copies that the forward pass has made.
    pub fn copies(&mut self, network: &Network) -> Result<()> {
        self.folded = Some(network.checksums()?.into_iter().collect());
        Ok(())
    }

    /// Checks that every frozen tensor and its folded copies still hold the same bytes.
    pub fn frozen(&mut self, slots: &Slots, network: &Network) -> Result<()> {
        let mut changed = differing(&self.frozen, &sums(slots)?);
        let folded: Sums = network.checksums()?.into_iter().collect();
        if let Some(before) = &self.folded {
            changed.extend(differing(before, &folded));
        }
        self.folded = Some(folded);
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::Audit { phase: self.phase, unreached: vec![], changed })
    }
}

fn sums(slots: &Slots) -> Result<Sums> {
    let frozen = slots.iter().filter(|(_, slot)| matches!(slot, Slot::Frozen(_)));
    frozen.map(|(name, slot)| Ok((name.clone(), checksum(slot.tensor())?))).collect()
}

/// The names whose sums differ. Copies that were added since do not count.
fn differing(before: &Sums, after: &Sums) -> Vec<String> {
    before.iter().filter(|(name, sum)| after.get(*name) != Some(sum)).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests;
