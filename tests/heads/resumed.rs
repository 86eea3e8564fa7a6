//! Runs with a fitted head end in the same bytes, wherever they were interrupted.

use super::{bytes, fitted_alone, fitted_first, tuner};
use crate::support::pictures;
use candle_finetune::{Augment, HeadStart, Optimizer, Plan, RunState, Session};

/// Copies the state out at every point of a run.
fn states(plan: &Plan) -> Vec<(String, RunState)> {
    let (train, valid) = data();
    let mut session = tuner(plan).session(&train).unwrap();
    let mut all = vec![];
    let mut note = |session: &Session, what: &str| all.push((what.to_string(), session.state().unwrap()));
    note(&session, "before the fit");
    session.fit_head().unwrap();
    note(&session, "fitted");
    let evaluation = session.evaluate(&valid).unwrap();
    session.offer_start(&evaluation).unwrap();
    note(&session, "offered");
    while session.next_phase().unwrap() {
        note(&session, "phase entered");
        while session.next_epoch().unwrap() {
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
                note(&session, "step");
            }
            let evaluation = session.evaluate(&valid).unwrap();
            session.end_epoch(&evaluation).unwrap();
            note(&session, "epoch ended");
        }
    }
    all
}

fn data() -> (candle_finetune::VecDataset, candle_finetune::VecDataset) {
    (pictures(20, 40, 2, 1), pictures(8, 40, 2, 100))
}

#[test]
fn a_run_with_a_fitted_head_resumes_to_the_same_bytes() {
    let (train, valid) = data();
    let mut augmented = fitted_first(Optimizer::adamw(2e-3));
    (augmented.augment, augmented.phases[0].augmented) = (Augment::standard(), true);
    // With the large rate, epoch 0 is the best and must survive in the state.
    let plans = [augmented, fitted_first(Optimizer::sgd(0.9)), fitted_alone(HeadStart::Stages)];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    for (plan, best) in plans.iter().zip([None, Some(0), Some(0)]) {
        let whole = tuner(plan).fit(&train, &valid).unwrap();
        assert!(best.is_none() || whole.report.best_epoch == best, "{}", whole.report.table());
        let states = states(plan);
        assert_eq!(states.len(), if plan.phases.is_empty() { 3 } else { 3 + 1 + 2 * 3 + 2 });
        for (i, (what, state)) in states.iter().enumerate() {
            for file in [false, true] {
                let state = if file {
                    state.save(&path).unwrap();
                    RunState::from_file(&path).unwrap()
                } else {
                    state.clone()
                };
                let resumed = tuner(plan).resume(&state).fit(&train, &valid).unwrap();
                assert!(bytes(&resumed) == bytes(&whole), "{i} {what}, through a file: {file}; {plan}");
            }
        }
    }
}
