//! Turns a session into its result.

use super::Session;
use crate::backbone::{Backbone, Profile};
use crate::error::{Error, Result};
use crate::ops::{is_finite, release_pool};
use crate::predict::Predictor;
use crate::report::peak_rss_mb;
use crate::train::fitted::Fitted;

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
        let names = self.model.head_names();
        let (head, tensors): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| names.contains(name));
        // A linear head is a classifier like any that comes with weights.
        let classifier = match &head[..] {
            [(_, bias), (_, weight)] => Some((weight.clone(), bias.clone())),
            _ => None,
        };
        let labels = self.model.labels.clone();
        let profile = Profile { origin: self.model.profile.origin.place(), ..self.model.profile };
        let backbone = Backbone::assemble(profile, tensors.into_iter().collect(), classifier, Some(labels.clone()))?;
        let report = self.report.saved_form()?;
        let predictor = Predictor::assemble(backbone, self.model.head, head, labels, Some(report))?;
        drop(self.learners);
        release_pool();
        Ok(Fitted { predictor, report: self.report })
    }
}
