//! The session as an own loop uses it.

use crate::support::{CPU, all_bits, differing, next};
use crate::training::{Bits, data, plans, saved, tuner};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    Arch, Backbone, BatchNormMode, Error, FreezePolicy, Head, Loss, Optimizer, Schedule, TensorDataset,
};
use std::collections::BTreeMap;

#[test]
fn an_own_loop_gives_the_weights_of_fit() {
    let (train, valid) = data();
    for mut plan in plans() {
        plan.phases.iter_mut().for_each(|p| p.epochs = 1);
        let fitted = tuner(plan.clone()).fit(&train, &valid).unwrap();
        let last = fitted.report.epochs.len();
        let mut session = tuner(plan).session(&train).unwrap();
        let (mut epochs, mut best, mut batches) = (0, None, 0);
        while session.next_phase().unwrap() {
            while session.next_epoch().unwrap() {
                while let Some(batch) = session.next_batch().unwrap() {
                    let logits = session.forward(&batch).unwrap();
                    let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
                    session.backward_step(&loss).unwrap();
                    batches += 1;
                    assert_eq!(session.epoch_done(), batches % 3 == 0, "21 samples by 8");
                }
                epochs += 1;
                if Some(epochs) == fitted.report.best_epoch {
                    best = Some((all_bits(&session.tensors().unwrap()), session.evaluate(&valid).unwrap()));
                }
            }
        }
        assert_eq!(epochs, last);
        let (state, evaluation) = best.unwrap();
        let with_counters = saved(&fitted);
        let kept: Bits = with_counters.into_iter().filter(|(name, _)| state.contains_key(name)).collect();
        assert_eq!(differing(&kept, &state), [""; 0]);
        assert_eq!(Some(evaluation.top1()), fitted.report.valid_top1);
        let finished = session.finish().unwrap();
        assert_eq!(finished.report.epochs.len(), last);
        if fitted.report.best_epoch == Some(last) {
            assert_eq!(differing(&saved(&finished), &saved(&fitted)), [""; 0]);
        }
    }
}

#[test]
fn a_loop_may_leave_batches_out_and_stop_early() {
    let (train, _) = data();
    let mut session = tuner(plans().remove(1)).session(&train).unwrap();
    assert!(session.next_phase().unwrap() && session.next_epoch().unwrap());
    let first = session.next_batch().unwrap().unwrap();
    let _skipped = session.next_batch().unwrap().unwrap();
    let _skipped = session.next_batch().unwrap().unwrap();
    assert!(session.epoch_done(), "it was the epoch's last batch, whatever steps were made");
    for _ in 0..2 {
        assert!(session.next_batch().unwrap().is_none());
        assert_eq!((session.epoch(), session.report().epochs.len()), (Some(1), 0), "it ends nothing");
    }
    assert!(session.next_epoch().unwrap());
    let second = session.next_batch().unwrap().unwrap();
    assert_eq!(session.report().epochs.len(), 1);
    session.step(&first).unwrap();
    session.step(&second).unwrap();
    session.finish().unwrap();
    // Before the first phase there is nothing to step.
    let mut session = tuner(plans().remove(1)).session(&train).unwrap();
    assert!(session.forward(&first).is_err());
    assert!(session.backward_step(&Tensor::new(1f32, &CPU).unwrap()).is_err());
    session.finish().unwrap();
}

#[test]
fn a_batch_with_kept_features_serves_its_own_phase_only() {
    let (train, _) = data();
    let mut session = tuner(plans().remove(2)).session(&train).unwrap();
    let first = next(&mut session).unwrap().unwrap();
    session.step(&first).unwrap();
    // The head's phase has two epochs of three batches.
    for _ in 1..6 {
        let batch = next(&mut session).unwrap().unwrap();
        session.step(&batch).unwrap();
    }
    let second = next(&mut session).unwrap().unwrap();
    let error = session.forward(&first).unwrap_err().to_string();
    assert!(error.contains("another phase"), "{error}");
    session.step(&second).unwrap();
}

#[test]
fn two_forwards_before_two_steps_use_the_weights_of_their_time() {
    let (train, _) = data();
    let gradient_of_second = |step_between: bool| {
        let mut session = tuner(plans().remove(1)).session(&train).unwrap();
        let (a, b) = (next(&mut session).unwrap().unwrap(), next(&mut session).unwrap().unwrap());
        let first = Loss::cross_entropy().forward(&session.forward(&a).unwrap(), &a.targets).unwrap();
        let second = Loss::cross_entropy().forward(&session.forward(&b).unwrap(), &b.targets).unwrap();
        if step_between {
            session.backward_step(&first).unwrap();
        }
        let gradients = session.gradients(&second.backward().unwrap()).unwrap();
        assert_eq!(gradients.len(), session.parameters().unwrap().len());
        all_bits(&gradients.into_iter().collect::<BTreeMap<_, _>>())
    };
    assert_eq!(differing(&gradient_of_second(false), &gradient_of_second(true)), [""; 0]);
}

