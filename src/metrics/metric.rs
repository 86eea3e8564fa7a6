//! Metrics: the values by which evaluations are compared.

use super::evaluation::Evaluation;
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
    /// Top-5 accuracy, in [0, 1].
    Top5, "top5", true, |evaluation| evaluation.top_k(5).unwrap_or(f64::NAN);
    /// The mean F1 over the classes, in [0, 1].
    MacroF1, "macro_f1", true, Evaluation::macro_f1;
    /// The mean F1 over the classes, weighted by their samples, in [0, 1].
    WeightedF1, "weighted_f1", true, Evaluation::weighted_f1;
    /// The mean precision over the classes, in [0, 1].
    MacroPrecision, "macro_precision", true, Evaluation::macro_precision;
    /// The mean area under the ROC curve of each class against all others, in [0, 1]; NaN for more than a million
    /// probabilities.
    RocAuc, "roc_auc", true, |evaluation| evaluation.roc_auc().unwrap_or(f64::NAN);
    /// The mean average precision of each class against all others, in [0, 1]; NaN for more than a million
    /// probabilities.
    AveragePrecision, "average_precision", true, |evaluation| evaluation.average_precision().unwrap_or(f64::NAN);
    /// The expected calibration error, in [0, 1].
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
