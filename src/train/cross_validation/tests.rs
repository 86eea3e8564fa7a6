use super::*;
use crate::report::Report;
use crate::{
    Augment, Backbone, FeatureCache, FreezePolicy, Head, Joined, Optimizer, Phase, Plan, Sample, SampleInfo, Strategy,
    TensorDataset,
};
use candle_core::{Device, Tensor};
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Waves of three frequencies, one per class; `spoiled` samples are all zeros. Notes which samples are read.
#[derive(Clone)]
struct Waves {
    inner: TensorDataset,
    spoiled: BTreeSet<usize>,
    grouped: bool,
    read: Arc<Mutex<Vec<usize>>>,
}

const SAMPLES: usize = 36;

fn waves() -> Waves {
    let inner = crate::train::waves::waves(SAMPLES, 3);
    Waves { inner, spoiled: BTreeSet::new(), grouped: false, read: Arc::default() }
}

impl Dataset for Waves {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn classes(&self) -> &[String] {
        self.inner.classes()
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        let info = self.inner.info(i);
        if self.grouped { info.group(i as u32 / 6) } else { info }
    }
    fn sample(&self, i: usize) -> crate::Result<Sample> {
        self.read.lock().unwrap().push(i);
        match self.inner.sample(i)? {
            Sample::Tensor(image) if self.spoiled.contains(&i) => Ok(Sample::Tensor(image.zeros_like()?)),
            sample => Ok(sample),
        }
    }
    fn fingerprint(&self, i: usize) -> Option<u64> {
        Some(self.inner.fingerprint(i)? ^ u64::from(self.spoiled.contains(&i)))
    }
}

fn backbone() -> Backbone {
    Backbone::embedded(&Device::Cpu).unwrap()
}

/// A head, then everything behind the first blocks with batch statistics, with patience: all that could leak.
fn plan() -> Plan {
    let head = Phase::new(3, Optimizer::adamw(1e-2)).freeze(FreezePolicy::Backbone);
    let rest = Phase::new(3, Optimizer::adamw(1e-3)).freeze(FreezePolicy::First(8));
    Plan { patience: Some(2), ..Plan::new(vec![head, rest]).batch_size(8) }
}

fn reports(validation: &CrossValidation) -> Vec<Report> {
    validation.folds.iter().map(|fold| fold.report.without_measurements()).collect()
}

#[test]
fn no_sample_of_a_fold_reaches_its_training() {
    // With a given plan, and with one that each fold chooses.
    for tuner in [FineTuner::new(backbone()).plan(plan()), FineTuner::new(backbone())] {
        let data = waves();
        let fair = tuner.clone().cross_validate(&data, 3).unwrap();
        let first = k_fold(&data, 3, 0).unwrap().swap_remove(0).1;
        let spoiled = Waves { spoiled: first.indices().iter().copied().collect(), ..data };
        let other = tuner.cross_validate(&spoiled, 3).unwrap();
        let (fair_reports, other_reports) = (reports(&fair), reports(&other));
        // Losses, statistics, epochs, the plan: everything of the training is the same.
        assert_eq!(fair_reports[0], other_reports[0]);
        assert!(fair_reports[0].epochs.iter().all(|epoch| epoch.valid_loss.is_some()));
        // The samples are others for the prediction of the fold, and for the training of the others.
        assert_ne!(fair.folds[0].loss, other.folds[0].loss);
        assert!(fair_reports[1] != other_reports[1] && fair_reports[2] != other_reports[2]);
        assert_eq!(fair.nested, fair.folds[0].plan.strategy.is_some());
    }
}

