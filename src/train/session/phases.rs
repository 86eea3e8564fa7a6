//! From one phase of the plan to the next.

#[allow(clippy::wildcard_imports)] // one type in three files
use super::*;

/// What features are kept for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Training { varied: bool },
    Validation,
}

impl Session {
    pub(super) fn enter_phase(&mut self) -> Result<bool> {
        let Some(phase) = self.setup.plan.phases.get(self.next_phase).cloned() else { return Ok(false) };
        let index = self.next_phase;
        let inner = self.setup.backbone.inner.clone();
        let blocks = &inner.network.blocks;
        let frozen = phase.freeze.resolve(blocks, &self.declared, inner.arch.classifier())?;
        assign(&mut self.slots, &self.declared, &frozen, phase.batch_norm)?;
        let network = Arc::new(Network::build(inner.arch, inner.layout, inner.spec.channels, &self.slots)?);
        let groups = groups(&self.slots, &self.declared, blocks, &phase);
        self.report.parameters = count(&self.slots, &self.declared, blocks);
        let phases = self.setup.plan.phases.len();
        let event = Event::Phase { phase: index + 1, phases, frozen_blocks: frozen.prefix };
        emit(&mut self.setup.listener, &event);
        let augment = if phase.augment { self.setup.plan.augment.clone() } else { Augment::none() };
        self.loader = self.loader.clone().transform(Transform::train(&inner.spec, &augment)?);
        let cache = self.compute_cache(
            &self.dataset.clone(),
            &network,
            (index, frozen.prefix),
            Purpose::Training { varied: augment.is_random() },
        )?;
        if let Some(cache) = &cache {
            self.report.cached_mb = self.report.cached_mb.max(cache.bytes as f64 / 1e6);
        }
        let per_epoch = batch_count(self.dataset.len(), self.setup.plan.batch_size);
        let audit = Audit::begin(index + 1, &self.slots, self.setup.audit)?;
        self.audit_pending = self.setup.audit;
        let (steps, frozen_blocks) = (per_epoch.saturating_mul(phase.epochs), frozen.prefix);
        self.current = Some(Current {
            index,
            phase,
            network,
            frozen_blocks,
            groups,
            cache,
            audit,
            epoch: 0,
            step: 0,
            steps,
            running: None,
        });
        self.next_phase += 1;
        Ok(true)
    }

    pub(super) fn leave_phase(&mut self) -> Result<()> {
        if let Some(mut current) = self.current.take()
            && self.setup.audit
            && current.step > 0
        {
            current.audit.frozen(&self.slots, &current.network)?;
        }
        Ok(())
    }

    /// The features of the frozen blocks for all samples, where that is possible and worth it.
    pub(super) fn compute_cache(
        &mut self,
        dataset: &Arc<dyn Dataset>,
        network: &Network,
        (phase, frozen_blocks): (usize, usize),
        purpose: Purpose,
    ) -> Result<Option<FeatureCache>> {
        let views = match (purpose, self.setup.plan.views) {
            (Purpose::Training { varied: true }, Some(views)) => views,
            (Purpose::Training { varied: true }, None) => return Ok(None),
            _ => 1,
        };
        // What training keeps is not there for validation.
        let taken = self.current.as_ref().and_then(|c| c.cache.as_ref()).map_or(0, FeatureCache::in_memory);
        let settings = self.setup.cache.clone();
        if frozen_blocks == 0 || (settings.budget <= taken && settings.dir.is_none()) {
            return Ok(None);
        }
        let begun = Instant::now();
        let loader = match (purpose, self.setup.workers) {
            (Purpose::Training { .. }, _) => self.loader.clone(),
            (Purpose::Validation, workers) => {
                let loader = Loader::new(dataset, Transform::eval(&self.setup.backbone.inner.spec)?);
                workers.into_iter().fold(loader, Loader::workers)
            }
        };
        let device = self.setup.backbone.inner.device.clone();
        let listener = &mut self.setup.listener;
        let progress = |done, total| emit(listener, &Event::Features { done, total });
        let to = (&device, self.setup.backbone.inner.dtype);
        let cache = FeatureCache::compute(
            dataset,
            &loader,
            network,
            frozen_blocks,
            views,
            (&settings, taken),
            to,
            phase,
            progress,
        )?;
        if cache.is_none() {
            tracing::warn!(
                settings.budget,
                "the frozen part's features do not fit and are computed anew in each epoch"
            );
        }
        self.report.seconds.features += begun.elapsed().as_secs_f64();
        Ok(cache)
    }
}
