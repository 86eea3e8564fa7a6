//! Moves from one phase of the plan to the next, and caches its features.

use super::Session;
use crate::data::{Augment, Dataset, Loader, Transform, batch_count};
use crate::error::Result;
use crate::features::{Cut, FeatureExtractor, FeatureSet};
use crate::fingerprint::Fingerprint;
use crate::train::audit::Audit;
use crate::train::event::Event;
use crate::train::phase::RunningPhase;
use crate::train::position::PhaseState;
use std::sync::Arc;
use std::time::Instant;
use tracing::{Span, info_span};

/// The purpose of cached features.
enum Purpose {
    Training(Augment),
    Validation,
}

impl Session {
    /// Enters the next phase of the plan, after [`Session::fit_head`] before the first: freezes its frozen tensors, and
    /// computes and caches their features where that saves work. `false` when the plan is done. A phase in progress is
    /// ended first, as by [`Session::end_phase`].
    ///
    /// After [`Session::resume`] the first call continues the phase that the state was taken in.
    ///
    /// # Errors
    /// If a sample cannot be read, or the audit of the phase that ends fails.
    pub fn next_phase(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.continues.phase) && self.phase.is_some() {
            return Ok(true);
        }
        self.end_phase()?;
        self.fit_head()?;
        if self.counters.next_phase >= self.plan.phases.len() {
            return Ok(false);
        }
        let audit_pending = self.audit;
        self.enter(PhaseState { index: self.counters.next_phase, audit_pending, ..PhaseState::default() })?;
        self.counters.next_phase += 1;
        Ok(true)
    }

    /// Ends the current phase early; does nothing if there is none. An epoch in progress is ended without a
    /// validation.
    ///
    /// # Errors
    /// [`Error::Audit`](crate::Error::Audit) if something frozen has changed.
    pub fn end_phase(&mut self) -> Result<()> {
        self.close_epoch(None)?;
        self.leave_phase()
    }

    /// Enters a phase at the position `state`.
    pub(super) fn enter(&mut self, state: PhaseState) -> Result<()> {
        let phases = self.plan.phases.len();
        let phase = self.plan.phases[state.index].clone();
        let entered = self.model.enter(&phase)?;
        self.learners.enter(entered.parameters)?;
        self.report.parameters = entered.counts;
        let frozen_blocks = entered.frozen_blocks;
        self.listener.tell(&Event::Phase { phase: state.index + 1, phases, frozen_blocks });
        let span = info_span!("phase", phase = state.index + 1, phases, frozen_blocks);
        let _entered = span.clone().entered();
        let augment = if phase.augmented { self.plan.augment.clone() } else { Augment::none() };
        let transform = Transform::train(&self.model.profile.spec, &augment)?;
        let loader = Loader::new(&self.dataset, transform).batch_size(self.plan.batch_size).seed(self.seed);
        let loader = self.workers.into_iter().fold(loader, Loader::workers);
        let per_epoch = batch_count(self.dataset.len(), self.plan.batch_size);
        let stop = self.stops.as_ref().and_then(|stops| stops.get(state.index)).cloned();
        let all_batches = stop.as_ref().map_or(per_epoch.saturating_mul(phase.epochs), |stop| stop.scheduled);
        let audit = Audit::begin(state.index + 1, &self.model.slots, self.audit)?;
        let mut running = RunningPhase {
            phase,
            network: entered.network,
            frozen_blocks,
            features: None,
            made_by: None,
            loader,
            augment: augment.clone(),
            audit,
            all_batches,
            per_epoch,
            stop,
            searched: None,
            state,
            epoch: None,
            span,
        };
        running.features = self.cached(&self.dataset.clone(), &running, Purpose::Training(augment))?;
        if let Some(features) = &running.features {
            running.made_by = Some(features.made_by()?);
            self.report.cached_mb = self.report.cached_mb.max(features.bytes() as f64 / 1e6);
        }
        self.phase = Some(running);
        Ok(())
    }

    /// The span of the phase in progress.
    pub(in crate::train) fn phase_span(&self) -> Span {
        self.phase.as_ref().map_or_else(Span::none, |phase| phase.span.clone())
    }

    /// Leaves the phase in progress, after a last check of its frozen tensors.
    pub(super) fn leave_phase(&mut self) -> Result<()> {
        self.continues.phase = false;
        if let Some(mut phase) = self.phase.take()
            && self.audit
            && phase.state.steps > 0
        {
            phase.audit.frozen(&self.model.slots, &phase.network)?;
        }
        Ok(())
    }

    /// The validation data's features at the boundary of the phase in progress.
    pub(in crate::train) fn valid_features(&mut self, valid: &Arc<dyn Dataset>) -> Result<Option<FeatureSet>> {
        let Some(mut phase) = self.phase.take() else { return Ok(None) };
        let begun = Instant::now();
        let features = self.cached(valid, &phase, Purpose::Validation);
        if let Some(epoch) = &mut phase.epoch {
            epoch.progress.exclude(begun.elapsed());
        }
        self.phase = Some(phase);
        features
    }

    /// The features of the phase's frozen blocks for all samples, if they can be cached and that saves work.
    fn cached(
        &mut self,
        dataset: &Arc<dyn Dataset>,
        phase: &RunningPhase,
        purpose: Purpose,
    ) -> Result<Option<FeatureSet>> {
        let views = match (&purpose, self.plan.views) {
            (Purpose::Training(augment), views) if augment.is_random() => views.filter(|_| !augment.mixes()),
            _ => Some(1),
        };
        let (Some(views), false) = (views, phase.frozen_blocks == 0 || self.cache.is_off()) else {
            self.cache.forget_others(None);
            return Ok(None);
        };
        let begun = Instant::now();
        let mut extractor = FeatureExtractor::over(&phase.network, &self.model.profile, self.model.weights())?;
        if let Some(workers) = self.workers {
            extractor = extractor.workers(workers);
        }
        let extractor = match &purpose {
            Purpose::Validation => extractor.must_be_finite(false),
            Purpose::Training(augment) => {
                let transform = Transform::train(&self.model.profile.spec, augment)?;
                let random = augment
                    .is_random()
                    .then(|| Fingerprint::new("augment").number(self.seed).text(&format!("{augment:?}")).finish());
                extractor.transform(transform, self.seed, random)
            }
        };
        let cut = Cut::Boundary(phase.frozen_blocks);
        self.cache.forget_others(Some(extractor.made_by(cut, &self.cache)?));
        let all: Vec<usize> = (0..dataset.len()).collect();
        let listener = &self.listener;
        let progress = |done, total| listener.tell(&Event::Features { done, total });
        let features = FeatureSet::gather_with(dataset, &all, views, &extractor, &[cut], &self.cache, progress)?;
        if features.is_none() {
            tracing::warn!(
                cache = ?self.cache,
                "the features of the frozen blocks do not fit the cache and are computed again in each epoch"
            );
        }
        self.report.seconds.features += begun.elapsed().as_secs_f64();
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Arch, Backbone, BatchNormMode, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    use candle_core::{DType, Device, Tensor};
    use std::sync::Arc;

    #[test]
    fn the_backbones_weights_are_not_kept_beside_those_that_learn() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        let given = Arc::downgrade(&backbone.inner);
        let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let data = TensorDataset::new(images, vec![0, 1], vec!["a".into(), "b".into()]).unwrap();
        let phase = Phase::new(1, Optimizer::sgd(0.1)).batch_norm(BatchNormMode::Train);
        let session = FineTuner::new(backbone).plan(Plan::new(vec![phase])).session(&data).unwrap();
        assert!(given.upgrade().is_none());
        drop(session);
    }
}