#[test]
fn each_image_passes_the_frozen_blocks_once_and_the_cache_changes_nothing() {
    let data = waves();
    let tuner = || FineTuner::new(backbone()).plan(plan());
    let cached = tuner().workers(2).cross_validate(&data, 4).unwrap();
    // Two cuts: after all blocks, and after the first eight. A look at one sample tells that they are tensors.
    let reads = std::mem::take(&mut *data.read.lock().unwrap());
    let of = |sample: usize| reads.iter().filter(|&&i| i == sample).count();
    assert!((1..SAMPLES).all(|sample| of(sample) <= 3), "{reads:?}");
    assert_eq!(cached.computed, 2 * SAMPLES);
    assert!(cached.reused > 4 * SAMPLES, "{}", cached.reused);
    let without = tuner().workers(1).cache(&FeatureCache::off()).cross_validate(&data, 4).unwrap();
    assert_eq!((without.computed, &without.evaluation), (0, &cached.evaluation));
    let outcome = |fold: &Fold| (fold.top1, fold.loss, fold.best_epoch, fold.steps.clone());
    assert_eq!(
        cached.folds.iter().map(outcome).collect::<Vec<_>>(),
        without.folds.iter().map(outcome).collect::<Vec<_>>()
    );
}

#[test]
fn every_sample_is_predicted_once_per_repeat_and_groups_stay_together() {
    let tuner = FineTuner::new(backbone()).plan(plan());
    let data = Waves { grouped: true, ..waves() };
    let result = tuner.clone().cross_validate(&data, Folds::new(3).repeats(2)).unwrap();
    assert_eq!((result.evaluation.total, result.folds.len(), result.groups), (2 * SAMPLES, 6, Some(6)));
    let correct: f64 = result.folds.iter().map(|fold| fold.top1 * fold.samples as f64).sum();
    assert!((correct - result.evaluation.correct as f64).abs() < 1e-9);
    let mean = result.folds.iter().map(|fold| fold.top1).sum::<f64>() / 6.0;
    assert!((result.top1 - mean).abs() < 1e-12 && result.interval.0 <= mean && mean <= result.interval.1 + 0.2);
    // By six groups the interval is wider than by 36 samples.
    let alone = tuner.clone().cross_validate(&waves(), 3).unwrap();
    assert_eq!(alone.groups, None);
    assert_eq!(alone.interval, alone.evaluation.interval());
    let text = result.to_string();
    for words in ["3 folds, 2 times", "the plan was given", "by 6 groups", "rows computed", "top1"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let json: serde_json::Value = serde_json::from_str(&result.to_json().unwrap()).unwrap();
    assert_eq!(json["folds"].as_array().unwrap().len(), 6);
    assert!(json["seconds"]["total"].as_f64().unwrap() > 0.0 && json["evaluation"]["confusion"].is_array());
    // A refit shows each sample once, whatever the repeats.
    let tuned = result.refit(tuner.clone(), &data).unwrap();
    assert_eq!(tuned.report.valid.unwrap().total, SAMPLES);
    // Bad requests.
    let state = tuner.clone().session(&data).unwrap().state().unwrap();
    let error = tuner.clone().resume(&state).cross_validate(&data, 3).unwrap_err().to_string();
    assert!(error.contains("cannot continue a cross-validation"), "{error}");
    assert!(tuner.clone().cross_validate(&data, 7).unwrap_err().to_string().contains("k is 7"));
    assert!(tuner.cross_validate(&data, Folds::new(3).repeats(0)).unwrap_err().to_string().contains("repeats"));
}

/// The weights after these steps of a plan on all samples, by a loop of its own.
fn by_hand(plan: &Plan, steps: &[usize], data: &Joined) -> Vec<(String, Vec<f32>)> {
    let mut session = FineTuner::new(backbone()).plan(plan.clone()).session(data).unwrap();
    for steps in steps {
        assert!(session.next_phase().unwrap());
        let mut made = 0;
        'phase: while session.next_epoch().unwrap() {
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
                made += 1;
                if made == *steps {
                    break 'phase;
                }
            }
        }
    }
    values(session.finish().unwrap().predictor.backbone().tensors().clone().into_iter())
}

