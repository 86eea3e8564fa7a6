//! Lists of labels (multi-label): training, thresholds, prediction and figures.

use crate::regularisation::last_blocks;
use crate::support::{CPU, class_names, images};
use crate::training::backbone;
use candle_finetune::{
    Advisor, Augment, Backbone, ClassWeights, Dataset, Evaluation, Event, FineTuner, HeadStart, Loss, Metric,
    Optimizer, Plan, Predictor, Sample, Sampling, Strategy, Target, Targets, Task, TensorDataset, candle_core::Tensor,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Images with a bright left half, a bright right half, both or neither.
fn labelled(n: usize, seed: u64) -> TensorDataset {
    let noise = images(n, 3, 32, seed);
    let mut lights = vec![];
    let mut targets = vec![];
    for i in 0..n {
        let (left, right) = (i % 2 == 0, i % 3 == 0);
        for _ in 0..3 * 32 {
            lights.extend((0..32).map(|x| if (x < 16 && left) || (x >= 16 && right) { 1.5f32 } else { 0.0 }));
        }
        let labels = [(0, left), (2, right)].into_iter().filter(|(_, on)| *on).map(|(label, _)| label);
        targets.push(Target::Labels(labels.collect()));
    }
    let lights = Tensor::from_vec(lights, (n, 3, 32, 32), &CPU).unwrap();
    let names = ["left", "never", "right"].map(String::from).to_vec();
    TensorDataset::from_targets((noise * 0.5).unwrap().add(&lights).unwrap(), targets, names).unwrap()
}

fn tuner_of(plan: &candle_finetune::Plan) -> FineTuner {
    FineTuner::new(Backbone::embedded(&CPU).unwrap()).plan(plan.clone()).seed(1)
}

#[test]
fn lists_of_labels_are_learned_saved_and_predicted() {
    let (train, valid, test) = (labelled(60, 1), labelled(30, 2), labelled(30, 3));
    let backbone = Backbone::embedded(&CPU).unwrap();
    let mut plan = Strategy::LargeSimilar.plan(&backbone, 60).batch_size(10);
    plan.phases.iter_mut().for_each(|phase| phase.epochs = 6);
    plan = plan.augment(Augment::none());
    let tuner = FineTuner::new(backbone).plan(plan.clone()).seed(1);
    let mut fitted = tuner.fit(&train, &valid).unwrap();
    assert_eq!((fitted.report.metric, fitted.predictor.task()), (Metric::AveragePrecision, Task::Labels));
    let evaluation = fitted.test(&test).unwrap();
    assert!(evaluation.macro_f1() > 0.9 && evaluation.top1() > 0.8, "{evaluation}");
    // The validation's figures are those of the predictor that came out: at its thresholds.
    let kept = fitted.report.valid.clone().unwrap();
    let again = fitted.predictor.evaluate(&valid).unwrap();
    assert_eq!((kept.correct, kept.macro_f1(), kept.loss), (again.correct, again.macro_f1(), again.loss));
    let scores = evaluation.per_class();
    assert_eq!(scores.iter().map(|c| (c.class, c.samples)).collect::<Vec<_>>(), [(0, 15), (2, 10)]);
    assert_eq!(evaluation.confusion.samples(), BTreeMap::new());
    let thresholds = fitted.predictor.thresholds().unwrap();
    assert_eq!(thresholds[1], 0.5, "no sample has it");
    assert_eq!(fitted.report.thresholds, Some(thresholds.clone()));

    // Thresholds are those of the weights that they were chosen for.
    let mut session = tuner_of(&plan).session(&train).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    session.step(&batch).unwrap();
    let validated = session.evaluate(&valid).unwrap();
    session.end_epoch(&validated).unwrap();
    session.restore_best().unwrap();
    assert!(session.report().thresholds.is_some());
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    session.step(&batch).unwrap();
    assert_eq!(session.finish().unwrap().predictor.thresholds().unwrap(), [0.5; 3]);

    // Saved and loaded, it predicts the same.
    let file = tempfile::NamedTempFile::new().unwrap();
    fitted.predictor.save(file.path()).unwrap();
    let loaded = Predictor::from_file(file.path(), &CPU).unwrap();
    assert_eq!((loaded.task(), loaded.thresholds()), (Task::Labels, Some(thresholds.clone())));
    assert_eq!(loaded.evaluate(&test).unwrap(), evaluation);
    let report = loaded.report().unwrap().unwrap();
    assert_eq!(report.thresholds, Some(thresholds.clone()));
    let image = candle_finetune::Image::new(32, 32, 3, vec![128; 32 * 32 * 3]).unwrap();
    let prediction = loaded.predict(&image).unwrap();
    let reached = |(p, t): (&f32, &f32)| p >= t;
    let expected = prediction.probabilities.iter().zip(&thresholds).map(reached).collect::<Vec<_>>();
    let classes: Vec<u32> = (0..3u32).filter(|&c| expected[c as usize]).collect();
    assert_eq!(prediction.classes, classes);
    assert!((prediction.probabilities.iter().sum::<f32>() - 1.0).abs() > 1e-3, "sigmoids do not add up to 1");

    // Of another kind of targets nothing can be said.
    let classes = TensorDataset::new(images(2, 3, 32, 1), vec![0, 1], loaded.labels().to_vec()).unwrap();
    let error = loaded.evaluate(&classes).unwrap_err().to_string();
    assert!(error.contains("one class per sample"), "{error}");
    assert!(loaded.calibrated(&classes).is_err() && loaded.mistakes(&classes, 3).is_err());
}

/// A network that was trained a little, so that it is wrong for some images.
fn unsure() -> Predictor {
    let plan = last_blocks(Optimizer::adamw(2e-3));
    tuner_of(&plan).fit(&labelled(24, 1), &labelled(30, 2)).unwrap().predictor
}

/// A label that few samples have, which a network is never sure of at first: at a half nothing would be predicted.
#[test]
fn f1_of_a_validation_is_that_at_the_best_thresholds() {
    let of = |i: usize| Target::Labels(if i.is_multiple_of(10) { vec![0] } else { vec![] });
    let data = |seed| {
        let targets = (0..40).map(of).collect();
        TensorDataset::from_targets(images(40, 3, 32, seed), targets, vec!["rare".into(), "none".into()]).unwrap()
    };
    let plan = last_blocks(Optimizer::sgd(1e-4)).watch(Metric::MacroF1).patience(3);
    let fitted = tuner_of(&plan).metric(Metric::MacroF1).fit(&data(1), &data(2)).unwrap();
    let report = &fitted.report;
    assert!(report.epochs.iter().all(|epoch| epoch.valid_metric.unwrap() > 0.1), "{report}");
    let valid = fitted.predictor.evaluate(&data(2)).unwrap();
    assert_eq!(report.valid.as_ref().unwrap().macro_f1(), valid.macro_f1());
    // At a half there is none.
    let mut scores = candle_finetune::Scores::new(Task::Labels);
    let low = Tensor::full(-3f32, (40, 2), &CPU).unwrap();
    scores
        .add(&low, &Targets::Labels(Tensor::ones((40, 2), candle_finetune::candle_core::DType::F32, &CPU).unwrap()))
        .unwrap();
    assert_eq!(scores.evaluation().macro_f1(), 0.0);
    assert!(!report.to_string().contains("largest class"));
}

#[test]
fn mistakes_are_the_samples_with_a_wrong_label() {
    let (predictor, data) = (unsure(), labelled(45, 3));
    let evaluation = predictor.evaluate(&data).unwrap();
    let found = predictor.mistakes(&data, usize::MAX).unwrap();
    assert!(found.len() > 3 && found.len() == evaluation.total - evaluation.correct, "{evaluation}");
    assert!(found.is_sorted_by(|a, b| a.probability >= b.probability));
    let thresholds = predictor.thresholds().unwrap();
    let (mut missed, mut extra) = (0, 0);
    for mistake in &found {
        let i = mistake.index;
        assert!(!evaluation.outcomes()[i]);
        let Sample::Tensor(image) = data.sample(i).unwrap() else { panic!("no tensor") };
        let logits = predictor.logits(&image.unsqueeze(0).unwrap()).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
        let p: Vec<f32> = logits.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect();
        let predicted: Vec<u32> = (0..3u32).filter(|&c| p[c as usize] >= thresholds[c as usize]).collect();
        assert_eq!((&mistake.predicted, Target::Labels(mistake.truth.clone())), (&predicted, data.info(i).target));
        // The probability that each wrong label gets, as predicted or not.
        let wrong = (0..3u32).filter(|c| predicted.contains(c) != mistake.truth.contains(c));
        let of = |c: u32| if predicted.contains(&c) { p[c as usize] } else { 1.0 - p[c as usize] };
        let most = wrong.clone().map(of).fold(0f32, f32::max);
        assert!(wrong.clone().any(|c| c == mistake.wrong) && (of(mistake.wrong) - most).abs() < 1e-5);
        assert!((mistake.probability - most).abs() < 1e-5 && (mistake.of_truth - (1.0 - most)).abs() < 1e-5);
        *(if predicted.contains(&mistake.wrong) { &mut extra } else { &mut missed }) += 1;
    }
    assert!(missed + extra == found.len() && missed.min(extra) < found.len());
    assert_eq!(predictor.mistakes(&data, 2).unwrap(), found[..2]);
}

#[test]
fn calibrated_labels_have_less_loss_and_the_same_predictions() {
    let (predictor, valid) = (unsure(), labelled(45, 3));
    let (calibrated, temperature) = predictor.calibrated(&valid).unwrap();
    let (before, after) = (predictor.evaluate(&valid).unwrap(), calibrated.evaluate(&valid).unwrap());
    assert!(after.loss < before.loss - 1e-4, "{} {} at {temperature}", before.loss, after.loss);
    assert_eq!((before.outcomes(), calibrated.task()), (after.outcomes(), Task::Labels));
    let (old, new) = (predictor.thresholds().unwrap(), calibrated.thresholds().unwrap());
    assert_eq!(calibrated.report().unwrap().unwrap().thresholds, Some(new.clone()));
    for (old, new) in old.iter().zip(&new) {
        let logit = |p: f32| f64::from(p / (1.0 - p)).ln();
        assert!((logit(*new) * temperature - logit(*old)).abs() < 1e-4, "{old} {new}");
    }
    let (_, again) = calibrated.calibrated(&valid).unwrap();
    assert!((again - 1.0).abs() < 1e-3, "{again}");
    let file = tempfile::NamedTempFile::new().unwrap();
    calibrated.save(file.path()).unwrap();
    assert_eq!(Predictor::from_file(file.path(), &CPU).unwrap().evaluate(&valid).unwrap(), after);
}

/// The advisor and heads in closed form.
#[test]
fn lists_of_labels_are_measured_and_heads_fitted_to_them() {
    let (train, valid, test) = (labelled(60, 1), labelled(30, 2), labelled(45, 3));
    let backbone = Backbone::embedded(&CPU).unwrap();
    let advice = Advisor::new(&backbone).advise(&train).unwrap();
    // Of 60 images 20 have no label and 10 both, which count under the rarer one. No image has the third label.
    let size = &advice.evidence.size;
    assert_eq!((advice.evidence.task, size.samples, size.classes), (Task::Labels, 60, 3));
    assert_eq!((size.least, size.most, advice.evidence.learning_curve.len()), (20, 20, 3));
    assert!(advice.to_string().contains("under its rarest label") && advice.warnings.is_empty(), "{advice}");
    assert!(advice.evidence.stages.iter().any(|stage| stage.grid.ridge > 0.9), "{advice}");

    // A head alone in closed form: its features tell left from right.
    for plan in [Plan::new(vec![]).head_start(HeadStart::Probe), Strategy::Intermediate.plan(&backbone, 60)] {
        let mut fitted = FineTuner::new(backbone.clone()).plan(plan.clone()).fit(&train, &valid).unwrap();
        let fit = fitted.report.head_fit.clone().unwrap();
        assert!(fit.samples == 60 && fit.top1 > 0.7 && fit.temperature > 1.0, "{fit:?}");
        let evaluation = fitted.test(&test).unwrap();
        assert!(evaluation.top1() > 0.7 && evaluation.macro_f1() > 0.8, "{plan}{evaluation}");
        assert_eq!((fitted.predictor.task(), evaluation.task()), (Task::Labels, Task::Labels));
        // Unscaled answers near 0 and 1 would be logits with a loss above a half.
        assert!(evaluation.loss < 0.4, "{}", evaluation.loss);
    }
    // Without a strategy the advisor is asked.
    let fitted = FineTuner::new(backbone.clone()).fit(&train, &valid).unwrap();
    assert_eq!(fitted.report.strategy, Some(advice.strategy));
    // One label alone is to have or not.
    let one: Vec<Target> = (0..24).map(|i| Target::Labels(if i % 3 == 0 { vec![0] } else { vec![] })).collect();
    let one = TensorDataset::from_targets(images(24, 3, 32, 1), one, vec!["hat".into()]).unwrap();
    assert_eq!(Advisor::new(&backbone).advise(&one).unwrap().evidence.size.classes, 2);
    let fitted = FineTuner::new(backbone).plan(last_blocks(Optimizer::adamw(1e-3))).fit(&one, &one).unwrap();
    assert_eq!((fitted.report.valid.unwrap().total, fitted.predictor.labels().len()), (24, 1));
}

#[test]
fn what_cannot_be_validated_is_refused_before_the_training() {
    let (train, valid) = (labelled(12, 1), labelled(6, 2));
    let classes = TensorDataset::new(images(6, 3, 32, 1), vec![0, 1, 2, 0, 1, 2], train.classes().to_vec()).unwrap();
    let plan = || last_blocks(Optimizer::sgd(0.01));
    let refused = |tuner: FineTuner, train: &TensorDataset, valid: &TensorDataset, words: &[&str]| {
        let steps = Arc::new(AtomicUsize::new(0));
        let made = Arc::clone(&steps);
        let tuner = tuner.on_event(move |event| {
            made.fetch_add(usize::from(matches!(event, Event::Step { .. })), Ordering::Relaxed);
        });
        let error = tuner.fit(train, valid).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert_eq!(steps.load(Ordering::Relaxed), 0, "{error}");
    };
    let tuner = |plan| FineTuner::new(backbone()).plan(plan);
    refused(tuner(plan()), &train, &classes, &["validation data: has one class per sample", "lists of labels"]);
    refused(tuner(plan()), &classes, &valid, &["validation data: has lists of labels", "one class per sample"]);
    refused(tuner(plan()).metric(Metric::Top5), &train, &valid, &["metric: top5 has no value for lists of labels"]);
    let watched = || plan().watch(Metric::CalibrationError);
    refused(tuner(watched().patience(2)), &train, &valid, &["plan: watch: calibration_error has no value"]);
    // Nothing follows it here.
    tuner(watched()).fit(&train, &valid).unwrap();
    // A single class in the validation has no ROC curve, which shows after an epoch.
    let one = TensorDataset::new(images(6, 3, 32, 1), vec![0; 6], train.classes().to_vec()).unwrap();
    let error = tuner(plan().watch(Metric::RocAuc).patience(2)).fit(&classes, &one).unwrap_err().to_string();
    assert!(error.contains("plan: watch: roc_auc has no value") && error.contains("several classes"), "{error}");
}

#[test]
fn lists_of_labels_train_with_everything_else() {
    let (train, valid) = (labelled(24, 1), labelled(12, 2));
    let loss = Loss::cross_entropy().label_smoothing(0.1).focal(1.5).class_weights(ClassWeights::Balanced);
    let mut plan = last_blocks(Optimizer::adamw(1e-3)).loss(loss).sampling(Sampling::Balanced).ema(0.9).grad_accum(2);
    plan = plan.augment(Augment::none().mixup(0.3));
    let tuner = FineTuner::new(backbone()).plan(plan.clone()).refit(true);
    let fitted = tuner.fit(&train, &valid).unwrap();
    assert!(fitted.report.refit.is_some() && fitted.predictor.thresholds().is_some());
    let folds = FineTuner::new(backbone()).plan(plan).cross_validate(&train, 3).unwrap();
    assert_eq!((folds.evaluation.total, folds.evaluation.task()), (24, Task::Labels));
    // A mixture of targets is refused.
    let targets = vec![Target::Labels(vec![0]), Target::Class(1)];
    let mixed = TensorDataset::from_targets(images(2, 3, 32, 1), targets, class_names(2)).unwrap();
    let error = FineTuner::new(backbone()).plan(last_blocks(Optimizer::sgd(0.1))).session(&mixed).err().unwrap();
    assert!(error.to_string().contains("list of labels"), "{error}");
}

#[test]
fn evaluations_of_labels_have_scikit_learns_figures() {
    // tests/reference/metrics.py writes the fixture.
    let text = include_str!("fixtures/metrics.json");
    let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
    let all = &fixture["labels"];
    let rows = |name: &str| -> Vec<f32> {
        let rows = all[name].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
        rows.map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let (logits, truths) = (rows("logits"), rows("truths"));
    let n = logits.len() / 4;
    let scored = |parts: &[std::ops::Range<usize>]| -> Evaluation {
        let mut scores = candle_finetune::Scores::new(Task::Labels);
        for range in parts {
            let part =
                |v: &[f32]| Tensor::from_slice(&v[4 * range.start..4 * range.end], (range.len(), 4), &CPU).unwrap();
            scores.add(&part(&logits), &Targets::Labels(part(&truths))).unwrap();
        }
        scores.evaluation()
    };
    // All at once, and from two parts.
    #[allow(clippy::single_range_in_vec_init)] // one part
    for e in [scored(&[0..n]), scored(&[0..7, 7..n])] {
        let close = |name: &str, value: f64| {
            let expected = all[name].as_f64().unwrap();
            assert!((value - expected).abs() < 1e-6, "{name}: {value}, not {expected}");
        };
        close("exact_match", e.top1());
        close("loss", e.loss);
        close("macro_f1", e.macro_f1());
        close("weighted_f1", e.weighted_f1());
        close("macro_precision", e.macro_precision());
        close("macro_recall", e.balanced_accuracy());
        close("roc_auc", e.roc_auc().unwrap());
        close("average_precision", e.average_precision().unwrap());
        assert!(e.calibration_error().is_nan() && e.top_k(1).is_none());
        for (found, expected) in e.best_thresholds().unwrap().iter().zip(all["best_f1"].as_array().unwrap()) {
            // The F1 at the threshold is the highest of any threshold.
            let class = all["best_f1"].as_array().unwrap().iter().position(|v| v == expected).unwrap();
            let taken = (0..n).filter(|i| 1.0 / (1.0 + (-logits[4 * i + class]).exp()) >= *found);
            let taken: Vec<usize> = taken.collect();
            let hits = taken.iter().filter(|&&i| truths[4 * i + class] > 0.5).count();
            let positives = (0..n).filter(|i| truths[4 * i + class] > 0.5).count();
            let f1 = 2.0 * hits as f64 / (taken.len() + positives) as f64;
            assert!((f1 - expected.as_f64().unwrap()).abs() < 1e-9);
        }
        // A report keeps the figures.
        let back: Evaluation = serde_json::from_str(&serde_json::to_string(&e).unwrap()).unwrap();
        assert_eq!(
            (back.task(), back.roc_auc(), back.best_thresholds()),
            (Task::Labels, e.roc_auc(), e.best_thresholds())
        );
        assert_eq!(back.to_string(), e.to_string());
    }
}
