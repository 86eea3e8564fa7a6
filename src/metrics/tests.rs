use super::*;
use crate::data::Targets;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Eleven samples of three classes, of which one has no prediction.
fn evaluation() -> Evaluation {
    let mut scores = Scores::new(Task::Classes);
    let rows = [[5, 1, 0], [2, 1, 0], [0, 0, 1]];
    for (truth, row) in rows.iter().enumerate() {
        for (predicted, &count) in row.iter().enumerate() {
            (0..count).for_each(|_| scores.count(truth, Some(predicted), 0.5));
        }
    }
    scores.count(2, None, f64::NAN);
    scores.evaluation()
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
        (e.balanced_accuracy() - mean_recall).abs() < 1e-12 && (mean_recall - 0.555_555_555_555_555_5).abs() < 1e-12
    );
    assert!((e.largest_class() - 6.0 / 11.0).abs() < 1e-12);
    assert!(e.loss.is_nan());
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
fn json_has_the_figures_and_survives_what_is_not_finite() {
    let e = evaluation();
    let json = serde_json::to_value(&e).unwrap();
    assert_eq!(json["confusion"][0], serde_json::json!([0, 0, 5]));
    assert_eq!(json["loss"], "NaN");
    assert_eq!(json["interval"][0].as_f64(), Some(e.interval().0));
    let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = "balanced_accuracy confusion correct interval largest_class loss not_finite top1 total";
    assert_eq!(keys.join(" "), expected);
    for metric in Metric::all().iter().filter(|metric| **metric != Metric::Loss) {
        assert_eq!(json[metric.name()].as_f64(), Some(metric.value(&e)), "{metric}");
    }
    let text = serde_json::to_string(&e).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), json, "no key twice");
    let back: Evaluation = serde_json::from_value(json).unwrap();
    assert!(back.loss.is_nan());
    assert_eq!(Evaluation { loss: 0.0, ..back }, Evaluation { loss: 0.0, ..e.summary() });
}

#[test]
fn metrics_know_which_way_is_better_and_rank_what_is_not_finite_last() {
    assert!(Metric::Top1.compare(0.9, 0.8).is_gt() && Metric::Loss.compare(0.9, 0.8).is_lt());
    for &metric in Metric::all() {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(metric.compare(odd, 0.1).is_lt() && metric.compare(0.1, odd).is_gt(), "{metric} {odd}");
            assert!(metric.compare(odd, f64::NAN).is_eq());
            assert!(!metric.improves(odd, None));
        }
        assert!(metric.improves(0.5, None) && !metric.improves(0.5, Some(0.5)));
        let json = serde_json::to_value(metric).unwrap();
        assert_eq!(json, metric.name());
        assert_eq!(serde_json::from_value::<Metric>(json).unwrap(), metric);
    }
    assert_eq!(Metric::default(), Metric::Top1);
    assert_eq!(Metric::BalancedAccuracy.value(&evaluation()), evaluation().balanced_accuracy());
}

#[test]
fn lists_of_labels_and_missing_targets_are_refused() {
    let logits = Tensor::new(&[[0f32, 1.0], [1.0, 0.0]], &Device::Cpu).unwrap();
    let mut scores = Scores::new(Task::Classes);
    let error = scores.add(&logits, &Targets::Labels(logits.clone())).unwrap_err();
    assert!(error.to_string().contains("multi-label"), "{error}");
    assert!(scores.add(&logits, &Targets::Classes(vec![0])).is_err());
    assert_eq!(scores.evaluation().total, 0);
}
