//! Turns a session into its result.

use super::Session;
use crate::backbone::{Backbone, Profile};
use crate::error::{Error, Result};
use crate::ops::{is_finite, release_pool};
use crate::predict::Predictor;
use crate::report::{Report, peak_rss_mb};
use crate::train::fitted::Fitted;
use candle_core::Tensor;
use std::collections::BTreeMap;

impl Session {
    /// Ends the session: the weights as they are become a predictor, those of the last step or, after
    /// [`Session::restore_best`], those of the best epoch. [`Report::best_epoch`](crate::Report::best_epoch)
    /// names it.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the weights are not finite, since such a predictor could not predict anything.
    pub fn finish(mut self) -> Result<Fitted> {
        self.end_phase()?;
        self.report.seconds.total = self.seconds_before + self.started.elapsed().as_secs_f64();
        self.report.peak_rss_mb = peak_rss_mb();
        let (computed, reused) = self.counted_before;
        let features = &mut self.report.features;
        (features.computed, features.reused) = (self.cache.computed() - computed, self.cache.reused() - reused);
        let tensors = self.tensors()?;
        for (name, tensor) in &tensors {
            if !is_finite(tensor)? {
                return Err(Error::NotFinite { what: format!("the trained weights {name}") });
            }
        }
        let predictor = self.predictor_of(tensors, &self.report)?;
        drop(self.learners);
        release_pool();
        Ok(Fitted { predictor, report: self.report })
    }

    /// A predictor of these tensors.
    fn predictor_of(&self, tensors: BTreeMap<String, Tensor>, report: &Report) -> Result<Predictor> {
        let names = self.model.head_names();
        let (head, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| names.contains(name));
        // A linear head is a classifier like any that comes with weights.
        let classifier = match &head[..] {
            [(_, bias), (_, weight)] => Some((weight.clone(), bias.clone())),
            _ => None,
        };
        let labels = self.model.labels.clone();
        let profile = Profile { origin: self.model.profile.origin.place(), ..self.model.profile.clone() };
        let backbone = Backbone::assemble(profile, tensors.into_iter().collect(), classifier, Some(labels.clone()))?;
        let predictor = Predictor::assemble(backbone, self.model.head, head, labels, Some(report.saved_form()?))?;
        Ok(predictor.for_task(self.model.task, report.thresholds.clone().unwrap_or_default()))
    }

    /// The predictor of the best epoch so far, if there is one.
    pub(in crate::train) fn best_predictor(&self) -> Result<Option<Predictor>> {
        let Some(best) = self.best.winner() else { return Ok(None) };
        let mut report = self.report.clone();
        (report.best_epoch, report.averaged) = (Some(best.number), best.averaged);
        report.thresholds = best.evaluation.best_thresholds();
        (report.valid_top1, report.valid) = (Some(best.evaluation.top1()), Some(best.evaluation.summary()));
        self.predictor_of(best.weights.tensors.clone(), &report).map(Some)
    }

    /// The best epoch so far: its number, and whether its weights are the averages.
    pub(in crate::train) fn best_epoch(&self) -> Option<(usize, bool)> {
        self.best.winner().map(|best| (best.number, best.averaged))
    }
}
