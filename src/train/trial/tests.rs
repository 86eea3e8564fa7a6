use super::*;
use crate::advisor::Evidence;
use crate::data::Targets;
use crate::metrics::{Scores, Task};
use crate::train::waves::waves;
use crate::{Augment, Backbone, FeatureCache, FreezePolicy, split};
use candle_core::{Device, Tensor};

#[test]
fn trials_share_features_and_their_winner_is_the_advice() {
    let backbone = Backbone::embedded(&Device::Cpu).unwrap();
    let (train, valid) = split(&waves(48, 3), 0.25, 0).unwrap();
    let cache = FeatureCache::new();
    let advisor = Advisor::new(&backbone).cache(&cache);
    let advised = advisor.advise(&train).unwrap();
    let advice = advisor.trial(&train, &valid).unwrap();
    assert!(cache.reused() > train.len(), "{}", cache.reused());
    // What was measured is the same, and all that could be chosen were tried.
    let measured = |evidence: &Evidence| Evidence { seconds: 0.0, ..evidence.clone() };
    assert_eq!(measured(&advice.evidence), measured(&advised.evidence));
    let rounds = advice.trials.iter().map(|trial| trial.round).max().unwrap();
    assert_eq!(rounds, advised.rivals.len().min(2));
    for round in 1..=rounds {
        let of_round: Vec<_> = advice.trials.iter().filter(|trial| trial.round == round).collect();
        assert_eq!(of_round.len(), advised.rivals.len() + 2 - round);
        assert_eq!(of_round.iter().filter(|trial| !trial.kept).count(), 1);
        assert!(of_round.iter().all(|trial| trial.problem.is_none() && trial.seconds > 0.0));
    }
    let last = advice.trials.iter().rfind(|trial| trial.kept).unwrap();
    assert_eq!((last.strategy, last.round), (advice.strategy, rounds));
    assert_eq!(advice.plan.strategy, Some(advice.strategy));
    assert!(advice.plan.reasons.iter().any(|reason| reason.contains("short trainings")), "{}", advice.plan);
    assert!(!advice.rivals.contains(&advice.strategy) && advice.rivals.len() == advised.rivals.len());
    let text = advice.to_string();
    assert!(text.contains("round 1") && text.contains("dropped"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    // Of the same seed the same.
    let again = Advisor::new(&backbone).workers(1).trial(&train, &valid).unwrap();
    let outcome = |advice: &Advice| -> Vec<_> {
        advice.trials.iter().map(|trial| (trial.strategy, trial.epochs, trial.top1, trial.kept)).collect()
    };
    assert_eq!(outcome(&again), outcome(&advice));
}

#[test]
fn plans_are_shortened_phase_by_phase() {
    let plan = Plan::new(vec![
        crate::Phase::new(40, crate::Optimizer::adamw(1e-3)).freeze(FreezePolicy::Backbone),
        crate::Phase::new(3, crate::Optimizer::adamw(1e-3)),
        crate::Phase::new(0, crate::Optimizer::adamw(1e-3)),
    ]);
    let epochs = |share: f64| -> Vec<usize> {
        shortened(plan.clone().augment(Augment::light()), share).phases.iter().map(|phase| phase.epochs).collect()
    };
    assert_eq!(epochs(0.125), [5, 1, 1]);
    assert_eq!(epochs(0.5), [20, 2, 1]);
}

/// An entry that is right for these of 100 samples.
fn entry(strategy: Strategy, right: Option<std::ops::Range<usize>>) -> (Trial, Option<Evaluation>) {
    let evaluation = right.map(|right| {
        let mut scores = Scores::new(Task::Classes);
        let logits: Vec<f32> =
            (0..100).flat_map(|i| if right.contains(&i) { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        let logits = Tensor::from_vec(logits, (100, 2), &Device::Cpu).unwrap();
        scores.add(&logits, &Targets::Classes(vec![0; 100])).unwrap();
        scores.evaluation()
    });
    let top1 = evaluation.as_ref().map_or(0.0, Evaluation::top1);
    (Trial { round: 1, strategy, epochs: 1, top1, kept: false, seconds: 0.0, problem: None }, evaluation)
}

#[test]
fn rivals_must_be_better_by_more_than_the_error() {
    let (advised, rival) = (Strategy::SmallDifferent, Strategy::LargeSimilar);
    let first = |a: Option<std::ops::Range<usize>>, b: Option<std::ops::Range<usize>>| {
        ranked(&[entry(advised, a), entry(rival, b)], advised)[0]
    };
    // 10 more and none less: the error is the root of 10.
    assert_eq!(first(Some(0..70), Some(0..80)), rival);
    // 8 more, but others: 88 differ.
    assert_eq!(first(Some(0..40), Some(40..88)), advised);
    assert_eq!(first(Some(0..70), Some(0..71)), advised);
    assert_eq!(first(Some(0..70), None), advised);
    // One of 20 more, and equal ones in any order.
    assert_eq!(first(Some(0..7), Some(0..8)), advised);
    let tied = [entry(rival, Some(0..9)), entry(advised, Some(0..9))];
    assert_eq!(ranked(&tied, advised), [advised, rival]);
    // The advised training failed.
    assert_eq!(first(None, Some(0..10)), rival);
}