/// The loop that `fit` is, written with the session's own methods.
#[test]
fn an_own_loop_can_keep_its_best_epoch_and_end_a_phase() {
    let (train, valid) = data();
    let mut plan = plans().remove(2);
    plan.phases.iter_mut().for_each(|phase| phase.epochs = 4);
    plan.patience = Some(1);
    let fitted = tuner(plan.clone()).fit(&train, &valid).unwrap();
    let mut session = tuner(plan.clone()).session(&train).unwrap();
    assert_eq!((session.phase(), session.epoch(), session.lr()), (None, None, None));
    let mut seen = vec![];
    while session.next_phase().unwrap() {
        while session.next_epoch().unwrap() {
            seen.push((session.phase().unwrap(), session.epoch().unwrap()));
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
            }
            let evaluation = session.evaluate(&valid).unwrap();
            let best = session.end_epoch(&evaluation).unwrap();
            assert_eq!(best, session.report().epochs.last().unwrap().best);
        }
    }
    assert!(!session.next_phase().unwrap() && !session.next_epoch().unwrap(), "the plan is done");
    assert_eq!(seen, fitted.report.epochs.iter().map(|e| (e.phase, e.epoch)).collect::<Vec<_>>());
    session.restore_best().unwrap();
    let own = session.finish().unwrap();
    assert_eq!(own.report.best_epoch, fitted.report.best_epoch);
    assert_eq!(own.report.valid_top1, fitted.report.valid_top1);
    assert_eq!(differing(&saved(&own), &saved(&fitted)), [""; 0]);

    // Without keeping, the last step's weights are returned, and the report shows it.
    let mut session = tuner(plan).session(&train).unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    session.step(&batch).unwrap();
    session.end_phase().unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    assert_eq!(
        (session.phase(), session.epoch()),
        (Some(2), Some(1)),
        "the second phase, after one batch of the first"
    );
    session.step(&batch).unwrap();
    assert!(session.restore_best().unwrap_err().to_string().contains("no epoch was validated"));
    assert!(session.end_epoch(&own.predictor.evaluate(&valid).unwrap()).is_err(), "no epoch is in progress");
    let last = all_bits(&session.tensors().unwrap());
    let finished = session.finish().unwrap();
    assert_eq!(finished.report.best_epoch, None);
    let kept: Bits = saved(&finished).into_iter().filter(|(name, _)| last.contains_key(name)).collect();
    assert_eq!(differing(&kept, &last), [""; 0]);
}

/// The best epoch may have had other tensors frozen than the phase in progress.
#[test]
fn the_best_epoch_of_an_earlier_phase_comes_back_in_the_midst_of_a_later_one() {
    let (train, valid) = data();
    let all = crate::training::phase(FreezePolicy::Nothing, BatchNormMode::Train, 1);
    let later = crate::training::phase(FreezePolicy::First(7), BatchNormMode::FrozenStats, 3);
    let plan = crate::support::plan(vec![all, later], 8);
    let mut session = tuner(plan.clone()).session(&train).unwrap();
    let mut best = None;
    while let Some(batch) = next(&mut session).unwrap() {
        session.step(&batch).unwrap();
        if session.phase() == Some(2) {
            break;
        }
        if session.epoch_done() {
            let evaluation = session.evaluate(&valid).unwrap();
            session.end_epoch(&evaluation).unwrap();
            best = Some(all_bits(&session.tensors().unwrap()));
        }
    }
    session.restore_best().unwrap();
    assert_eq!((session.phase(), session.report().best_epoch), (None, Some(1)));
    let restored = all_bits(&session.tensors().unwrap());
    assert_eq!(differing(&restored, &best.unwrap()), [""; 0]);
    let finished = session.finish().unwrap();
    assert_eq!((finished.report.best_epoch, finished.report.samples.valid), (Some(1), Some(12)));

    // Training on after it: the weights are of no epoch any more, and the report shows it.
    let mut plan = plan;
    plan.phases.push(plan.phases[1].clone());
    let mut session = tuner(plan).session(&train).unwrap();
    while let Some(batch) = next(&mut session).unwrap() {
        session.step(&batch).unwrap();
        if session.epoch_done() {
            let evaluation = session.evaluate(&valid).unwrap();
            session.end_epoch(&evaluation).unwrap();
            if session.report().epochs.len() == 2 {
                session.restore_best().unwrap();
                assert!(session.report().best_epoch.is_some());
            }
        }
    }
    let report = session.finish().unwrap().report;
    assert_eq!((report.best_epoch, report.valid_top1, report.valid), (None, None, None));
}

