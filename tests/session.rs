//! The session as an own loop uses it.

use crate::support::{CPU, all_bits, differing};
use crate::training::{Bits, data, plans, saved, tuner};
use candle_finetune::Loss;
use candle_finetune::candle_core::Tensor;
use std::collections::BTreeMap;

#[test]
fn an_own_loop_gives_the_weights_of_fit() {
    let (train, valid) = data();
    for mut plan in plans() {
        plan.phases.iter_mut().for_each(|p| p.epochs = 1);
        let fitted = tuner(plan.clone()).fit(&train, &valid).unwrap();
        let last = fitted.report.epochs.len();
        let mut session = tuner(plan).session(&train).unwrap();
        let (mut epochs, mut best) = (0, None);
        while let Some(batch) = session.next_batch().unwrap() {
            assert!(!session.epoch_done());
            let logits = session.forward(&batch).unwrap();
            let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
            session.backward_step(&loss).unwrap();
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
    assert!(!session.epoch_done(), "its last step is not done");
    let second = session.next_batch().unwrap().unwrap();
    assert_eq!(session.report().epochs.len(), 1);
    session.step(&first).unwrap();
    session.step(&second).unwrap();
    session.finish().unwrap();
    // Before the first batch there is nothing to step.
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
