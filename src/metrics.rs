//! What an evaluation counts, and how sure its figures are.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The result of running a network over labelled data.
///
/// As JSON it also holds what follows from its counts: `top1`, `interval`, `balanced_accuracy` and `largest_class`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Written", from = "Written")]
#[non_exhaustive]
pub struct Evaluation {
    /// Samples whose likeliest class is the right one.
    pub correct: usize,
    /// All samples.
    pub total: usize,
    /// Samples whose logits are not finite numbers: they have no likeliest class and count as wrong.
    pub not_finite: usize,
    /// The mean cross entropy in nats, without label smoothing. Not a finite number if some logits are not.
    pub loss: f64,
    /// How often each class is predicted as which.
    pub confusion: Confusion,
    /// Of each sample in the data's order, whether it was right: for comparing evaluations sample by sample.
    pub(crate) right: Vec<bool>,
}

impl Evaluation {
    pub(crate) fn new() -> Self {
        Self { correct: 0, total: 0, not_finite: 0, loss: 0.0, confusion: Confusion::default(), right: vec![] }
    }

    /// Counts one sample; `loss` holds the sum until [`Evaluation::close`]. `predicted` is `None` where the logits are
    /// not finite.
    pub(crate) fn count(&mut self, truth: usize, predicted: Option<usize>, loss: f64) {
        self.total += 1;
        self.loss += loss;
        self.right.push(predicted == Some(truth));
        match predicted {
            Some(predicted) => {
                self.correct += usize::from(truth == predicted);
                self.confusion.add(truth, predicted);
            }
            None => {
                self.not_finite += 1;
                self.confusion.add_unpredicted(truth);
            }
        }
    }

    pub(crate) fn close(mut self) -> Self {
        self.loss /= self.total.max(1) as f64;
        self
    }

    /// The same without the outcome of each sample.
    pub(crate) fn summary(&self) -> Self {
        Self { right: vec![], ..self.clone() }
    }

    /// The share of samples whose likeliest class is the right one, in [0, 1].
    pub fn top1(&self) -> f64 {
        self.correct as f64 / self.total.max(1) as f64
    }

    /// The 95 % confidence interval of [`top1`](Self::top1) (Wilson 1927): where the accuracy on further data of this
    /// kind is to be expected. (0, 1) without samples.
    ///
    /// ```
    /// use candle_finetune::wilson_interval;
    /// let (low, high) = wilson_interval(34, 36);
    /// assert!((low - 0.8186).abs() < 1e-4 && (high - 0.9846).abs() < 1e-4); // of 34 right in 36
    /// ```
    pub fn interval(&self) -> (f64, f64) {
        wilson_interval(self.correct, self.total)
    }

    /// The mean over the classes of the share of each that is recognised, in [0, 1]: not swayed by large classes.
    /// Classes without samples are left out.
    pub fn balanced_accuracy(&self) -> f64 {
        let classes = self.confusion.samples();
        let recalls = classes.iter().map(|(&class, &all)| {
            let right = self.confusion.count(class as usize, class as usize);
            right as f64 / all as f64
        });
        recalls.sum::<f64>() / classes.len().max(1) as f64
    }

    /// The share of the most frequent class among the samples, in [0, 1]: the accuracy of always answering with it.
    pub fn largest_class(&self) -> f64 {
        let most = self.confusion.samples().into_values().max().unwrap_or(0);
        most as f64 / self.total.max(1) as f64
    }
}

/// `top1 0.9412 144/153`
impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "top1 {:.4} {}/{}", self.top1(), self.correct, self.total)
    }
}

/// The 95 % confidence interval of a share of `correct` in `total`, by Wilson's score (Wilson 1927, "Probable
/// inference, the law of succession, and statistical inference"): unlike the normal approximation it holds for small
/// samples and for shares near 0 and 1.
pub fn wilson_interval(correct: usize, total: usize) -> (f64, f64) {
    /// The 97.5th percentile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    if total == 0 {
        return (0.0, 1.0);
    }
    let (n, share) = (total as f64, correct as f64 / total as f64);
    let centre = share + Z * Z / (2.0 * n);
    let half = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// How often samples of one class were predicted as another: the cells that are not zero. With tens of thousands of
/// classes, the whole table would take gigabytes.
///
/// As JSON it is a list of `[true class, predicted class, count]`; samples without a prediction have `null` for it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<Cell>", from = "Vec<Cell>")]
pub struct Confusion {
    cells: BTreeMap<(u32, Option<u32>), usize>,
}

/// True class, predicted class, count.
type Cell = (u32, Option<u32>, usize);

impl Confusion {
    fn add(&mut self, truth: usize, predicted: usize) {
        *self.cells.entry((truth as u32, Some(predicted as u32))).or_default() += 1;
    }

    /// A sample whose logits name no class.
    fn add_unpredicted(&mut self, truth: usize) {
        *self.cells.entry((truth as u32, None)).or_default() += 1;
    }

    /// How many samples of class `truth` were predicted as class `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> usize {
        self.cells.get(&(truth as u32, Some(predicted as u32))).copied().unwrap_or(0)
    }

    /// The cells that are not zero, as (true class, predicted class, count), in the order of the classes.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32, usize)> + '_ {
        self.cells.iter().filter_map(|(&(truth, predicted), &count)| Some((truth, predicted?, count)))
    }

    /// How many samples of each true class there are, of the classes that have any.
    pub fn samples(&self) -> BTreeMap<u32, usize> {
        let mut samples = BTreeMap::new();
        for (&(truth, _), &count) in &self.cells {
            *samples.entry(truth).or_default() += count;
        }
        samples
    }
}

