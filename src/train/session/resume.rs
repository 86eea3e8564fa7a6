//! Copies a session's state out, and restores it.

use super::{Continues, Session};
use crate::backbone::Profile;
use crate::data::{Dataset, Target};
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::ops::instruction_set;
use crate::params::Slot;
use crate::train::anchors::Anchors;
use crate::train::averages::Averages;
use crate::train::event::Event;
use crate::train::learner::Learners;
use crate::train::pending::{Pending, PendingSums};
use crate::train::phase::RunningPhase;
use crate::train::position::Position;
use crate::train::run_state::{RunState, Setting};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::time::Instant;

impl Session {
    /// A checkpoint of the run; may be taken between any two calls, also within an epoch. Everything that may change is
    /// copied.
    ///
    /// A batch that was handed out and not stepped yet counts as taken: step it first.
    ///
    /// # Errors
    /// If the device has no memory for a copy.
    pub fn state(&self) -> Result<RunState> {
        Ok(RunState {
            head: self.model.head,
            setting: self.setting()?,
            report: self.report.clone(),
            seconds: self.seconds_before + self.started.elapsed().as_secs_f64(),
            position: Position {
                counters: self.counters,
                phase: self.phase.as_ref().map(|phase| phase.state.clone()),
                epoch: self.phase.as_ref().and_then(RunningPhase::epoch_state),
            },
            model: self.model.snapshot()?,
            learners: self.learners.state()?,
            best: self.best.clone(),
            averages: self.averages.tensors.clone(),
            pending: self.pending_state()?,
            valid: self.valid_identity,
            instructions: instruction_set().to_string(),
            initial: BTreeMap::new(),
        })
    }

    /// The gradients that wait for their step, and their sums.
    pub(super) fn pending_state(&self) -> Result<(PendingSums, BTreeMap<String, Tensor>)> {
        let like = |name: &str| self.model.slots.get(name).map(Slot::detached);
        Ok((self.pending.sums, self.pending.state(like)?))
    }

    /// Bytes of a state, about: weights, moments, and the weights of the best epoch.
    pub(in crate::train) fn state_bytes(&self) -> usize {
        let size = self.model.profile.dtype.size_in_bytes();
        self.report.parameters.learning.saturating_mul(4 * size)
    }

    /// Notes the seconds that a checkpoint took.
    pub(in crate::train) fn note_checkpoint(&mut self, seconds: f64) {
        self.report.seconds.checkpoints += seconds;
    }

    /// Notes that the run was cancelled.
    pub(in crate::train) fn note_cancelled(&mut self) {
        let stopped = format!("cancelled after step {}", self.counters.steps);
        tracing::info!("{stopped}");
        self.report.stopped = Some(stopped);
    }

    fn setting(&self) -> Result<Setting> {
        let Profile { blueprint, naming, spec, dtype, .. } = &self.model.profile;
        Ok(Setting {
            structure: blueprint.structure(),
            naming: *naming,
            input: spec.clone(),
            dtypes: (format!("{dtype:?}"), format!("{:?}", self.cache.stored(*dtype))),
            data: *self.data_identity.get_or_init(|| identity(self.dataset.as_ref())),
            anchors: self.anchors.as_ref().map(Anchors::fingerprint).transpose()?,
        })
    }

    /// Optimizer steps made so far.
    pub(in crate::train) fn steps(&self) -> usize {
        self.counters.steps
    }

