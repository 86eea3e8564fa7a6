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
    let expected = "average_precision balanced_accuracy calibration_error confusion correct interval largest_class loss \
                    macro_f1 macro_precision not_finite ranking roc_auc top1 top5 total weighted_f1";
    assert_eq!(keys.join(" "), expected);
    for metric in Metric::all().iter().filter(|metric| **metric != Metric::Loss) {
        let value = metric.value(&e);
        let expected = if value.is_nan() { serde_json::json!("NaN") } else { serde_json::json!(value) };
        assert_eq!(json[metric.name()], expected, "{metric}");
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
        assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
    }
    assert_eq!(Metric::default(), Metric::Top1);
    assert!("accuracy".parse::<Metric>().unwrap_err().to_string().contains("macro_f1"));
    assert_eq!(Metric::BalancedAccuracy.value(&evaluation()), evaluation().balanced_accuracy());
}

/// `tests/fixtures/metrics.json`, written by `tests/reference/metrics.py` with scikit-learn.
#[test]
fn figures_are_those_of_scikit_learn() {
    let text = include_str!("../../tests/fixtures/metrics.json");
    let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
    let list = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let classes: Vec<u32> = list(&fixture["classes"]).into_iter().map(|class| class as u32).collect();
    let logits: Vec<f64> = fixture["logits"].as_array().unwrap().iter().flat_map(list).collect();
    let part = |from: usize, to: usize| {
        let rows = Tensor::from_slice(&logits[4 * from..4 * to], (to - from, 4), &Device::Cpu).unwrap();
        let mut scores = Scores::new(Task::Classes);
        scores.add(&rows, &Targets::Classes(classes[from..to].to_vec())).unwrap();
        scores.evaluation()
    };
    // All at once, and from two parts.
    for e in [part(0, 60), part(0, 23).join(&part(23, 60))] {
        let close = |name: &str, value: f64| {
            let expected = fixture[name].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-7, "{name}: {value}, not {expected}");
        };
        for metric in Metric::all().iter().filter(|metric| !matches!(metric, Metric::Top5)) {
            let name = if *metric == Metric::CalibrationError { "ece" } else { metric.name() };
            close(name, metric.value(&e));
        }
        close("top2", e.top_k(2).unwrap());
        close("top3", e.top_k(3).unwrap());
        assert_eq!((e.top_k(4), e.top_k(10), e.top_k(0), e.top_k(11)), (Some(1.0), Some(1.0), None, None));
        for (i, scores) in e.per_class().iter().enumerate() {
            for (name, value) in [("precision", scores.precision), ("recall", scores.recall), ("f1", scores.f1)] {
                let expected = list(&fixture[name])[i];
                assert!((value - expected).abs() < 1e-12, "{name} of {i}: {value}, not {expected}");
            }
        }
        // A report keeps the figures, and not the probabilities.
        let back: Evaluation = serde_json::from_str(&serde_json::to_string(&e).unwrap()).unwrap();
        assert_eq!(back, e.summary());
        assert_eq!((back.roc_auc(), back.top_k(2)), (e.roc_auc(), e.top_k(2)));
    }
}

#[test]
fn too_many_probabilities_and_those_that_are_not_finite_have_no_curves() {
    let mut scores = Scores::new(Task::Classes);
    let rows = Tensor::new(&[[0f32, 1.0], [f32::NAN, 0.0]], &Device::Cpu).unwrap();
    scores.add(&rows, &Targets::Classes(vec![1, 0])).unwrap();
    let e = scores.evaluation();
    assert_eq!((e.roc_auc(), e.average_precision(), e.top_k(1)), (None, None, Some(0.5)));
    let mut scores = Scores::new(Task::Classes);
    let rows = Tensor::zeros((3, 400_000), candle_core::DType::F32, &Device::Cpu).unwrap();
    scores.add(&rows, &Targets::Classes(vec![0, 1, 2])).unwrap();
    let e = scores.evaluation();
    assert_eq!((e.roc_auc(), e.top_k(1), e.top_k(2), e.top_k(3)), (None, Some(1.0 / 3.0), Some(2.0 / 3.0), Some(1.0)));
    // A report of an earlier version has no ranks.
    let old: Evaluation = serde_json::from_value(serde_json::json!({
        "correct": 1, "total": 2, "not_finite": 0, "loss": 0.5, "confusion": [[0, 0, 1], [1, 0, 1]]
    }))
    .unwrap();
    assert_eq!((old.top_k(1), old.roc_auc()), (None, None));
    assert!(old.calibration_error().is_nan() && old.macro_f1() > 0.3);
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
