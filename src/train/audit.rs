//! Proof that what should learn learns, and that what should not does not change.

use crate::backbone::Network;
use crate::error::{Error, Result};
use crate::nn::checksum;
use crate::ops::{Gradient, Gradients};
use crate::params::{Slot, Slots};
use candle_core::Var;
use std::collections::BTreeMap;

/// The state of a phase's frozen tensors when it began.
pub(super) struct Audit {
    phase: usize,
    frozen: Sums,
    /// Checksums of the folded convolutions before the first step.
    folded: Option<Sums>,
}

/// Checksums by name.
type Sums = BTreeMap<String, u64>;

impl Audit {
    /// `wanted`: whether what is frozen will be compared.
    pub fn begin(phase: usize, slots: &Slots, wanted: bool) -> Result<Self> {
        let frozen = if wanted { sums(slots)? } else { Sums::new() };
        Ok(Self { phase, frozen, folded: None })
    }

    /// After the first backward pass: every learning parameter was reached by a finite gradient. Returns those whose
    /// gradient is exactly zero.
    pub fn gradients(&self, slots: &Slots, gradients: &Gradients) -> Result<Vec<String>> {
        let (mut unreached, mut not_finite, mut zero) = (vec![], vec![], vec![]);
        for (name, slot) in slots {
            let Slot::Param(_) = slot else { continue };
            match gradients.get(name) {
                None => unreached.push(name.clone()),
                Some(gradient) => match gradient.square_sum()? {
                    0.0 => zero.push(name.clone()),
                    sum if !sum.is_finite() => not_finite.push(name.clone()),
                    _ => {}
                },
            }
        }
        if unreached.is_empty() && not_finite.is_empty() {
            return Ok(zero);
        }
        Err(Error::Audit { phase: self.phase, unreached, not_finite, changed: vec![] })
    }

    /// What to say of gradients whose norm is no finite number.
    pub fn not_finite(&self, gradients: &[(&String, &Var, &Gradient)]) -> Result<Error> {
        let mut not_finite = vec![];
        for (name, _, gradient) in gradients {
            if !gradient.square_sum()?.is_finite() {
                not_finite.push((*name).clone());
            }
        }
        Ok(Error::Audit { phase: self.phase, unreached: vec![], not_finite, changed: vec![] })
    }

    /// Before the first step: takes note of the folded copies that the forward pass has made.
    pub fn copies(&mut self, network: &Network) -> Result<()> {
        self.folded = Some(network.checksums()?.into_iter().collect());
        Ok(())
    }

    /// Every frozen tensor and its folded copy hold the bytes they held.
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
        Err(Error::Audit { phase: self.phase, unreached: vec![], not_finite: vec![], changed })
    }
}

fn sums(slots: &Slots) -> Result<Sums> {
    let frozen = slots.iter().filter(|(_, slot)| matches!(slot, Slot::Frozen(_)));
    frozen.map(|(name, slot)| Ok((name.clone(), checksum(slot.tensor())?))).collect()
}

/// The names whose sums differ. Copies that were made since are no difference.
fn differing(before: &Sums, after: &Sums) -> Vec<String> {
    before.iter().filter(|(name, sum)| after.get(*name) != Some(sum)).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests;