/// Gradients of several batches before one step: the schedule, the rate of images and the masks follow the batches.
#[test]
fn gradients_may_gather_over_batches() {
    let (train, _) = data();
    let mut plan = plans().remove(1);
    plan.phases[0].epochs = 4;
    plan.phases[0].schedule = Schedule::linear();
    let full = plan.phases[0].optimizer.lr;
    let mut session = tuner(plan).session(&train).unwrap();
    let mut rates = vec![];
    let mut gathered: Option<Tensor> = None;
    while let Some(batch) = next(&mut session).unwrap() {
        rates.push(session.lr().unwrap() / full);
        let logits = session.forward(&batch).unwrap();
        let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
        gathered = Some(match gathered.take() {
            Some(sum) => (sum + loss).unwrap(),
            None => loss,
        });
        if session.epoch_done() {
            session.backward_step(&(gathered.take().unwrap() / 3.0).unwrap()).unwrap();
        }
    }
    // Four epochs of three batches, one step each.
    let expected: Vec<f64> = (0..12).map(|batch| 1.0 - f64::from(batch) / 12.0).collect();
    assert!(rates.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
    let report = session.finish().unwrap().report;
    for epoch in &report.epochs {
        assert!((epoch.images_per_second * epoch.seconds / 21.0 - 1.0).abs() < 1e-6, "all 21 samples count");
    }
}

#[test]
fn gradients_can_be_looked_at_before_the_step() {
    let (train, _) = data();
    let run = |with_store: bool| {
        let mut session = tuner(plans().remove(1)).session(&train).unwrap();
        let batch = next(&mut session).unwrap().unwrap();
        let logits = session.forward(&batch).unwrap();
        let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
        if with_store {
            let gradients = session.gradients(&loss.backward().unwrap()).unwrap();
            let names = |of: &[(String, Tensor)]| of.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&gradients), names(&session.parameters().unwrap()), "every parameter has a gradient");
            let square =
                |(_, g): &(String, Tensor)| g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().map(f64::from);
            let norm = gradients.iter().map(|g| square(g).unwrap()).sum::<f64>().sqrt();
            let told = session.step_with(gradients, 0.5).unwrap();
            assert!((told / norm - 1.0).abs() < 1e-5, "{told} {norm}");
            assert!(matches!(session.step_with(vec![], f64::NAN), Err(Error::Diverged { .. })));
        } else {
            session.backward_step(&loss).unwrap();
        }
        all_bits(&session.tensors().unwrap())
    };
    assert_eq!(differing(&run(true), &run(false)), [""; 0]);
}

#[test]
fn gradients_can_be_changed_before_the_step_and_parameters_are_copies() {
    let (train, _) = data();
    let mut plan = plans().remove(1);
    plan.phases[0].optimizer = Optimizer::sgd(0.1);
    let mut session = tuner(plan).session(&train).unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    let loss = Loss::cross_entropy().forward(&session.forward(&batch).unwrap(), &batch.targets).unwrap();
    let mut gradients = session.gradients(&loss.backward().unwrap()).unwrap();
    for (name, gradient) in &mut gradients {
        let factor = if name == "linear.bias" { 1.0 } else { 0.0 };
        *gradient = (&*gradient * factor).unwrap();
    }
    let wrong = |name: &str, gradient: Tensor| vec![(name.to_string(), gradient)];
    let one = Tensor::ones(1, candle_finetune::candle_core::DType::F32, &CPU).unwrap();
    for (name, known) in [("linear.nothing", "linear.weight"), ("linear.bias", "[3]")] {
        let error = session.step_with(wrong(name, one.clone()), 0.5).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(known), "{error}");
    }
    let parameters = session.parameters().unwrap();
    let before = session.tensors().unwrap();
    session.step_with(gradients, 0.5).unwrap();
    let changed = differing(&all_bits(&before), &all_bits(&session.tensors().unwrap()));
    assert_eq!(changed, ["linear.bias"], "the only gradient that was left");
    // Tensors returned before the step still hold the old values.
    let before: BTreeMap<_, _> =
        before.into_iter().filter(|(name, _)| parameters.iter().any(|p| p.0 == *name)).collect();
    assert_eq!(differing(&all_bits(&before), &all_bits(&parameters.into_iter().collect::<BTreeMap<_, _>>())), [""; 0]);
}

