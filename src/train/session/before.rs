//! The state before the batches of the step in progress: what a step that failed can be repeated from.

use super::Session;
use crate::error::Result;
use crate::params::Slot;
use crate::train::pending::PendingSums;
use crate::train::position::{Counters, EpochState, PhaseState, Position};
use crate::train::run_state::RunState;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// What changes between the moment before a step's first batch is handed out and the refusal of the step: the position, the
/// gradients that wait, and the running statistics that the forward pass moves.
pub(in crate::train) struct Before {
    counters: Counters,
    phase: PhaseState,
    epoch: EpochState,
    buffers: BTreeMap<String, Tensor>,
    pending: (PendingSums, BTreeMap<String, Tensor>),
    /// The samples handed out since.
    samples: Vec<usize>,
}

impl Session {
    /// From now on, keeps what is needed to repeat a step.
    pub(in crate::train) fn keep_before(&mut self) {
        self.keeps_before = true;
    }

    /// Notes the moment before a batch is handed out, if it is the first one of a step.
    pub(super) fn note_before(&mut self) -> Result<()> {
        let Some(phase) = self.phase.as_ref().filter(|_| self.keeps_before) else { return Ok(()) };
        if self.before.is_some() && !self.pending.is_empty() {
            return Ok(());
        }
        let Some(epoch) = phase.epoch_state() else { return Ok(()) };
        let buffers = self.model.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Buffer(_)));
        let buffers = buffers.map(|(name, slot)| Ok((name.clone(), slot.detached().copy()?))).collect::<Result<_>>()?;
        let pending = self.pending_state()?;
        let (phase, samples) = (phase.state.clone(), vec![]);
        self.before = Some(Before { counters: self.counters, phase, epoch, buffers, pending, samples });
        Ok(())
    }

    /// Notes the samples of a batch that is handed out.
    pub(super) fn note_samples(&mut self, indices: &[usize]) {
        if let Some(before) = &mut self.before {
            before.samples.extend(indices);
        }
    }

    /// The state before the batches handed out last, if no step has been made with them, and their samples.
    pub(in crate::train) fn state_before(&self) -> Result<Option<(RunState, &[usize])>> {
        let Some(Before { counters, phase, epoch, buffers, pending, samples }) = &self.before else { return Ok(None) };
        let mut state = self.state()?;
        state.position = Position { counters: *counters, phase: Some(phase.clone()), epoch: Some(epoch.clone()) };
        state.model.tensors.extend(buffers.iter().map(|(name, tensor)| (name.clone(), tensor.clone())));
        state.pending = pending.clone();
        Ok(Some((state, samples)))
    }

    /// The names of samples of the training data.
    pub(in crate::train) fn sample_names(&self, indices: &[usize]) -> Vec<String> {
        indices.iter().map(|&i| self.dataset.info(i).to_string()).collect()
    }
}
