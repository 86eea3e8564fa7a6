//! A session's end.

#[allow(clippy::wildcard_imports)] // one type in several files
use super::*;
use crate::ops::is_finite;

impl Session {
    /// Ends the session: the weights as they are become a predictor, those of the last step or, after
    /// [`Session::restore_best`], those of the best epoch. [`Report::best_epoch`] tells which.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the weights are not finite, since such a predictor could not say anything.
    pub fn finish(mut self) -> Result<Fitted> {
        self.close_epoch(None)?;
        if self.current.is_some() {
            self.leave_phase()?;
        }
        self.report.seconds.total = self.started.elapsed().as_secs_f64();
        self.report.peak_rss_mb = peak_rss_mb();
        let state = self.state()?;
        for (name, tensor) in &state {
            if !is_finite(tensor)? {
                return Err(Error::NotFinite { what: format!("the trained weights {name}") });
            }
        }
        let names = self.setup.head.names(&self.setup.profile.blueprint, self.labels.len());
        let (head, tensors): (Vec<_>, Vec<_>) = state.into_iter().partition(|(name, _)| names.contains(name));
        // A linear head is a classifier like any that comes with weights.
        let classifier = match &head[..] {
            [(_, bias), (_, weight)] => Some((weight.clone(), bias.clone())),
            _ => None,
        };
        let origin = self.setup.profile.origin.place();
        let profile = Profile { origin, ..self.setup.profile };
        let backbone =
            Backbone::assemble(profile, tensors.into_iter().collect(), classifier, Some(self.labels.clone()))?;
        let story = self.report.as_story()?;
        let predictor = Predictor::assemble(backbone, self.setup.head, head, self.labels, Some(story))?;
        drop(self.optimizer);
        crate::ops::release_pool();
        Ok(Fitted { predictor, report: self.report })
    }
}
