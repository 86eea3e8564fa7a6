//! The weights that a penalty pulls back to (L2-SP, Li et al. 2018, arXiv 1802.01483).

use super::learner::Learners;
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::nn::checksum;
use crate::ops::Gradients;
use candle_core::Tensor;
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// The backbone's weights as the run began.
pub(super) struct Anchors {
    tensors: BTreeMap<String, Tensor>,
    /// Found out when a state asks for it.
    fingerprint: OnceCell<u64>,
}

impl Anchors {
    pub fn new(tensors: &BTreeMap<String, Tensor>) -> Self {
        Self { tensors: tensors.clone(), fingerprint: OnceCell::new() }
    }

    /// Adds the gradient of the penalty, `strength / 2` times the squared distance.
    pub fn pull(&self, mut gradients: Gradients, learners: &Learners, strength: f64) -> Result<Gradients> {
        for learner in learners.iter() {
            if let Some(start) = self.tensors.get(&learner.name)
                && let Some(gradient) = gradients.remove(&learner.name)
            {
                let pulled = gradient.pulled(learner.variable.as_tensor(), start, strength)?;
                gradients.insert(learner.name.clone(), pulled);
            }
        }
        Ok(gradients)
    }

    /// Of all names and values.
    pub fn fingerprint(&self) -> Result<u64> {
        if let Some(&known) = self.fingerprint.get() {
            return Ok(known);
        }
        let begun = Fingerprint::new("anchors");
        let print = self.tensors.iter().try_fold(begun, |print, (name, tensor)| -> Result<Fingerprint> {
            Ok(print.text(name).number(checksum(tensor)?))
        })?;
        Ok(*self.fingerprint.get_or_init(|| print.finish()))
    }
}
