//! From one phase of the plan to the next.

use super::super::features::Maker;
#[allow(clippy::wildcard_imports)] // one type in three files
use super::*;
use crate::fingerprint::Fingerprint;
use crate::nn::checksum;

/// What features are kept for.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    Training(&'a Augment),
    Validation,
}

impl Session {
    pub(super) fn enter_phase(&mut self) -> Result<bool> {
        let Some(phase) = self.setup.plan.phases.get(self.next_phase).cloned() else { return Ok(false) };
        let index = self.next_phase;
        let inner = self.setup.backbone.inner.clone();
        let blocks = &inner.network.blocks;
        let heads = self.setup.head.names(inner.arch, self.labels.len());
        let frozen = phase.freeze.resolve(blocks, &self.declared, &heads)?;
        assign(&mut self.slots, &self.declared, &frozen, phase.batch_norm)?;
        let network = Arc::new(Network::build(inner.arch, inner.naming, inner.spec.channels, &self.slots)?);
        let groups = groups(&self.slots, &self.declared, blocks, &phase);
        self.report.parameters = count(&self.slots, &self.declared, blocks);
        let phases = self.setup.plan.phases.len();
        let event = Event::Phase { phase: index + 1, phases, frozen_blocks: frozen.prefix };
        emit(&mut self.setup.listener, &event);
        let augment = if phase.augment { self.setup.plan.augment.clone() } else { Augment::none() };
        self.loader = self.loader.clone().transform(Transform::train(&inner.spec, &augment)?);
        let cache =
            self.compute_cache(&self.dataset.clone(), &network, (index, frozen.prefix), Purpose::Training(&augment))?;
        if let Some(cache) = &cache {
            self.report.cached_mb = self.report.cached_mb.max(cache.bytes() as f64 / 1e6);
        }
        let per_epoch = batch_count(self.dataset.len(), self.setup.plan.batch_size);
        let audit = Audit::begin(index + 1, &self.slots, self.setup.audit)?;
        self.audit_pending = self.setup.audit;
        let (all_batches, frozen_blocks) = (per_epoch.saturating_mul(phase.epochs), frozen.prefix);
        self.current = Some(Current {
            index,
            phase,
            network,
            frozen_blocks,
            groups,
            cache,
            audit,
            epoch: 0,
            batches: 0,
            all_batches,
            steps: 0,
            lowest: None,
            since_lowest: 0,
            running: None,
        });
        self.next_phase += 1;
        Ok(true)
    }

    pub(super) fn leave_phase(&mut self) -> Result<()> {
        if let Some(mut current) = self.current.take()
            && self.setup.audit
            && current.steps > 0
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
        purpose: Purpose<'_>,
    ) -> Result<Option<KeptFeatures>> {
        let views = match (purpose, self.setup.plan.views) {
            (Purpose::Training(augment), Some(views)) if augment.is_random() => {
                let print = Fingerprint::new("augment").number(self.setup.seed).text(&format!("{augment:?}"));
                (views, Some(print.finish()))
            }
            (Purpose::Training(augment), None) if augment.is_random() => {
                self.setup.cache.forget_others(None);
                return Ok(None);
            }
            _ => (1, None),
        };
        if frozen_blocks == 0 || self.setup.cache.is_off() {
            self.setup.cache.forget_others(None);
            return Ok(None);
        }
        let begun = Instant::now();
        let made = self.made(frozen_blocks)?;
        self.setup.cache.forget_others(Some(made));
        let loader = match (purpose, self.setup.workers) {
            (Purpose::Training(_), _) => self.loader.clone(),
            (Purpose::Validation, workers) => {
                let loader = Loader::new(dataset, Transform::eval(&self.setup.backbone.inner.spec)?);
                workers.into_iter().fold(loader, Loader::workers)
            }
        };
        let inner = &self.setup.backbone.inner;
        let (dtype, device) = (inner.dtype, &inner.device);
        let must_be_finite = matches!(purpose, Purpose::Training(_));
        let maker = Maker { loader: &loader, network, frozen_blocks, made, dtype, device, phase, must_be_finite };
        let listener = &mut self.setup.listener;
        let progress = |done, total| emit(listener, &Event::Features { done, total });
        let kept = KeptFeatures::gather(dataset, &maker, &self.setup.cache, views, progress)?;
        if kept.is_none() {
            tracing::warn!(
                cache = ?self.setup.cache,
                "the frozen part's features do not fit and are computed anew in each epoch"
            );
        }
        self.report.seconds.features += begun.elapsed().as_secs_f64();
        Ok(kept)
    }

    /// A number for all that features depend on besides the sample: the frozen blocks' weights, what an image becomes
    /// before them, and how features are stored.
    fn made(&self, frozen_blocks: usize) -> Result<u64> {
        let inner = &self.setup.backbone.inner;
        let stored = self.setup.cache.stored(inner.dtype);
        let place = format!(
            "{} {:?} {:?} {:?} {stored:?} {:?}",
            inner.arch,
            inner.naming,
            inner.spec,
            inner.dtype,
            inner.device.location()
        );
        let mut print = Fingerprint::new("features").text(&place).number(frozen_blocks as u64);
        for d in self.declared.iter().filter(|d| d.block < frozen_blocks) {
            if let Some(slot) = self.slots.get(&d.name) {
                print = print.text(&d.name).number(checksum(&slot.detached())?);
            }
        }
        Ok(print.finish())
    }
}