    /// Restores a state; the session continues from there to the same bytes as the original run. It must have the same
    /// network, plan, seed, head, metric, preparation of images, classes and training data; training data is compared by
    /// [`Dataset::fingerprint`](crate::Dataset::fingerprint), if the dataset has them. Cached features are looked up or
    /// computed again.
    ///
    /// Listeners are told [`Event::Resumed`](crate::Event::Resumed). The next [`Session::next_phase`] and
    /// [`Session::next_epoch`] continue the phase and the epoch that the state was taken in, so the usual loops resume in
    /// the middle:
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(4);
    /// # let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
    /// # session.next_phase()?;
    /// # session.next_epoch()?;
    /// # let batch = session.next_batch()?.unwrap();
    /// # session.step(&batch)?;
    /// let state = session.state()?; // after the first of two batches
    /// session.resume(&state)?;
    /// while session.next_phase()? {
    ///     while session.next_epoch()? {
    ///         while let Some(batch) = session.next_batch()? {
    ///             session.step(&batch)?; // the second batch
    ///         }
    ///     }
    /// }
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the state is that of another run; then the session is unchanged. After any other error it is unusable.
    pub fn resume(&mut self, state: &RunState) -> Result<()> {
        state.check(&self.report, self.model.head, &self.setting()?)?;
        if state.instructions != instruction_set() {
            let warning = format!(
                "the run was begun with the kernels for {} and goes on with those for {}, which round differently: it ends in \
                 other bytes than without the interruption",
                state.instructions,
                instruction_set()
            );
            tracing::warn!("{warning}");
            self.listener.tell(&Event::Warning(&warning));
        }
        let state = state.completed(&self.model.profile.device, || self.model.snapshot())?;
        (self.phase, self.continues, self.learners) = (None, Continues::default(), Learners::default());
        self.model.reset(&state.model)?;
        (self.counters, self.best, self.report) = (state.position.counters, state.best, state.report);
        self.valid_identity = state.valid;
        (self.started, self.seconds_before) = (Instant::now(), state.seconds);
        if let Some(mut phase) = state.position.phase {
            phase.audit_pending &= self.audit;
            self.enter(phase)?;
            self.continues.phase = true;
        }
        let like = |name: &str| self.model.slots.get(name).map(Slot::detached);
        self.learners.restore(&state.learners, like)?;
        self.averages = Averages { tensors: state.averages };
        (self.averages_valid, self.before) = (None, None);
        self.pending = Pending::restored(state.pending.0, &state.pending.1, like)?;
        if let Some(epoch) = state.position.epoch {
            self.begin_epoch(epoch.taken, epoch.progress.resumed())?;
            self.continues.epoch = true;
        }
        self.listener.tell(&Event::Resumed { step: self.counters.steps });
        Ok(())
    }
}

/// The samples of a dataset in their order with their targets and groups, if it identifies them all.
pub(super) fn identity(data: &dyn Dataset) -> Option<u64> {
    let prints: Option<Vec<u64>> = (0..data.len()).map(|i| data.fingerprint(i)).collect();
    let print = prints?.into_iter().fold(Fingerprint::new("samples"), Fingerprint::number);
    let of = |print: Fingerprint, i: usize| {
        let info = data.info(i);
        let (kind, values): (u64, Vec<u64>) = match info.target {
            Target::Class(class) => (0, vec![class.into()]),
            Target::Soft(p) => (1, p.into_iter().map(|p| p.to_bits().into()).collect()),
            Target::Labels(labels) => (2, labels.into_iter().map(u64::from).collect()),
        };
        let print = print.number(kind).number(values.len() as u64);
        let print = values.into_iter().fold(print, Fingerprint::number);
        // One more than the group, so that 0 is none.
        print.number(info.group.map_or(0, |group| u64::from(group) + 1))
    };
    Some((0..data.len()).fold(print, of).finish())
}

#[cfg(test)]
mod tests {
    use crate::train::waves::waves;
    use crate::{Backbone, Event, FineTuner, Optimizer, Phase, Plan};
    use candle_core::Device;
    use std::sync::{Arc, Mutex};

    #[test]
    fn another_instruction_set_is_told() {
        let backbone = Backbone::embedded(&Device::Cpu).unwrap();
        let plan = Plan::new(vec![Phase::new(1, Optimizer::sgd(0.01))]).batch_size(4);
        let told = Arc::new(Mutex::new(vec![]));
        let heard = Arc::clone(&told);
        let tuner = FineTuner::new(backbone).plan(plan).on_event(move |event| {
            if let Event::Warning(text) = event {
                heard.lock().unwrap().push((*text).to_string());
            }
        });
        let mut session = tuner.session(&waves(8, 2)).unwrap();
        let mut state = session.state().unwrap();
        session.resume(&state).unwrap();
        assert!(told.lock().unwrap().iter().all(|text| !text.contains("kernels")));
        state.instructions = "another".into();
        session.resume(&state).unwrap();
        let told = told.lock().unwrap();
        assert!(told.last().is_some_and(|text| text.contains("kernels for another")), "{told:?}");
    }
}
