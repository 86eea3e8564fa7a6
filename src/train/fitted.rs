//! The result of a run.

use crate::data::Dataset;
use crate::error::Result;
use crate::metrics::Evaluation;
use crate::predict::Predictor;
use crate::report::Report;

/// The result of a run: the predictor and the report.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Fitted {
    /// The network. From [`FineTuner::fit`](crate::FineTuner::fit) with the weights of the best epoch; from
    /// [`Session::finish`](crate::Session::finish) with those of the last step, or of the best epoch after
    /// [`Session::restore_best`](crate::Session::restore_best). [`Report::best_epoch`] names it.
    pub predictor: Predictor,
    /// Its report.
    pub report: Report,
}

impl Fitted {
    /// Evaluates on the test set and records the result in report and predictor.
    ///
    /// # Errors
    /// As [`Predictor::evaluate`].
    pub fn test<D: Dataset + Clone + 'static>(&mut self, data: &D) -> Result<Evaluation> {
        let evaluation = self.predictor.evaluate(data)?;
        self.report.tested(data, &evaluation);
        self.predictor.report = Some(self.report.saved_form()?);
        Ok(evaluation)
    }

    /// The same, with this report in the predictor.
    pub(super) fn with_report(mut self) -> Result<Self> {
        self.predictor.report = Some(self.report.saved_form()?);
        Ok(self)
    }
}
