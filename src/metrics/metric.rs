//! Metrics: the values by which evaluations are compared.

use super::evaluation::Evaluation;
use super::ranking::most_probabilities;
use super::task::Task;
use crate::error::{Error, Result, by_name};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Makes the metrics of these rows: name of the variant, name in reports, whether higher is better, and the value.
macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident, $name:literal, $higher_is_better:literal, $value:expr;)*) => {
        /// A value of an [`Evaluation`] by which epochs are compared.
        ///
        /// ```
        /// use candle_finetune::Metric;
        /// assert!(Metric::Loss.compare(0.1, 0.2).is_gt()); // a lower loss is better
        /// assert!(Metric::Top1.compare(f64::NAN, 0.0).is_lt()); // values that are not finite rank last
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Metric {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Metric {
            /// All metrics.
            pub fn all() -> &'static [Self] {
                &[$(Self::$variant),*]
            }

            /// The name in reports: `top1`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Whether a higher value is better.
            pub fn higher_is_better(self) -> bool {
                match self { $(Self::$variant => $higher_is_better),* }
            }

            /// The value for an evaluation.
            pub fn value(self, evaluation: &Evaluation) -> f64 {
                let value: fn(&Evaluation) -> f64 = match self { $(Self::$variant => $value),* };
                value(evaluation)
            }
        }
    };
}

// A new metric is one more row here.
metrics! {
    /// Top-1 accuracy, in [0, 1]; for lists of labels the fraction of samples whose labels are all right.
    #[default] Top1, "top1", true, Evaluation::top1;
    /// The mean recall over the classes, in [0, 1].
    BalancedAccuracy, "balanced_accuracy", true, Evaluation::balanced_accuracy;
    /// Top-5 accuracy, in [0, 1]; NaN for lists of labels.
    Top5, "top5", true, |evaluation| evaluation.top_k(5).unwrap_or(f64::NAN);
    /// The mean F1 over the classes, in [0, 1].
    MacroF1, "macro_f1", true, Evaluation::macro_f1;
    /// The mean F1 over the classes, weighted by their samples, in [0, 1].
    WeightedF1, "weighted_f1", true, Evaluation::weighted_f1;
    /// The mean precision over the classes, in [0, 1].
    MacroPrecision, "macro_precision", true, Evaluation::macro_precision;
    /// The mean area under the ROC curve of each class against all others, in [0, 1]; NaN for more than a million
    /// probabilities, of lists of labels 16 million.
    RocAuc, "roc_auc", true, |evaluation| evaluation.roc_auc().unwrap_or(f64::NAN);
    /// The mean average precision of each class against all others, in [0, 1]; NaN for more than a million
    /// probabilities, of lists of labels 16 million.
    AveragePrecision, "average_precision", true, |evaluation| evaluation.average_precision().unwrap_or(f64::NAN);
    /// The expected calibration error, in [0, 1]; NaN for lists of labels.
    CalibrationError, "calibration_error", false, Evaluation::calibration_error;
    /// Cross entropy in nats; for lists of labels binary cross entropy.
    Loss, "loss", false, |evaluation| evaluation.loss;
}

impl Metric {
    /// The metric of a run that names none: top-1 accuracy, and for lists of labels average precision, which no threshold
    /// affects.
    pub(crate) fn of_task(task: Task) -> Self {
        match task {
            Task::Classes => Self::Top1,
            Task::Labels => Self::AveragePrecision,
        }
    }

    /// Refuses a metric that has no value for so many samples of so many classes. `what` names the setting.
    pub(crate) fn check(self, what: &str, task: Task, (samples, classes): (usize, usize)) -> Result<()> {
        let one_class = matches!(self, Self::Top5 | Self::CalibrationError);
        if one_class && task == Task::Labels {
            return Err(Error::invalid(
                what,
                format!("{self} has no value for lists of labels; choose another metric"),
            ));
        }
        let (most, probabilities) = (most_probabilities(task), samples.saturating_mul(classes));
        if matches!(self, Self::RocAuc | Self::AveragePrecision) && probabilities > most {
            let problem = format!(
                "{self} has no value for more than {most} probabilities, and {samples} validation samples of {classes} \
                 classes have {probabilities}; choose another metric, or fewer samples"
            );
            return Err(Error::invalid(what, problem));
        }
        Ok(())
    }

    /// The error of a setting whose metric has no value for an evaluation.
    pub(crate) fn without_value(self, what: &str) -> Error {
        let problem = format!(
            "{self} has no value for this validation data, which may lack samples of several classes; choose another \
             metric"
        );
        Error::invalid(what, problem)
    }

    /// Compares two values: `Greater` if the first is better. Values that are not finite rank last, as equals.
    pub fn compare(self, a: f64, b: f64) -> Ordering {
        match (a.is_finite(), b.is_finite()) {
            (true, true) if self.higher_is_better() => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            (true, true) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
            (a, b) => a.cmp(&b),
        }
    }

    /// Whether `value` is finite and better than the best so far, if there is one.
    pub(crate) fn improves(self, value: f64, best: Option<f64>) -> bool {
        value.is_finite() && best.is_none_or(|best| self.compare(value, best).is_gt())
    }
}

/// By its name.
impl FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("metric", name, Self::all(), Self::name)
    }
}

/// The name.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_without_a_value_are_refused() {
        let check = |metric: Metric, task, size| metric.check("metric", task, size).map_err(|error| error.to_string());
        for &metric in Metric::all() {
            assert!(check(metric, Task::Classes, (1000, 1000)).is_ok());
            let one_class = matches!(metric, Metric::Top5 | Metric::CalibrationError);
            assert_eq!(check(metric, Task::Labels, (1000, 1000)).is_err(), one_class, "{metric}");
        }
        let error = check(Metric::RocAuc, Task::Classes, (25_250, 101)).unwrap_err();
        assert!(error.contains("1048576") && error.contains("2550250"), "{error}");
        assert!(check(Metric::AveragePrecision, Task::Labels, (25_250, 101)).is_ok());
        assert!(check(Metric::AveragePrecision, Task::Labels, (250_250, 101)).is_err());
    }
}
