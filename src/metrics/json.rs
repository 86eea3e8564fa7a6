//! Evaluations as JSON: the counts, and for other readers of the file every value derived from them.

use super::confusion::Confusion;
use super::evaluation::Evaluation;
use super::float::any_float;
use super::labels::LabelCounts;
use super::metric::Metric;
use super::ranking::Ranking;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The fields from which an evaluation is read back.
#[derive(Serialize, Deserialize)]
struct Counts {
    correct: usize,
    total: usize,
    not_finite: usize,
    #[serde(with = "any_float")]
    loss: f64,
    confusion: Confusion,
    #[serde(default = "Ranking::unknown")]
    ranking: Ranking,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<LabelCounts>,
}

/// A value as JSON.
#[derive(Serialize)]
struct Figure(#[serde(with = "any_float")] f64);

/// The values of an evaluation, by name.
struct Values<'a>(&'a Evaluation);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        // The loss is a field already.
        for metric in Metric::all().iter().filter(|metric| **metric != Metric::Loss) {
            map.serialize_entry(metric.name(), &Figure(metric.value(self.0)))?;
        }
        map.serialize_entry("interval", &self.0.interval())?;
        map.serialize_entry("largest_class", &self.0.largest_class())?;
        map.end()
    }
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    counts: Counts,
    #[serde(flatten)]
    values: Values<'a>,
}

impl Serialize for Evaluation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { correct, total, not_finite, loss, confusion, outcomes: _, ranking, labels } = self.summary();
        let counts = Counts { correct, total, not_finite, loss, confusion, ranking, labels };
        Written { counts, values: Values(self) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evaluation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Counts { correct, total, not_finite, loss, confusion, ranking, labels } =
            Counts::deserialize(deserializer)?;
        Ok(Self { correct, total, not_finite, loss, confusion, outcomes: vec![], ranking, labels })
    }
}
