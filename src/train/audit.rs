//! Proof that what should learn learns, and that what should not does not change.

use crate::backbone::Network;
use crate::error::{Error, Result};
use crate::nn::checksum;
use crate::ops::Gradients;
use crate::params::{Slot, Slots};

/// The state of a phase's frozen tensors when it began.
pub(super) struct Audit {
    phase: usize,
    frozen: Vec<(String, u64)>,
    /// Checksums of the folded convolutions after the first forward.
    folded: Option<Vec<(String, u64)>>,
}

impl Audit {
    pub fn begin(phase: usize, slots: &Slots) -> Result<Self> {
        Ok(Self { phase, frozen: sums(slots)?, folded: None })
    }

    /// After the first backward pass: every learning parameter was reached by a finite gradient. Returns those whose
    /// gradient is exactly zero.
    pub fn gradients(&self, slots: &Slots, gradients: &Gradients) -> Result<Vec<String>> {
        let (mut unreached, mut not_finite, mut zero) = (vec![], vec![], vec![]);
        for (name, slot) in slots {
            let Slot::Param(var) = slot else { continue };
            match gradients.get(&var.id()) {
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

    /// Every frozen tensor and its folded copy hold the bytes they held.
    pub fn frozen(&mut self, slots: &Slots, network: &Network) -> Result<()> {
        let mut changed = differing(&self.frozen, &sums(slots)?);
        let folded = network.checksums()?;
        match &self.folded {
            Some(before) => changed.extend(differing(before, &folded)),
            None => self.folded = Some(folded),
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::Audit { phase: self.phase, unreached: vec![], not_finite: vec![], changed })
    }
}

fn sums(slots: &Slots) -> Result<Vec<(String, u64)>> {
    let frozen = slots.iter().filter(|(_, slot)| matches!(slot, Slot::Frozen(_)));
    frozen.map(|(name, slot)| Ok((name.clone(), checksum(slot.tensor())?))).collect()
}

/// The names whose sums differ. A sum of 0 stands for a copy that was not made yet.
fn differing(before: &[(String, u64)], after: &[(String, u64)]) -> Vec<String> {
    let pairs = before.iter().zip(after);
    pairs.filter(|((_, a), (_, b))| a != b && *a != 0).map(|((name, _), _)| name.clone()).collect()
}
