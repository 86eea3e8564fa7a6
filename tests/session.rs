//! The session in a custom training loop.

use crate::support::{CPU, all_bits, differing};
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
        while let Some(batch) = session.next_batch().unwrap() {
            let logits = session.forward(&batch).unwrap();
            let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
            session.backward_step(&loss).unwrap();
            batches += 1;
            assert_eq!(session.epoch_done(), batches % 3 == 0, "21 samples by 8");
            if session.epoch_done() {
                epochs += 1;
                if Some(epochs) == fitted.report.best_epoch {
                    best = Some((all_bits(&session.state().unwrap()), session.evaluate(&valid).unwrap()));
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
    let first = session.next_batch().unwrap().unwrap();
    let _skipped = session.next_batch().unwrap().unwrap();
    let _skipped = session.next_batch().unwrap().unwrap();
    assert!(session.epoch_done(), "it was the epoch's last batch, whatever steps were made");
    let second = session.next_batch().unwrap().unwrap();
    assert_eq!(session.report().epochs.len(), 1);
    session.step(&first).unwrap();
    session.step(&second).unwrap();
    session.finish().unwrap();
    // Before the first batch, a step is an error.
    let mut session = tuner(plans().remove(1)).session(&train).unwrap();
    assert!(session.forward(&first).is_err());
    assert!(session.backward_step(&Tensor::new(1f32, &CPU).unwrap()).is_err());
    session.finish().unwrap();
}

#[test]
fn a_batch_with_kept_features_serves_its_own_phase_only() {
    let (train, _) = data();
    let mut session = tuner(plans().remove(2)).session(&train).unwrap();
    let first = session.next_batch().unwrap().unwrap();
    session.step(&first).unwrap();
    // The head's phase has two epochs of three batches.
    for _ in 1..6 {
        let batch = session.next_batch().unwrap().unwrap();
        session.step(&batch).unwrap();
    }
    let second = session.next_batch().unwrap().unwrap();
    let error = session.forward(&first).unwrap_err().to_string();
    assert!(error.contains("another phase"), "{error}");
    session.step(&second).unwrap();
}

#[test]
fn two_forwards_before_two_steps_use_the_weights_of_their_time() {
    let (train, _) = data();
    let gradient_of_second = |step_between: bool| {
        let mut session = tuner(plans().remove(1)).session(&train).unwrap();
        let (a, b) = (session.next_batch().unwrap().unwrap(), session.next_batch().unwrap().unwrap());
        let first = Loss::cross_entropy().forward(&session.forward(&a).unwrap(), &a.targets).unwrap();
        let second = Loss::cross_entropy().forward(&session.forward(&b).unwrap(), &b.targets).unwrap();
        if step_between {
            session.backward_step(&first).unwrap();
        }
        let store = second.backward().unwrap();
        let parameters = session.parameters();
        let gradients = parameters.iter().map(|(name, p)| (name.clone(), store.get(p).unwrap().clone()));
        all_bits(&gradients.collect::<BTreeMap<_, _>>())
    };
    assert_eq!(differing(&gradient_of_second(false), &gradient_of_second(true)), [""; 0]);
}

/// The loop of `fit`, written with the session's public methods.
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
    while let Some(batch) = session.next_batch().unwrap() {
        seen.push((session.phase().unwrap(), session.epoch().unwrap()));
        session.step(&batch).unwrap();
        if session.epoch_done() {
            let evaluation = session.evaluate(&valid).unwrap();
            let best = session.end_epoch(&evaluation).unwrap();
            assert_eq!(best, session.report().epochs.last().unwrap().best);
        }
    }
    seen.dedup();
    assert_eq!(seen, fitted.report.epochs.iter().map(|e| (e.phase, e.epoch)).collect::<Vec<_>>());
    session.restore_best().unwrap();
    let own = session.finish().unwrap();
    assert_eq!(own.report.best_epoch, fitted.report.best_epoch);
    assert_eq!(own.report.valid_top1, fitted.report.valid_top1);
    assert_eq!(differing(&saved(&own), &saved(&fitted)), [""; 0]);

    // Without `end_epoch`, the result has the last step's weights, and the report says so.
    let mut session = tuner(plan).session(&train).unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    session.step(&batch).unwrap();
    session.end_phase().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    assert_eq!(
        (session.phase(), session.epoch()),
        (Some(2), Some(1)),
        "the second phase, after one batch of the first"
    );
    session.step(&batch).unwrap();
    assert!(session.restore_best().unwrap_err().to_string().contains("no epoch was validated"));
    assert!(session.end_epoch(&own.predictor.evaluate(&valid).unwrap()).is_err(), "no epoch is in progress");
    let last = all_bits(&session.state().unwrap());
    let finished = session.finish().unwrap();
    assert_eq!(finished.report.best_epoch, None);
    let kept: Bits = saved(&finished).into_iter().filter(|(name, _)| last.contains_key(name)).collect();
    assert_eq!(differing(&kept, &last), [""; 0]);
}

/// In the best epoch, other tensors may have been frozen than in the current phase.
#[test]
fn the_best_epoch_of_an_earlier_phase_comes_back_in_the_midst_of_a_later_one() {
    let (train, valid) = data();
    let all = crate::training::phase(FreezePolicy::Nothing, BatchNormMode::Train, 1);
    let later = crate::training::phase(FreezePolicy::First(7), BatchNormMode::FrozenStats, 3);
    let plan = crate::support::plan(vec![all, later], 8);
    let mut session = tuner(plan.clone()).session(&train).unwrap();
    let mut best = None;
    while let Some(batch) = session.next_batch().unwrap() {
        session.step(&batch).unwrap();
        if session.phase() == Some(2) {
            break;
        }
        if session.epoch_done() {
            let evaluation = session.evaluate(&valid).unwrap();
            session.end_epoch(&evaluation).unwrap();
            best = Some(all_bits(&session.state().unwrap()));
        }
    }
    session.restore_best().unwrap();
    assert_eq!((session.phase(), session.report().best_epoch), (None, Some(1)));
    let restored = all_bits(&session.state().unwrap());
    assert_eq!(differing(&restored, &best.unwrap()), [""; 0]);
    let finished = session.finish().unwrap();
    assert_eq!((finished.report.best_epoch, finished.report.samples.valid), (Some(1), Some(12)));

    // Training goes on after it: the weights no longer belong to an epoch, and the report says so.
    let mut plan = plan;
    plan.phases.push(plan.phases[1].clone());
    let mut session = tuner(plan).session(&train).unwrap();
    while let Some(batch) = session.next_batch().unwrap() {
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

/// Gradients of several batches before one step: schedule, images per second and dropout masks follow the batches.
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
    while let Some(batch) = session.next_batch().unwrap() {
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
        let batch = session.next_batch().unwrap().unwrap();
        let logits = session.forward(&batch).unwrap();
        let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
        if with_store {
            let gradients = loss.backward().unwrap();
            let square = |(_, p): (String, Tensor)| {
                let g = gradients.get(&p).expect("every parameter has a gradient");
                f64::from(g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
            };
            let norm = session.parameters().into_iter().map(square).sum::<f64>().sqrt();
            let told = session.step_with(gradients, 0.5).unwrap();
            assert!((told / norm - 1.0).abs() < 1e-5, "{told} {norm}");
            assert!(matches!(session.step_with(loss_of_nothing(), f64::NAN), Err(Error::Diverged { .. })));
        } else {
            session.backward_step(&loss).unwrap();
        }
        all_bits(&session.state().unwrap())
    };
    assert_eq!(differing(&run(true), &run(false)), [""; 0]);
}

/// An empty gradient store.
fn loss_of_nothing() -> candle_finetune::candle_core::backprop::GradStore {
    Tensor::new(1f32, &CPU).unwrap().backward().unwrap()
}

#[test]
fn each_forward_has_its_own_mask_and_evaluation_none() {
    let (train, _) = data();
    let mut session = tuner(plans().remove(0)).head(Head::linear().dropout(0.5)).session(&train).unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (first, second) = (bits(session.forward(&batch).unwrap()), bits(session.forward(&batch).unwrap()));
    assert_ne!(first, second);
    let (a, b) = (bits(session.logits(&batch).unwrap()), bits(session.logits(&batch).unwrap()));
    assert!(a == b && a != first);
}

/// Features of frozen blocks are computed once for the validation of a custom loop too.
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
    while let Some(batch) = session.next_batch().unwrap() {
        session.step(&batch).unwrap();
        if session.epoch_done() {
            last = Some(session.evaluate(&valid).unwrap());
        }
    }
    assert_eq!(*computed.lock().unwrap(), [21, 12], "training and validation data, once each for two epochs");
    // The same as without a cache: after the phase there is none.
    let finished = session.finish().unwrap();
    assert_eq!(Some(finished.predictor.evaluate(&valid).unwrap()), last);
}

/// Weights and inputs so large that the network overflows.
#[test]
fn what_is_not_finite_is_an_error_and_never_a_class() {
    let (train, valid) = data();
    // Finite weights whose features overflow: the error names the sample, before training starts.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.safetensors");
    let huge =
        |(name, t): (&String, &Tensor)| (name.clone(), if t.rank() == 4 { (t * 1e30).unwrap() } else { t.clone() });
    crate::support::write(&path, &crate::training::backbone().tensors().iter().map(huge).collect());
    let backbone = Backbone::from_file(Arch::CIFAR_RESNET20, &path, &CPU).unwrap();
    let tuner = |backbone: &Backbone| candle_finetune::FineTuner::new(backbone.clone()).plan(plans().remove(0));
    let error = tuner(&backbone).fit(&train, &valid).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { what } if what.contains("sample")), "{error}");

    // A rate at which training diverges: an error, or an epoch with finite values is kept.
    let mut wild = plans().remove(1);
    wild.phases[0].optimizer = Optimizer::sgd(1e30);
    match crate::training::tuner(wild).fit(&train, &valid) {
        Err(error) => assert!(matches!(error, Error::Diverged { .. } | Error::Audit { .. }), "{error}"),
        Ok(fitted) => assert!(fitted.report.valid.is_some_and(|v| v.loss.is_finite() && v.not_finite == 0)),
    }
    // After a good first phase, its best epoch is kept, and the report has a warning.
    let mut plan = plans().remove(2);
    plan.phases[1].optimizer = Optimizer::sgd(1e30);
    let fitted = crate::training::tuner(plan).fit(&train, &valid).unwrap();
    assert!(fitted.report.best_epoch.is_some_and(|best| best <= 2), "{:?}", fitted.report.best_epoch);
    let stopped = fitted.report.stopped.as_ref().is_some_and(|stopped| stopped.contains("stopped in phase 2"));
    assert!(stopped || fitted.report.epochs.len() == 4, "{:?}", fitted.report.stopped);
    assert!(fitted.predictor.evaluate(&valid).unwrap().loss.is_finite());

    // Images that overflow count as wrong, without a class; predicting them is an error.
    let images = (crate::support::images(2, 3, 32, 1) * 1e38).unwrap();
    let odd = TensorDataset::new(images, vec![0, 0], crate::support::names_of(&valid)).unwrap();
    let evaluation = fitted.predictor.evaluate(&odd).unwrap();
    assert_eq!((evaluation.correct, evaluation.not_finite, evaluation.total), (0, 2, 2));
    assert!(evaluation.loss.is_nan() && evaluation.confusion.iter().count() == 0);
}
