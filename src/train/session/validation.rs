//! Validation, from cached features where there are some.

use super::Session;
use super::resume::identity;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::features::{Cut, FeatureExtractor, FeatureSet};
use crate::inference::{BATCH, Inference};
use crate::metrics::{Evaluation, Task};
use crate::plan::Phase;
use std::sync::Arc;
use std::time::Instant;
use tracing::info_span;

impl Session {
    /// Runs the network as it is over labelled data, frozen and in evaluation mode. Lists of labels are counted at the
    /// thresholds with the highest F1 on this data ([`Evaluation::best_thresholds`]), since a predictor gets those of its
    /// validation.
    ///
    /// Features of frozen blocks are cached as those of the training data are, if the samples can be told apart by
    /// [`Dataset::fingerprint`].
    ///
    /// # Errors
    /// If the data holds no samples, its classes are not those of the training data, in their order, its targets are of
    /// another [`Task`], or a sample cannot be read.
    pub fn evaluate<D: Dataset + Clone + 'static>(&mut self, data: &D) -> Result<Evaluation> {
        Inference::check(&self.model.labels, data)?;
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let known = !data.is_empty() && data.fingerprint(0).is_some();
        let features = if known { self.valid_features(&data)? } else { None };
        self.validate(&data, features.as_ref())
    }

    /// Runs the restored weights over labelled data, between phases. Blocks that no phase has trained hold the weights
    /// that they had, and their features are cached.
    pub(in crate::train) fn evaluate_restored(&mut self, data: &Arc<dyn Dataset>) -> Result<Evaluation> {
        Inference::check(&self.model.labels, data)?;
        let _span = info_span!("validation", samples = data.len()).entered();
        let begun = Instant::now();
        let inference = self.model.inference()?;
        let heads = self.model.head_names();
        let trained = &self.plan.phases[..self.counters.next_phase];
        let prefix = |phase: &Phase| Ok(phase.freeze.resolve(self.model.blueprint(), &heads)?.prefix);
        let prefixes: Vec<usize> = trained.iter().map(prefix).collect::<Result<_>>()?;
        let untouched = prefixes.into_iter().min().unwrap_or(0);
        let mut features = None;
        if untouched > 0 && !self.cache.is_off() {
            let extractor = FeatureExtractor::over(inference.network(), &self.model.profile, self.model.weights())?
                .must_be_finite(false);
            let extractor = self.workers.into_iter().fold(extractor, FeatureExtractor::workers);
            let all: Vec<usize> = (0..data.len()).collect();
            features = FeatureSet::gather(data, &all, 1, &extractor, &[Cut::Boundary(untouched)], &self.cache)?;
            self.report.seconds.features += begun.elapsed().as_secs_f64();
        }
        let begun = Instant::now();
        let evaluation = match &features {
            Some(features) => from_features(&inference, features, untouched)?,
            None => inference.evaluate(data, self.workers)?,
        };
        self.report.seconds.valid += begun.elapsed().as_secs_f64();
        Ok(evaluation.at_best_thresholds())
    }

    /// As [`Session::evaluate`], from cached features if there are any.
    pub(in crate::train) fn validate(
        &mut self,
        valid: &Arc<dyn Dataset>,
        features: Option<&FeatureSet>,
    ) -> Result<Evaluation> {
        let _span = info_span!("validation", samples = valid.len()).entered();
        let begun = Instant::now();
        let inference = self.model.inference()?;
        let evaluation = match (features, &self.phase) {
            (Some(features), Some(phase)) => from_features(&inference, features, phase.frozen_blocks)?,
            _ => inference.evaluate(valid, self.workers)?,
        };
        let took = begun.elapsed();
        self.report.seconds.valid += took.as_secs_f64();
        if let Some(epoch) = self.phase.as_mut().and_then(|phase| phase.epoch.as_mut()) {
            epoch.progress.exclude(took);
        }
        Ok(evaluation.at_best_thresholds())
    }

    /// As [`Session::evaluate`], of the moving averages of the weights ([`Plan::ema`](crate::Plan::ema)); `None` if there are
    /// none yet.
    ///
    /// # Errors
    /// As [`Session::evaluate`].
    pub fn evaluate_averages<D: Dataset + Clone + 'static>(&mut self, data: &D) -> Result<Option<Evaluation>> {
        Inference::check(&self.model.labels, data)?;
        self.validate_averages(&(Arc::new(data.clone()) as Arc<dyn Dataset>), None)
    }

    /// The same, from cached features if there are any.
    pub(in crate::train) fn validate_averages(
        &mut self,
        valid: &Arc<dyn Dataset>,
        features: Option<&FeatureSet>,
    ) -> Result<Option<Evaluation>> {
        if self.averages.tensors.is_empty() {
            return Ok(None);
        }
        let begun = Instant::now();
        let slots = self.averages.over(&self.model.slots);
        let inference = self.model.inference_over(&slots)?;
        // Blocks that an earlier phase has trained are frozen now, but their averages still move.
        let moving =
            |blocks: usize| self.model.names_before(blocks).any(|name| self.averages.tensors.contains_key(name));
        let evaluation = match (features, &self.phase) {
            (Some(features), Some(phase)) if !moving(phase.frozen_blocks) => {
                from_features(&inference, features, phase.frozen_blocks)?
            }
            _ => inference.evaluate(valid, self.workers)?,
        };
        let took = begun.elapsed();
        self.report.seconds.valid += took.as_secs_f64();
        if let Some(epoch) = self.phase.as_mut().and_then(|phase| phase.epoch.as_mut()) {
            epoch.progress.exclude(took);
        }
        Ok(Some(evaluation.at_best_thresholds()))
    }

    /// Whether the training has diverged after an epoch worth keeping; the report says so then.
    pub(in crate::train) fn survives(&mut self, error: &Error) -> bool {
        let diverged = matches!(error, Error::Diverged(_) | Error::NotFinite { .. });
        if !diverged || self.best.winner().is_none() {
            return false;
        }
        let stopped = format!("stopped in phase {}: {error}", self.phase().unwrap_or(self.counters.next_phase));
        tracing::warn!("{stopped}");
        self.report.stopped = Some(stopped);
        true
    }

    /// Notes how large the validation data is, how many of its samples were skipped and, if it is to be `known` again,
    /// which they are.
    ///
    /// # Errors
    /// If the run was resumed from a state with other validation data, its targets are of another task, or a metric that
    /// is needed has no value for it.
    pub(in crate::train) fn note_valid(&mut self, valid: &dyn Dataset, known: bool) -> Result<()> {
        let (task, size) = (self.model.task, (valid.len(), self.model.labels.len()));
        if Task::of_data(valid)? != task {
            let of = |is_labels| if is_labels { "lists of labels" } else { "one class per sample" };
            let labels = task == Task::Labels;
            let problem = format!("has {}, and the training data {}; give both the same", of(!labels), of(labels));
            return Err(Error::invalid("validation data", problem));
        }
        self.report.metric.check("metric", task, size)?;
        if self.plan.watches() {
            self.plan.watch.check("plan: watch", task, size)?;
        }
        let identity = if known { identity(valid) } else { None };
        if identity.is_some() && self.valid_identity.is_some() && self.valid_identity != identity {
            let problem = "the saved run differs from this session in: validation data (files, labels or groups)";
            return Err(Error::invalid("run state", problem));
        }
        self.valid_identity = identity.or(self.valid_identity);
        self.report.samples.valid = Some(valid.len());
        self.report.skipped = self.dataset.skipped().zip(valid.skipped()).map(|(train, valid)| train + valid);
        Ok(())
    }
}

/// The evaluation of samples by the features that their first `blocks` blocks made.
fn from_features(inference: &Inference, features: &FeatureSet, blocks: usize) -> Result<Evaluation> {
    let mut scores = inference.scores();
    for places in features.in_order(BATCH) {
        let batch = features.batch(&places, |_| 0)?;
        let Some(rows) = batch.features_of(Some(features.made_by()?))? else { continue };
        scores.add(&inference.logits_from(rows, blocks)?, &batch.targets)?;
    }
    Ok(scores.evaluation())
}
