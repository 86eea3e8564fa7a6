//! From one phase of the plan to the next.

#[allow(clippy::wildcard_imports)] // one type in three files
use super::*;

impl Session {
    pub(super) fn enter_phase(&mut self) -> Result<bool> {
        let Some(phase) = self.setup.plan.phases.get(self.next_phase).cloned() else { return Ok(false) };
        let index = self.next_phase;
        let inner = self.setup.backbone.inner.clone();
        let blocks = &inner.network.blocks;
        let frozen = phase.freeze.resolve(blocks, &self.declared, inner.arch.classifier())?;
        assign(&mut self.slots, &self.declared, &frozen, phase.batch_norm)?;
        let network = Network::build(inner.arch, inner.layout, inner.spec.channels, &self.slots)?;
        let groups = groups(&self.slots, &self.declared, blocks, &phase);
        self.report.parameters = count(&self.slots, &self.declared, blocks);
        let phases = self.setup.plan.phases.len();
        let event = Event::Phase { phase: index + 1, phases, frozen_blocks: frozen.prefix };
        emit(&mut self.setup.listener, &event);
        let cache = self.compute_cache(&self.dataset.clone(), &network, frozen.prefix, true)?;
        if let Some(cache) = &cache {
            self.report.cached_mb = self.report.cached_mb.max(cache.bytes as f64 / 1e6);
        }
        let per_epoch = self.dataset.len().div_ceil(self.setup.plan.batch_size);
        let audit = Audit::begin(index + 1, &self.slots)?;
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
        frozen_blocks: usize,
        training: bool,
    ) -> Result<Option<FeatureCache>> {
        let plan = &self.setup.plan;
        let views = match (training && plan.augment.is_random(), plan.views) {
            (false, _) => 1,
            (true, Some(views)) => views,
            (true, None) => return Ok(None),
        };
        if frozen_blocks == 0 || self.setup.cache_budget == 0 {
            return Ok(None);
        }
        let begun = Instant::now();
        let loader = if training {
            self.loader.clone()
        } else {
            Loader::new(dataset, Transform::eval(&self.setup.backbone.inner.spec)?)
        };
        let device = self.setup.backbone.inner.device.clone();
        let budget = self.setup.cache_budget;
        let listener = &mut self.setup.listener;
        let progress = |done, total| emit(listener, &Event::Features { done, total });
        let to = (&device, self.setup.backbone.inner.dtype);
        let cache = FeatureCache::compute(dataset, &loader, network, frozen_blocks, views, budget, to, progress)?;
        if cache.is_none() {
            tracing::warn!(budget, "the frozen part's features do not fit and are computed anew in each epoch");
        }
        self.report.seconds.features += begun.elapsed().as_secs_f64();
        Ok(cache)
    }
}
