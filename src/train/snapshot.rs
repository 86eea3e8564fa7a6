//! All tensors of backbone and head at one moment.

use crate::error::{Error, Result};
use crate::nn::checksum;
use candle_core::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// All tensors of backbone and head at one moment, by name. They are values: no variable shares their storage.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    /// Every tensor; in a snapshot read from a file, only those that are in `trained`.
    pub tensors: BTreeMap<String, Tensor>,
    /// The names of tensors that have learned or moved, so that they may differ from the run's initial weights.
    pub trained: BTreeSet<String>,
}

impl Snapshot {
    /// The tensors that have learned or moved.
    pub fn trained(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.tensors.iter().filter(|(name, _)| self.trained.contains(*name))
    }

    /// Checksums of the tensors that are still those of the initial weights.
    pub fn initial_sums(&self) -> Result<BTreeMap<String, u64>> {
        let initial = self.tensors.iter().filter(|(name, _)| !self.trained.contains(*name));
        initial.map(|(name, tensor)| Ok((name.clone(), checksum(tensor)?))).collect()
    }

    /// Adds the missing tensors from `present`, the tensors of a session. Those must be the initial ones still, with
    /// the checksums `sums`.
    ///
    /// # Errors
    /// If the session's tensors are others than those that the run began with.
    pub fn complete(&mut self, present: &Self, sums: &BTreeMap<String, u64>) -> Result<()> {
        let mut differing = Vec::new();
        for (name, tensor) in &present.tensors {
            if self.tensors.contains_key(name) {
                continue;
            }
            if sums.get(name) == Some(&checksum(tensor)?) {
                self.tensors.insert(name.clone(), tensor.clone());
            } else {
                differing.push(name.as_str());
            }
        }
        let unknown = self.tensors.keys().filter(|name| !present.tensors.contains_key(*name));
        differing.extend(unknown.map(String::as_str));
        if differing.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "its run began with other weights: {} differ, {} first; start the session from the same backbone, and \
             resume before it trains",
            differing.len(),
            differing[0]
        );
        Err(Error::invalid("run state", problem))
    }
}