/// The error of a call out of order names the missing one.
#[test]
fn calls_out_of_order_name_the_one_that_is_missing() {
    let (train, valid) = data();
    let mut session = tuner(plans().remove(1)).session(&train).unwrap();
    let names = |error: Error, what: &str| assert!(error.to_string().contains(what), "{error}");
    names(session.next_batch().err().unwrap(), "next_phase");
    names(session.next_epoch().err().unwrap(), "next_phase");
    assert!(session.next_phase().unwrap());
    names(session.next_batch().err().unwrap(), "next_epoch");
    let evaluation = session.evaluate(&valid).unwrap();
    names(session.end_epoch(&evaluation).err().unwrap(), "no epoch");
    assert!(session.next_epoch().unwrap());
    // An epoch without a batch would never end.
    names(session.end_epoch(&evaluation).err().unwrap(), "no batch");
    names(session.next_epoch().err().unwrap(), "no batch");
    session.next_batch().unwrap().unwrap();
    session.end_phase().unwrap();
    names(session.next_batch().err().unwrap(), "next_phase");
    assert!(!session.next_epoch().unwrap() && !session.next_phase().unwrap());
}

#[test]
fn each_forward_has_its_own_mask_and_evaluation_none() {
    let (train, _) = data();
    let mut session = tuner(plans().remove(0)).head(Head::linear().dropout(0.5)).session(&train).unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (first, second) = (bits(session.forward(&batch).unwrap()), bits(session.forward(&batch).unwrap()));
    assert_ne!(first, second);
    let (a, b) = (bits(session.logits(&batch).unwrap()), bits(session.logits(&batch).unwrap()));
    assert!(a == b && a != first);
}

/// Features of frozen blocks are computed once for an own loop's validation too.
#[test]
fn evaluation_uses_the_cached_features() {
    let (train, valid) = data();
    let computed = std::sync::Arc::new(std::sync::Mutex::new(vec![]));
    let log = computed.clone();
    let tuner = tuner(plans().remove(0)).on_event(move |event| {
        if let candle_finetune::Event::Features { done, total } = event
            && done == total
        {
            log.lock().unwrap().push(*total);
        }
    });
    let mut session = tuner.session(&train).unwrap();
    let mut last = None;
    while let Some(batch) = next(&mut session).unwrap() {
        session.step(&batch).unwrap();
        if session.epoch_done() {
            last = Some(session.evaluate(&valid).unwrap());
        }
    }
    assert_eq!(*computed.lock().unwrap(), [21, 12], "training and validation data, once each for two epochs");
    // The same as without: after the phase there is no cache.
    let finished = session.finish().unwrap();
    assert_eq!(Some(finished.predictor.evaluate(&valid).unwrap()), last);
}

/// Weights and inputs so large that the network overflows.
#[test]
fn what_is_not_finite_is_an_error_and_never_a_class() {
    let (train, valid) = data();
    // Finite weights whose features overflow: told by sample, before anything is trained.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.safetensors");
    let huge =
        |(name, t): (&String, &Tensor)| (name.clone(), if t.rank() == 4 { (t * 1e30).unwrap() } else { t.clone() });
    crate::support::write(&path, &crate::training::backbone().tensors().iter().map(huge).collect());
    let backbone = Backbone::from_file(Arch::CIFAR_RESNET20, &path, &CPU).unwrap();
    let tuner = |backbone: &Backbone| candle_finetune::FineTuner::new(backbone.clone()).plan(plans().remove(0));
    let error = tuner(&backbone).fit(&train, &valid).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { what } if what.contains("sample")), "{error}");

    // A rate at which training explodes: no epoch is worth keeping, or one with finite numbers is kept.
    let mut wild = plans().remove(1);
    wild.phases[0].optimizer = Optimizer::sgd(1e30);
    match crate::training::tuner(wild).fit(&train, &valid) {
        Err(error) => assert!(matches!(error, Error::Diverged(_)), "{error}"),
        Ok(fitted) => assert!(fitted.report.valid.is_some_and(|v| v.loss.is_finite() && v.not_finite == 0)),
    }
    // After a sound first phase, its best epoch is kept, and the report has a warning.
    let mut plan = plans().remove(2);
    plan.phases[1].optimizer = Optimizer::sgd(1e30);
    let fitted = crate::training::tuner(plan).fit(&train, &valid).unwrap();
    assert!(fitted.report.best_epoch.is_some_and(|best| best <= 2), "{:?}", fitted.report.best_epoch);
    let stopped = fitted.report.stopped.as_ref().is_some_and(|stopped| stopped.contains("stopped in phase 2"));
    assert!(stopped || fitted.report.epochs.len() == 4, "{:?}", fitted.report.stopped);
    assert!(fitted.predictor.evaluate(&valid).unwrap().loss.is_finite());

    // Images that overflow count as wrong, of no class; predicting them is an error.
    let images = (crate::support::images(2, 3, 32, 1) * 1e38).unwrap();
    let odd = TensorDataset::new(images, vec![0, 0], crate::support::names_of(&valid)).unwrap();
    let evaluation = fitted.predictor.evaluate(&odd).unwrap();
    assert_eq!((evaluation.correct, evaluation.not_finite, evaluation.total), (0, 2, 2));
    assert!(evaluation.loss.is_nan() && evaluation.confusion.iter().count() == 0);
}