fn values(tensors: impl Iterator<Item = (String, Tensor)>) -> Vec<(String, Vec<f32>)> {
    tensors.map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

#[test]
fn a_refit_makes_the_steps_of_the_best_epoch_on_all_samples() {
    let data = waves();
    let (train, valid) = split(&data, 0.25, 1).unwrap();
    let all = Joined::new(&train, &valid).unwrap();
    // Constant rates, so that the number of steps alone decides.
    let plan = plan();
    let tuner = FineTuner::new(backbone()).plan(plan.clone());
    let once = tuner.clone().fit(&train, &valid).unwrap();
    let twice = tuner.refit(true).fit(&train, &valid).unwrap();
    let refit = twice.report.refit.clone().unwrap();
    assert_eq!((refit.samples, once.report.refit.is_none()), (SAMPLES, true));
    // 27 samples in batches of 8 are four steps an epoch (36 are five).
    let best = once.report.best_epoch.unwrap();
    let epochs = |phase| once.report.epochs[..best].iter().filter(|epoch| epoch.phase == phase).count();
    let expected: Vec<usize> = (1..=2).map(|phase| 4 * epochs(phase)).filter(|steps| *steps > 0).collect();
    assert_eq!(refit.steps, expected);
    assert_eq!(twice.report.valid, once.report.valid, "the accuracy is the first training's");
    let tensors = |fitted: &crate::Fitted| values(fitted.predictor.backbone().tensors().clone().into_iter());
    assert_eq!(tensors(&twice), by_hand(&plan, &expected, &all));
    assert!(tensors(&twice) != tensors(&once) || expected.len() == 1);
    assert!(twice.report.to_string().contains("trained once more on all 36 samples"), "{}", twice.report);
    // The predictor's report says so too.
    assert_eq!(twice.predictor.report().unwrap().unwrap().refit.unwrap().samples, SAMPLES);
    assert!(once.predictor.report().unwrap().unwrap().refit.is_none());
}

#[test]
fn a_schedule_spans_the_same_steps_in_a_refit() {
    use crate::Schedule;
    let data = waves();
    let (train, valid) = split(&data, 0.25, 1).unwrap();
    let phase = Phase::new(4, Optimizer::adamw(1e-2)).freeze(FreezePolicy::Backbone).schedule(Schedule::cosine());
    let plan = Plan::new(vec![phase]).batch_size(8).augment(Augment::none());
    let rates = Arc::new(Mutex::new(vec![]));
    let heard = Arc::clone(&rates);
    let tuner = FineTuner::new(backbone()).head(Head::linear()).plan(plan).refit(true).on_event(move |event| {
        if let Event::Step { lr, .. } = event {
            heard.lock().unwrap().push(*lr);
        }
    });
    let refit = tuner.fit(&train, &valid).unwrap().report.refit.unwrap();
    let rates = rates.lock().unwrap();
    let (first, second) = rates.split_at(16);
    assert_eq!(second.len(), refit.steps[0]);
    assert_eq!(second, &first[..second.len()], "the same rate in the same step");
}

/// A plan without phases: the head is fitted in closed form, once for each fold and once to all samples.
#[test]
fn a_fitted_head_is_validated_and_refitted_too() {
    let data = waves();
    let tuner = FineTuner::new(backbone()).strategy(Strategy::Intermediate);
    let validation = tuner.clone().cross_validate(&data, 3).unwrap();
    assert!(validation.folds.iter().all(|fold| fold.steps.is_empty() && fold.best_epoch == Some(0)));
    let tuned = validation.refit(tuner, &data).unwrap();
    assert!(tuned.report.to_string().contains("fitted once more to all 36 samples"), "{}", tuned.report);
    assert!(tuned.predictor.evaluate(&data).unwrap().top1() >= validation.evaluation.top1());
}

#[test]
fn a_cross_validation_is_refitted_on_all_samples() {
    let data = waves();
    let tuner = FineTuner::new(backbone()).strategy(Strategy::SmallSimilar);
    let validation = tuner.clone().cross_validate(&data, 3).unwrap();
    let tuned = validation.refit(tuner, &data).unwrap();
    let mut steps: Vec<usize> = validation.folds.iter().map(|fold| fold.steps.iter().sum()).collect();
    steps.sort_unstable();
    let refit = tuned.report.refit.as_ref().unwrap();
    assert_eq!((refit.steps.iter().sum::<usize>(), refit.samples), (steps[1], SAMPLES));
    assert_eq!(tuned.report.valid_top1, Some(validation.evaluation.top1()));
    assert_eq!(tuned.report.strategy, Some(Strategy::SmallSimilar));
    assert!(tuned.predictor.evaluate(&data).unwrap().top1() > 0.5);
}
