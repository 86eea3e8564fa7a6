//! A phase in progress: its network, its cached features and its position.

use super::audit::Audit;
use super::position::{EpochState, PhaseState, Stop};
use super::progress::Progress;
use super::sampler::Sampler;
use crate::backbone::Network;
use crate::data::{Augment, Batch, Batches, Loader, mix};
use crate::error::{Error, Result};
use crate::features::FeatureSet;
use crate::optim::Optimizer;
use crate::plan::Phase;
use candle_core::{Device, Tensor};
use tracing::Span;

/// A phase in progress.
pub(super) struct RunningPhase {
    pub phase: Phase,
    pub network: Network,
    pub frozen_blocks: usize,
    /// The cached features of the training data.
    pub features: Option<FeatureSet>,
    /// The fingerprint of the cached features' origin.
    pub made_by: Option<u64>,
    /// Makes batches of images if no features are cached.
    pub loader: Loader,
    /// The augmentation of this phase.
    pub augment: Augment,
    pub audit: Audit,
    /// Batches that the schedule spans: those of the whole phase.
    pub all_batches: usize,
    /// Batches of one epoch.
    pub per_epoch: usize,
    /// Where the phase ends, if not with its epochs.
    pub stop: Option<Stop>,
    /// The head's rate in a search of the rate, instead of the schedule's.
    pub searched: Option<f64>,
    pub state: PhaseState,
    pub epoch: Option<RunningEpoch>,
    /// The phase in traces: entered where it begins, and by the loop over its epochs.
    pub span: Span,
}

/// An epoch in progress.
pub(super) struct RunningEpoch {
    pub sampler: Sampler,
    /// The loader's batches, if no features are cached.
    batches: Option<Batches>,
    pub progress: Progress,
}

impl RunningPhase {
    /// The factor of the schedule on the learning rate, for the batch handed out last.
    pub fn factor(&self) -> f64 {
        if let Some(rate) = self.searched {
            return rate / self.phase.optimizer.lr;
        }
        let step = self.state.batches.saturating_sub(1);
        let epoch = step / self.stop.as_ref().map_or(1, |stop| stop.per_epoch.max(1));
        let replayed = self.stop.as_ref().and_then(|stop| stop.scales.get(epoch).or(stop.scales.last()));
        self.phase.schedule.factor(step, self.all_batches) * replayed.copied().unwrap_or(self.state.plateau.scale)
    }

    /// The optimizer with the momentum that the schedule gives it, for the batch handed out last.
    pub fn optimizer(&self) -> Optimizer {
        let optimizer = self.phase.optimizer;
        match self.phase.schedule.momentum(self.state.batches.saturating_sub(1), self.all_batches) {
            Some(moved) => optimizer.momentum(moved),
            None => optimizer,
        }
    }

    /// The head's learning rate for the batch handed out last, after the schedule.
    pub fn lr(&self) -> f64 {
        self.phase.optimizer.lr * self.factor()
    }

    /// Steps of an epoch, each of so many batches.
    pub fn steps_per_epoch(&self, grad_accum: usize) -> usize {
        self.per_epoch.div_ceil(grad_accum.max(1))
    }

    /// Whether the phase has handed out all batches that it may, before the end of its epochs.
    pub fn is_stopped(&self) -> bool {
        self.stop.as_ref().is_some_and(|stop| self.state.batches >= stop.made)
    }

    /// Begins an epoch with the order of `sampler`; `view` is the number of its augmentation, of `views` fixed ones if there are any.
    pub fn begin(
        &mut self,
        sampler: Sampler,
        (view, views): (usize, Option<usize>),
        progress: Progress,
        device: &Device,
    ) -> Result<()> {
        let batches = match &self.features {
            Some(_) => None,
            None => {
                let of_repeat = |&repeat: &u32| match views {
                    Some(views) => ((view + repeat as usize) % views) as u64,
                    // Views are counted by epochs, of which there are fewer.
                    None => view as u64 + (u64::from(repeat) << 32),
                };
                let each: Vec<u64> = sampler.rest_repeats().iter().map(of_repeat).collect();
                Some(self.loader.batches_of(sampler.rest().to_vec(), &each, view as u64, device)?)
            }
        };
        self.epoch = Some(RunningEpoch { sampler, batches, progress });
        Ok(())
    }

    /// The next batch of the epoch in progress; `epoch` is its number in the run, from 0.
    pub fn next_batch(&mut self, epoch: usize) -> Result<Option<Batch>> {
        let stopped = self.is_stopped();
        let Some(running) = &mut self.epoch else {
            return Err(Error::invalid("session", "no epoch has begun; call next_epoch first"));
        };
        if running.sampler.is_done() || stopped {
            return Ok(None);
        }
        let taken = running.sampler.taken();
        let batch = match (&self.features, &mut running.batches) {
            (Some(features), _) => {
                let repeat =
                    |place: usize| running.sampler.rest_repeats().get(place).map_or(0, |&repeat| repeat as usize);
                features.batch(running.sampler.upcoming(), |place| epoch + repeat(place))?
            }
            (None, Some(batches)) => batches.next().ok_or_else(|| Error::invalid("loader", "ended early"))??,
            (None, None) => return Ok(None),
        };
        let mixed = |batch| {
            let mut stream = self.loader.seed_of().stream("mix", &[epoch as u64, taken as u64]);
            mix(batch, &self.augment, self.loader.classes(), &mut stream)
        };
        let batch = if self.augment.mixes() { mixed(batch)? } else { batch };
        running.sampler.advance();
        running.progress.hand_out(batch.len());
        self.state.batches += 1;
        Ok(Some(batch))
    }

    /// Features (N, feature_dim) of a batch, with a graph.
    pub fn forward(&self, batch: &Batch, dtype: candle_core::DType) -> Result<Tensor> {
        match batch.features_of(self.made_by)? {
            Some(features) => self.network.suffix(features, self.frozen_blocks),
            None => self.network.features(&batch.images()?.to_dtype(dtype)?),
        }
    }

    /// The position in the epoch in progress.
    pub fn epoch_state(&self) -> Option<EpochState> {
        let epoch = self.epoch.as_ref()?;
        Some(EpochState { taken: epoch.sampler.taken(), progress: epoch.progress.paused() })
    }
}
