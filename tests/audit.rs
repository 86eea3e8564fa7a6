//! Steps that the audit of a phase refuses, without a change of any parameter.

use crate::freezing::{small, start};
use crate::support::{all_bits, differing, next, plan};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{BatchNormMode, Error, FineTuner, FreezePolicy, Optimizer, Phase, Session};

fn audit(error: Error) -> (Vec<String>, Vec<String>) {
    match error {
        Error::Audit { phase: 1, unreached, changed } => (unreached, changed),
        other => panic!("{other}"),
    }
}

#[test]
fn a_loss_that_ignores_parameters_is_refused_and_nothing_is_stepped() {
    let (backbone, data, _dir) = small();
    let policy = || FreezePolicy::First(8);
    let losses: [fn(&Session, &Tensor) -> Tensor; 2] = [
        // No gradient except for the head's bias.
        |session, _| {
            let parameters = session.parameters().unwrap();
            parameters.iter().find(|(name, _)| name == "linear.bias").unwrap().1.sum_all().unwrap()
        },
        |_, logits| logits.detach().sum_all().unwrap(),
    ];
    for (i, loss) in losses.iter().enumerate() {
        let mut session = start(&backbone, &data, policy(), BatchNormMode::FrozenStats);
        let batch = next(&mut session).unwrap().unwrap();
        let before = all_bits(&session.tensors().unwrap());
        let logits = session.forward(&batch).unwrap();
        let error = session.backward_step(&loss(&session, &logits)).unwrap_err();
        assert!(error.to_string().contains("layer3.2.conv2.weight"), "{error}");
        let (unreached, changed) = audit(error);
        let mut expected: Vec<String> = session.parameters().unwrap().into_iter().map(|(name, _)| name).collect();
        expected.retain(|name| i == 1 || name != "linear.bias");
        assert_eq!((unreached, changed.len()), (expected, 0));
        assert_eq!(differing(&before, &all_bits(&session.tensors().unwrap())), [""; 0]);
        // Without the audit, the same step succeeds.
        let phase = Phase::new(1, Optimizer::sgd(0.1)).freeze(policy());
        let tuner = FineTuner::new(backbone.clone()).plan(plan(vec![phase], 4)).audit(false);
        let mut session = tuner.session(&data).unwrap();
        let batch = next(&mut session).unwrap().unwrap();
        let logits = session.forward(&batch).unwrap();
        session.backward_step(&loss(&session, &logits)).unwrap();
    }
}

#[test]
fn endless_losses_and_gradients_step_nothing() {
    let (backbone, data, _dir) = small();
    let mut session = start(&backbone, &data, FreezePolicy::First(8), BatchNormMode::FrozenStats);
    let batch = next(&mut session).unwrap().unwrap();
    let before = all_bits(&session.tensors().unwrap());
    for factor in [f64::NAN, f64::INFINITY] {
        let loss = (session.forward(&batch).unwrap().sqr().unwrap().sum_all().unwrap() * factor).unwrap();
        let error = session.backward_step(&loss).unwrap_err();
        let Error::Diverged(found) = &error else { panic!("{error}") };
        assert_eq!((found.what, found.step, found.lr), ("training loss", 1, Some(0.01)));
        assert!(error.to_string().contains("at step 1, learning rate 1.00e-2"), "{error}");
    }
    // A finite loss with an infinite gradient: the square root of zero. In the first step, and in a later one.
    for step in 0..2 {
        let now = all_bits(&session.tensors().unwrap());
        let logits = session.forward(&batch).unwrap();
        let root = (&logits - &logits).unwrap().sqrt().unwrap().sum_all().unwrap();
        let error = session.backward_step(&root).unwrap_err();
        let Error::Diverged(found) = &error else { panic!("{error}") };
        assert!((found.step, found.what) == (step + 1, "gradients") && found.tensors.contains(&"linear.bias".into()));
        assert!(error.to_string().contains("linear.bias"), "{error}");
        assert_eq!(differing(&now, &all_bits(&session.tensors().unwrap())), [""; 0]);
        session.step(&batch).unwrap();
    }
    assert!(!differing(&before, &all_bits(&session.tensors().unwrap())).is_empty());
}