impl From<Confusion> for Vec<Cell> {
    fn from(confusion: Confusion) -> Self {
        confusion.cells.into_iter().map(|((truth, predicted), count)| (truth, predicted, count)).collect()
    }
}

impl From<Vec<Cell>> for Confusion {
    fn from(cells: Vec<Cell>) -> Self {
        Self { cells: cells.into_iter().map(|(truth, predicted, count)| ((truth, predicted), count)).collect() }
    }
}

/// An evaluation as JSON: its counts, and what follows from them for whoever reads the file.
#[derive(Serialize, Deserialize)]
struct Written {
    correct: usize,
    total: usize,
    not_finite: usize,
    #[serde(with = "any_float")]
    loss: f64,
    confusion: Confusion,
    #[serde(skip_deserializing)]
    top1: f64,
    #[serde(skip_deserializing)]
    interval: (f64, f64),
    #[serde(skip_deserializing)]
    balanced_accuracy: f64,
    #[serde(skip_deserializing)]
    largest_class: f64,
}

impl From<Evaluation> for Written {
    fn from(e: Evaluation) -> Self {
        let (top1, interval) = (e.top1(), e.interval());
        let (balanced_accuracy, largest_class) = (e.balanced_accuracy(), e.largest_class());
        let Evaluation { correct, total, not_finite, loss, confusion, right: _ } = e;
        Self { correct, total, not_finite, loss, confusion, top1, interval, balanced_accuracy, largest_class }
    }
}

impl From<Written> for Evaluation {
    fn from(w: Written) -> Self {
        let Written { correct, total, not_finite, loss, confusion, .. } = w;
        Self { correct, total, not_finite, loss, confusion, right: vec![] }
    }
}

/// A float that may be infinite or NaN, which JSON has no number for: a text then ("NaN", "inf").
pub(crate) mod any_float {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Any {
        Number(f64),
        Text(String),
    }

    impl From<f64> for Any {
        fn from(value: f64) -> Self {
            if value.is_finite() { Self::Number(value) } else { Self::Text(value.to_string()) }
        }
    }

    impl Any {
        pub(super) fn value(self) -> Option<f64> {
            match self {
                Self::Number(value) => Some(value),
                Self::Text(text) => text.parse().ok(),
            }
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Any::from(*value).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Any::deserialize(deserializer)?.value().ok_or_else(|| serde::de::Error::custom("a text that is no number"))
    }
}

/// The same for a float that may be absent.
pub(crate) mod any_float_option {
    use super::any_float::Any;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option)] // the signature that serde calls
    pub(crate) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Any::from).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let wrong = || serde::de::Error::custom("a text that is no number");
        Option::<Any>::deserialize(deserializer)?.map(|any| any.value().ok_or_else(wrong)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eleven samples of three classes, of which one has no prediction.
    fn evaluation() -> Evaluation {
        let mut evaluation = Evaluation::new();
        let rows = [[5, 1, 0], [2, 1, 0], [0, 0, 1]];
        for (truth, row) in rows.iter().enumerate() {
            for (predicted, &count) in row.iter().enumerate() {
                (0..count).for_each(|_| evaluation.count(truth, Some(predicted), 0.5));
            }
        }
        evaluation.count(2, None, f64::NAN);
        evaluation
    }

    /// scikit-learn 1.9: `balanced_accuracy_score` of the same predictions (the sample without one as a fourth class)
    /// is 0.5555555555555555; rows of `confusion_matrix` are the true classes.
    #[test]
    fn figures_follow_from_the_counts() {
        let e = evaluation();
        assert_eq!((e.correct, e.total, e.not_finite), (7, 11, 1));
        assert_eq!((e.confusion.count(0, 1), e.confusion.count(1, 0)), (1, 2), "rows are the true classes");
        assert_eq!(e.confusion.iter().collect::<Vec<_>>(), [(0, 0, 5), (0, 1, 1), (1, 0, 2), (1, 1, 1), (2, 2, 1)]);
        assert_eq!(e.confusion.samples(), BTreeMap::from([(0, 6), (1, 3), (2, 2)]));
        let mean_recall = (5.0 / 6.0 + 1.0 / 3.0 + 1.0 / 2.0) / 3.0;
        assert!(
            (e.balanced_accuracy() - mean_recall).abs() < 1e-12
                && (mean_recall - 0.555_555_555_555_555_5).abs() < 1e-12
        );
        assert!((e.largest_class() - 6.0 / 11.0).abs() < 1e-12);
        assert!(e.close().loss.is_nan());
    }

    /// Wilson's formula, computed in Python.
    #[test]
    fn intervals_are_those_of_wilsons_score() {
        for (correct, total, low, high) in [
            (34, 36, 0.818_553, 0.984_630),
            (0, 10, 0.0, 0.277_533),
            (10, 10, 0.722_467, 1.0),
            (144, 153, 0.891_994, 0.968_747),
        ] {
            let found = wilson_interval(correct, total);
            assert!((found.0 - low).abs() < 1e-5 && (found.1 - high).abs() < 1e-5, "{correct}/{total}: {found:?}");
        }
        assert_eq!(wilson_interval(0, 0), (0.0, 1.0));
    }

    #[test]
    fn json_has_the_figures_and_survives_what_is_no_number() {
        let e = evaluation().close();
        let json = serde_json::to_value(&e).unwrap();
        assert_eq!(json["confusion"][0], serde_json::json!([0, 0, 5]));
        assert_eq!(json["loss"], "NaN");
        assert_eq!(json["top1"].as_f64(), Some(e.top1()));
        let back: Evaluation = serde_json::from_value(json).unwrap();
        assert!(back.loss.is_nan());
        assert_eq!(Evaluation { loss: 0.0, ..back }, Evaluation { loss: 0.0, ..e.summary() });
    }
}
