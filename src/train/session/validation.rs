//! Validation, from cached features where there are some.

use super::Session;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::features::FeatureSet;
use crate::inference::{BATCH, Inference};
use crate::metrics::{Evaluation, Scores};
use std::sync::Arc;
use std::time::Instant;

impl Session {
    /// Runs the network as it is over labelled data, frozen and in evaluation mode.
    ///
    /// Features of frozen blocks are cached as those of the training data are, if the samples can be told apart by
    /// [`Dataset::fingerprint`].
    ///
    /// # Errors
    /// If the data holds no samples, its classes are not those of the training data, in their order, it has lists of
    /// labels, or a sample cannot be read.
    pub fn evaluate<D: Dataset + Clone + 'static>(&mut self, data: &D) -> Result<Evaluation> {
        Inference::check(&self.model.labels, data)?;
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let known = !data.is_empty() && data.fingerprint(0).is_some();
        let features = if known { self.valid_features(&data)? } else { None };
        self.validate(&data, features.as_ref())
    }

    /// As [`Session::evaluate`], from cached features if there are any.
    pub(in crate::train) fn validate(
        &mut self,
        valid: &Arc<dyn Dataset>,
        features: Option<&FeatureSet>,
    ) -> Result<Evaluation> {
        let begun = Instant::now();
        let inference = self.model.inference()?;
        let evaluation = match (features, &self.phase) {
            (Some(features), Some(phase)) => {
                let mut scores = Scores::new(Inference::TASK);
                for places in features.in_order(BATCH) {
                    let batch = features.batch(&places, 0)?;
                    let Some(rows) = batch.features_of(Some(features.made_by()?))? else { continue };
                    let logits = inference.logits_from(rows, phase.frozen_blocks)?;
                    scores.add(&logits, &batch.targets)?;
                }
                scores.evaluation()
            }
            _ => inference.evaluate(valid, self.workers)?,
        };
        let took = begun.elapsed();
        self.report.seconds.valid += took.as_secs_f64();
        if let Some(epoch) = self.phase.as_mut().and_then(|phase| phase.epoch.as_mut()) {
            epoch.progress.exclude(took);
        }
        Ok(evaluation)
    }

    /// Whether the training has diverged after an epoch worth keeping; the report says so then.
    pub(in crate::train) fn survives(&mut self, error: &Error) -> bool {
        let diverged = match error {
            Error::Diverged { .. } | Error::NotFinite { .. } => true,
            Error::Audit { unreached, not_finite, changed, .. } => {
                unreached.is_empty() && changed.is_empty() && !not_finite.is_empty()
            }
            _ => false,
        };
        if !diverged || self.best.winner().is_none() {
            return false;
        }
        let stopped = format!("stopped in phase {}: {error}", self.phase().unwrap_or(self.counters.next_phase));
        tracing::warn!("{stopped}");
        self.report.stopped = Some(stopped);
        true
    }

    /// Notes how large the validation data is, and how many of its samples were skipped.
    pub(in crate::train) fn note_valid(&mut self, valid: &dyn Dataset) {
        self.report.samples.valid = Some(valid.len());
        self.report.skipped = self.dataset.skipped().zip(valid.skipped()).map(|(train, valid)| train + valid);
    }
}
