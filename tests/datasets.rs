//! Custom datasets and wrappers, what batches hold, and the metric that chooses an epoch.

use crate::support::next;
use crate::support::{differing, pictures, plan};
use crate::training::{data, phase, plans, saved, tuner};
use candle_finetune::{
    Augment, BatchNormMode, Dataset, FeatureCache, FreezePolicy, Metric, Report, Result, Sample, SampleInfo, Subset,
    Target, VecDataset, k_fold, split,
};
use std::collections::BTreeSet;

/// Photos in groups of three, each with a name.
#[derive(Clone)]
struct Grouped(VecDataset);

impl Dataset for Grouped {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        self.0.info(i).group((i / 3) as u32).name(format!("photo {i}"))
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        self.0.sample(i)
    }
    fn skipped(&self) -> Option<usize> {
        Some(2)
    }
}

/// A wrapper that implements the required methods and no more.
#[derive(Clone)]
struct Wrapped<T>(T);

impl<T: Dataset> Dataset for Wrapped<T> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        self.0.info(i)
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        self.0.sample(i)
    }
}

#[test]
fn a_wrapper_of_the_required_methods_keeps_groups_names_and_views() {
    let data = Wrapped(Grouped(pictures(18, 40, 2, 1)));
    let groups = |part: &Subset| (0..part.len()).map(|i| part.info(i).group.unwrap()).collect::<BTreeSet<_>>();
    for (train, valid) in k_fold(&data, 3, 1).unwrap() {
        assert!(groups(&train).is_disjoint(&groups(&valid)) && !groups(&valid).is_empty());
    }
    let (train, valid) = split(&data, 0.3, 4).unwrap();
    let wrapped = Wrapped(train.clone());
    let whole = train.indices()[2];
    let info = wrapped.info(2);
    assert_ne!(whole, 2, "the split leaves the indices as they are; take another seed");
    assert_eq!((info.to_string(), info.augment_index), (format!("photo {whole}"), whole));
    // Augmented training is the same to the bit.
    let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::Frozen, 1)], 6);
    plan.augment = Augment::standard();
    let plain = tuner(plan.clone()).fit(&train, &valid).unwrap();
    let through = tuner(plan).fit(&wrapped, &valid).unwrap();
    assert_eq!(differing(&saved(&plain), &saved(&through)), [""; 0]);
}

/// A count that a wrapper does not pass on is unknown, and never zero.
#[test]
fn skipped_samples_are_counted_or_unknown() {
    let (train, valid) = split(&Grouped(pictures(12, 40, 2, 1)), 0.3, 1).unwrap();
    let plan = plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1)], 8);
    let report = tuner(plan.clone()).fit(&train, &valid).unwrap().report;
    assert_eq!(report.skipped, Some(2));
    assert!(report.to_string().contains("2 broken samples were skipped"), "{report}");
    for report in [
        tuner(plan.clone()).fit(&Wrapped(train.clone()), &valid).unwrap().report,
        tuner(plan).fit(&train, &Wrapped(valid)).unwrap().report,
    ] {
        assert_eq!(report.skipped, None);
        assert!(!report.to_string().contains("skipped"), "{report}");
    }
}

#[test]
fn a_batch_holds_images_or_says_why_not() {
    let (train, _) = data();
    let mut session = tuner(plans().remove(0)).session(&train).unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    let error = batch.images().unwrap_err().to_string();
    assert!(error.contains("cached features") && error.contains("FeatureCache::off()"), "{error}");
    assert_eq!(session.logits(&batch).unwrap().dims(), [8, 3]);
    let mut session = tuner(plans().remove(0)).cache(&FeatureCache::off()).session(&train).unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    assert_eq!(batch.images().unwrap().dims(), [8, 3, 32, 32]);
}

#[test]
fn another_metric_chooses_the_epoch_and_the_report_says_so() {
    let (train, valid) = data();
    let plan = || plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 6)], 8);
    let by = |metric: Metric| tuner(plan()).metric(metric).fit(&train, &valid).unwrap().report;
    for metric in [Metric::Loss, Metric::BalancedAccuracy] {
        let report = by(metric);
        let values: Vec<f64> = report.epochs.iter().map(|epoch| epoch.valid_metric.unwrap()).collect();
        let best = report.best_epoch.unwrap();
        assert_eq!(report.metric, metric);
        assert!(values.iter().all(|&value| metric.compare(values[best - 1], value).is_ge()), "{metric}: {values:?}");
        assert_eq!(values[best - 1], metric.value(report.valid.as_ref().unwrap()), "{metric}");
        let text = report.to_string();
        assert!(text.contains(&format!("the best validation {}", metric.name().replace('_', " "))), "{text}");
        let table = report.table();
        assert_eq!(table.contains("metric: balanced_accuracy"), metric == Metric::BalancedAccuracy, "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }
    let losses: Vec<Option<f64>> = by(Metric::Loss).epochs.iter().map(|epoch| epoch.valid_loss).collect();
    assert_eq!(losses, by(Metric::Loss).epochs.iter().map(|epoch| epoch.valid_metric).collect::<Vec<_>>());
    // Reports without a metric are judged by top-1.
    let report = tuner(plan()).fit(&train, &valid).unwrap().report;
    let mut old = serde_json::to_value(&report).unwrap();
    old.as_object_mut().unwrap().remove("metric");
    let epochs = old["epochs"].as_array_mut().unwrap();
    epochs.iter_mut().for_each(|epoch| drop(epoch.as_object_mut().unwrap().remove("valid_metric")));
    let old: Report = serde_json::from_value(old).unwrap();
    assert_eq!((old.metric, old.table()), (Metric::Top1, report.table()));
}

#[test]
fn targets_and_infos_are_plain_values() {
    let info = SampleInfo::new(4, Target::Class(1));
    assert_eq!((info.to_string(), info.group, info.augment_index), ("sample 4".to_string(), None, 4));
    let info = info.group(7).name("x.png").augment_index(9);
    assert_eq!((info.to_string(), info.group, info.augment_index, info.index), ("x.png".to_string(), Some(7), 9, 4));
}
