//! Regularisation: what each setting does to the training, and that every part of it is resumed.

use crate::support::{CPU, class_names, images, pictures, plan, tensors};
use crate::training::{backbone, phase};
use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, ClassWeights, FeatureCache, FineTuner, FreezePolicy, Head, Loss, LrRange,
    Metric, Optimizer, Plan, Sampling, Session, Targets, TensorDataset, candle_core::Tensor,
};
use std::collections::BTreeMap;

/// A phase that trains the last three blocks, with batch norms that do not depend on the batch.
pub fn last_blocks(optimizer: Optimizer) -> Plan {
    let mut phase = phase(FreezePolicy::First(7), BatchNormMode::Frozen, 2);
    (phase.optimizer, phase.augmented) = (optimizer, true);
    plan(vec![phase], 4)
}

fn trained(plan: &Plan, train: &TensorDataset) -> BTreeMap<String, Vec<f32>> {
    let mut session = FineTuner::new(backbone()).plan(plan.clone()).seed(3).session(train).unwrap();
    run(&mut session);
    values(&session.tensors().unwrap())
}

fn run(session: &mut Session) {
    while session.next_phase().unwrap() {
        while session.next_epoch().unwrap() {
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
            }
        }
    }
}

fn values(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<f32>> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    tensors.iter().map(|(name, t)| (name.clone(), flat(t))).collect()
}

/// The largest difference of any element.
fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f32 {
    let pairs = a.values().zip(b.values()).flat_map(|(a, b)| a.iter().zip(b));
    pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

/// Steps of several batches are those of one large batch, for batches of any size, the last and smaller one included.
#[test]
fn accumulated_gradients_are_those_of_a_large_batch() {
    for samples in [16, 18, 22] {
        let train = tensors(samples, 32, 3, 1);
        let small = last_blocks(Optimizer::sgd(2e-3).momentum(0.9)).grad_accum(2);
        let mut large = small.clone().grad_accum(1);
        large.batch_size = 8;
        let (a, b) = (trained(&small, &train), trained(&large, &train));
        assert!(distance(&a, &b) < 1e-5, "{samples}: {}", distance(&a, &b));
        let plain = trained(&small.clone().grad_accum(1), &train);
        assert!(distance(&a, &plain) > 1e-4);
        let tuner = FineTuner::new(backbone()).plan(small).seed(3);
        let report = tuner.fit(&train, &train).unwrap().report;
        let steps = samples.div_ceil(4).div_ceil(2);
        assert!(report.epochs.iter().all(|epoch| epoch.steps == steps), "{samples}");
    }
}

#[test]
fn a_step_cuts_elements_and_pulls_weights_back() {
    let train = tensors(8, 32, 2, 1);
    let mut plan = last_blocks(Optimizer::sgd(1.0)).clip_value(1e-3);
    plan.batch_size = 8;
    plan.phases[0].epochs = 1;
    let start = values(backbone().tensors());
    let after = trained(&plan, &train);
    let moved = |name: &str| after[name].iter().zip(&start[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let names: Vec<&String> = start.keys().filter(|name| moved(name) > 0.0).collect();
    assert!(names.len() > 5 && names.iter().all(|name| moved(name) < 1.1e-3), "{names:?}");
    assert!(names.iter().any(|name| moved(name) > 0.99e-3), "some are cut");

    // From the start there is nothing to pull; a second step is drawn back by rate x strength x distance.
    let mut plan = last_blocks(Optimizer::sgd(0.01));
    plan.batch_size = 8;
    let pulled = plan.clone().l2_sp(5.0);
    let step = |plan: &Plan, steps: usize| {
        let mut session = FineTuner::new(backbone()).plan(plan.clone()).seed(3).session(&train).unwrap();
        session.next_phase().unwrap();
        for _ in 0..steps {
            session.next_epoch().unwrap();
            let batch = session.next_batch().unwrap().unwrap();
            session.step(&batch).unwrap();
        }
        values(&session.tensors().unwrap())
    };
    assert_eq!(distance(&step(&plan, 1), &step(&pulled, 1)), 0.0);
    let (first, free, drawn) = (step(&plan, 1), step(&plan, 2), step(&pulled, 2));
    for (name, values) in &free {
        let Some(start) = start.get(name) else {
            assert_eq!(values, &drawn[name], "the head is not pulled");
            continue;
        };
        for (i, free) in values.iter().enumerate() {
            let expected = free - 0.01 * 5.0 * (first[name][i] - start[i]);
            assert!((drawn[name][i] - expected).abs() < 1e-6, "{name} {i}");
        }
    }
}

#[test]
fn the_average_has_its_own_validation_and_may_be_the_best() {
    let (train, valid) = (tensors(24, 32, 3, 1), tensors(30, 32, 3, 2));
    // Rates so high that single steps are noisy.
    let mut plan = last_blocks(Optimizer::sgd(0.02)).ema(0.9);
    plan.phases[0].epochs = 6;
    let tuner = || FineTuner::new(Backbone::embedded(&CPU).unwrap()).plan(plan.clone()).seed(1).metric(Metric::Loss);
    let fitted = tuner().fit(&train, &valid).unwrap();
    let report = &fitted.report;
    let best_raw = report.epochs.iter().filter_map(|epoch| epoch.valid_loss).fold(f64::INFINITY, f64::min);
    let averaged: Vec<f64> = report.epochs.iter().map(|epoch| epoch.averaged.unwrap().loss).collect();
    let best_averaged = averaged.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(best_averaged < best_raw, "{averaged:?}, {best_raw}");
    assert!(report.averaged);
    let kept = fitted.predictor.evaluate(&valid).unwrap();
    assert!((kept.loss - best_averaged).abs() < 1e-6);
    assert_eq!(report.valid.as_ref().unwrap().loss, best_averaged);

    // By hand, the same averages: a custom loop may look at them and use them.
    let mut session = tuner().session(&train).unwrap();
    assert!(session.evaluate_averages(&valid).unwrap().is_none());
    assert!(session.use_averages().unwrap_err().to_string().contains("Plan::ema"));
    let mut by_hand: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut step = 0;
    session.next_phase().unwrap();
    while session.next_epoch().unwrap() {
        while let Some(batch) = session.next_batch().unwrap() {
            session.step(&batch).unwrap();
            step += 1;
            let decay = 0.9f64.min(f64::from(1 + step) / f64::from(10 + step));
            for (name, now) in values(&session.tensors().unwrap()) {
                let average = by_hand.entry(name).or_insert_with(|| now.clone());
                average.iter_mut().zip(&now).for_each(|(a, v)| {
                    *a = (decay * f64::from(*a) + (1.0 - decay) * f64::from(*v)) as f32;
                });
            }
        }
    }
    let evaluation = session.evaluate_averages(&valid).unwrap().unwrap();
    session.use_averages().unwrap();
    assert!(distance(&values(&session.tensors().unwrap()), &by_hand) < 1e-5);
    assert!((session.evaluate(&valid).unwrap().loss - evaluation.loss).abs() < 1e-6);
    assert!(session.report().averaged);
}

#[test]
fn balanced_draws_and_weights_help_rare_classes() {
    // 40 samples of class 0, 4 of class 1.
    let labels: Vec<u32> = (0..44).map(|i| u32::from(i % 11 == 0)).collect();
    let shift: Vec<f32> = labels.iter().map(|&l| l as f32 * 0.4).collect();
    let shift = Tensor::from_vec(shift, (44, 1, 1, 1), &CPU).unwrap();
    let data = images(44, 3, 32, 7).broadcast_add(&shift).unwrap();
    let train = TensorDataset::new(data, labels, class_names(2)).unwrap();
    let mut plan = plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 3)], 11);
    let mut drawn = [0usize; 2];
    plan.sampling = Sampling::Balanced;
    let mut session = FineTuner::new(backbone()).plan(plan.clone()).session(&train).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    while let Some(batch) = session.next_batch().unwrap() {
        batch.targets.classes().unwrap().iter().for_each(|&class| drawn[class as usize] += 1);
        session.step(&batch).unwrap();
    }
    assert_eq!(drawn, [22, 22]);
    // A balanced loss is that with the weights 44 / (2 x 40) and 44 / (2 x 4).
    plan.sampling = Sampling::Shuffled;
    plan.loss = Loss::cross_entropy().class_weights(ClassWeights::Balanced);
    let balanced = trained(&plan, &train);
    plan.loss = Loss::cross_entropy().class_weights(ClassWeights::Given(vec![44.0 / 80.0, 44.0 / 8.0]));
    assert_eq!(distance(&balanced, &trained(&plan, &train)), 0.0);
    plan.loss = Loss::cross_entropy();
    assert!(distance(&balanced, &trained(&plan, &train)) > 1e-4);
    plan.loss = Loss::cross_entropy().class_weights(ClassWeights::Given(vec![1.0]));
    let error = FineTuner::new(backbone()).plan(plan).session(&train).err().unwrap().to_string();
    assert!(error.contains("1 weights for 2 classes"), "{error}");
}

/// A sample that an epoch draws again has the next of its fixed views, cached or not.
#[test]
fn repeated_samples_have_other_views_cached_or_not() {
    let train = pictures(16, 40, 2, 1);
    let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::Frozen, 2)], 4);
    plan.phases[0].augmented = true;
    plan = plan.augment(Augment::light()).views(3).sampling(Sampling::Weighted(vec![1.0, 7.0]));
    let of = |cache: FeatureCache| {
        let mut session = FineTuner::new(backbone()).plan(plan.clone()).seed(3).cache(&cache).session(&train).unwrap();
        run(&mut session);
        values(&session.tensors().unwrap())
    };
    assert_eq!(distance(&of(FeatureCache::new()), &of(FeatureCache::off())), 0.0);
    // The two rows of a sample that is drawn twice differ.
    let mut session =
        FineTuner::new(backbone()).plan(plan.clone()).cache(&FeatureCache::off()).session(&train).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let (mut seen, mut repeated) = (BTreeMap::new(), 0);
    while let Some(batch) = session.next_batch().unwrap() {
        for (k, &i) in batch.indices.iter().enumerate() {
            let image = batch.images().unwrap().get(k).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            if let Some(before) = seen.insert(i, image.clone()) {
                assert!(before != image, "sample {i}");
                repeated += 1;
            }
        }
        session.step(&batch).unwrap();
    }
    assert!(repeated > 3);
}

#[test]
fn an_epoch_that_ends_early_makes_its_step_before_it_is_judged() {
    let train = tensors(24, 32, 3, 1);
    let plan = last_blocks(Optimizer::sgd(1e-3)).grad_accum(3);
    let mut session = FineTuner::new(backbone()).plan(plan).session(&train).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    session.step(&batch).unwrap();
    assert!(session.waits());
    let evaluation = session.evaluate(&train).unwrap();
    let error = session.end_epoch(&evaluation).unwrap_err().to_string();
    assert!(error.contains("call flush"), "{error}");
    assert!(session.flush().unwrap() > 0.0 && !session.waits());
    let evaluation = session.evaluate(&train).unwrap();
    session.end_epoch(&evaluation).unwrap();
    assert_eq!(session.report().epochs[0].steps, 1);
}

/// Batches of 4, two for a step, search as batches of 8 do.
#[test]
fn a_search_of_the_rate_makes_whole_steps() {
    let train = tensors(32, 32, 3, 1);
    let small = last_blocks(Optimizer::sgd(1e-3)).grad_accum(2);
    let mut large = small.clone().grad_accum(1);
    large.batch_size = 8;
    let curve = |plan: &Plan| {
        let tuner = FineTuner::new(backbone()).plan(plan.clone()).seed(3);
        tuner.find_lr(&train, LrRange::default().rates(1e-6, 1e-3).steps(20)).unwrap()
    };
    let (a, b) = (curve(&small), curve(&large));
    assert_eq!(a.points.len(), b.points.len());
    for (a, b) in a.points.iter().zip(&b.points) {
        assert!(a.lr == b.lr && (a.loss - b.loss).abs() < 1e-4 * b.loss, "{}: {} and {}", a.lr, a.loss, b.loss);
    }
}

#[test]
fn mixed_batches_are_soft_and_not_cached() {
    let train = pictures(12, 40, 3, 1);
    let mut plan = plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1)], 4);
    plan = plan.augment(Augment::none().mixup(0.4).cutmix(1.0));
    let mut session = FineTuner::new(backbone()).plan(plan.clone()).session(&train).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    assert!(matches!(&batch.targets, Targets::Soft(rows) if rows.dims() == [4, 3]));
    assert_eq!(batch.images().unwrap().dims(), [4, 3, 32, 32]);
    session.step(&batch).unwrap();
    // Samples that are tensors are mixed as well.
    let mut session = FineTuner::new(backbone()).plan(plan).session(&tensors(12, 32, 3, 1)).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    assert!(matches!(session.next_batch().unwrap().unwrap().targets, Targets::Soft(_)));
}

#[test]
fn stochastic_depth_skips_branches_in_training_alone() {
    let train = tensors(8, 32, 2, 1);
    let mut plan = last_blocks(Optimizer::sgd(0.05));
    plan.batch_size = 8;
    let logits = |probability: f64, forwards: usize| {
        let plan = plan.clone().drop_path(probability);
        let mut session = FineTuner::new(backbone()).plan(plan).seed(3).session(&train).unwrap();
        session.next_phase().unwrap();
        session.next_epoch().unwrap();
        let batch = session.next_batch().unwrap().unwrap();
        let all: Vec<Vec<Vec<f32>>> =
            (0..forwards).map(|_| session.forward(&batch).unwrap().to_vec2().unwrap()).collect();
        (all, session.logits(&batch).unwrap().to_vec2::<f32>().unwrap())
    };
    let (plain, evaluated) = logits(0.0, 1);
    let (dropped, same) = logits(0.4, 3);
    assert_eq!(evaluated, same, "evaluation skips nothing");
    assert!(dropped[0] != plain[0] && dropped[0] != dropped[1] && dropped[1] != dropped[2]);
    assert_eq!(dropped, logits(0.4, 3).0, "one seed, one choice");
    // Frozen blocks skip nothing: with all blocks frozen, the features are the same.
    let mut head_only = plan.clone();
    head_only.phases[0].freeze = FreezePolicy::Backbone;
    let of = |probability: f64| trained(&head_only.clone().drop_path(probability), &train);
    assert_eq!(distance(&of(0.0), &of(0.5)), 0.0);
    // A network without residual branches is refused.
    let mut all = plan.clone().drop_path(0.2);
    all.phases[0].freeze = FreezePolicy::Nothing;
    let vgg = Backbone::random(Arch::VGG11_FEATURES, 1, &CPU).unwrap();
    let error = FineTuner::new(vgg).plan(all).session(&train).err().unwrap().to_string();
    assert!(error.contains("no residual branches"), "{error}");
}

/// The gradient with skipped branches is the one of the loss with them, by central differences of one weight.
#[test]
fn the_gradient_knows_what_was_skipped() {
    let train = tensors(6, 32, 2, 1);
    let mut plan = last_blocks(Optimizer::sgd(0.05)).drop_path(0.5);
    plan.batch_size = 6;
    let mut session = FineTuner::new(backbone()).plan(plan).seed(3).session(&train).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    let state = session.state().unwrap();
    let logits = session.forward(&batch).unwrap();
    let loss = session.loss(&logits, &batch.targets).unwrap();
    let gradients = session.gradients(&loss.backward().unwrap()).unwrap();
    let (name, gradient) = gradients.iter().find(|(name, _)| name == "layer3.2.conv2.weight").unwrap();
    let direction = gradient.affine(1.0 / norm(gradient), 0.0).unwrap();
    // Along the gradient the loss rises by its norm.
    let mut at = |step: f64| {
        session.resume(&state).unwrap();
        session.next_phase().unwrap();
        session.next_epoch().unwrap();
        let moved = session.parameters().unwrap().into_iter().map(|(n, t)| {
            let zero = t.zeros_like().unwrap();
            (n.clone(), if n == *name { direction.affine(-step / 0.05, 0.0).unwrap() } else { zero })
        });
        let moved = moved.collect();
        session.step_with(moved, 0.0).unwrap();
        // The pass of the same number: the step has made none.
        let logits = session.forward(&batch).unwrap();
        session.loss(&logits, &batch.targets).unwrap().to_scalar::<f32>().unwrap()
    };
    let slope = f64::from(at(2e-3) - at(-2e-3)) / 4e-3;
    assert!((slope / norm(gradient) - 1.0).abs() < 0.02, "{slope} and {}", norm(gradient));
}

fn norm(t: &Tensor) -> f64 {
    f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
}

#[test]
fn patience_and_the_best_epoch_go_by_any_metric() {
    let (train, valid) = (tensors(24, 32, 3, 1), tensors(30, 32, 3, 2));
    let mut plan = last_blocks(Optimizer::sgd(0.01)).patience(2).watch(Metric::Top1);
    plan.phases[0].epochs = 30;
    let report = FineTuner::new(Backbone::embedded(&CPU).unwrap())
        .plan(plan)
        .seed(1)
        .metric(Metric::MacroF1)
        .fit(&train, &valid)
        .unwrap()
        .report;
    let top1: Vec<f64> = report.epochs.iter().filter_map(|epoch| epoch.valid_top1).collect();
    assert!(top1.len() < 30, "it is stopped: {top1:?}");
    let best = top1.iter().copied().fold(0.0, f64::max);
    let first = top1.iter().position(|value| *value == best).unwrap();
    assert_eq!(top1.len(), first + 3, "two epochs after the best: {top1:?}");
    let of = |report: &candle_finetune::EpochReport| report.valid_metric.unwrap();
    let kept = &report.epochs[report.best_epoch.unwrap() - 1];
    assert!(report.epochs.iter().all(|epoch| of(epoch) <= of(kept)));
}

/// Everything that a state must have at once: averages, gradients that wait, mixed batches, skipped branches, draws by
/// weight, dropout, plateaus.
#[test]
fn every_part_is_resumed() {
    let (train, valid) = (pictures(22, 40, 2, 1), pictures(8, 40, 2, 100));
    let mut first = phase(FreezePolicy::First(6), BatchNormMode::Train, 3);
    (first.optimizer, first.augmented) = (Optimizer::sgd(0.05).momentum(0.9), true);
    first.schedule = candle_finetune::Schedule::plateau(0);
    let mut second = phase(FreezePolicy::First(8), BatchNormMode::FrozenStats, 2);
    (second.optimizer, second.augmented) = (Optimizer::adamw(2e-3), true);
    let plan = plan(vec![first, second], 4).grad_accum(2).ema(0.9).clip_value(0.5).l2_sp(0.1).drop_path(0.3);
    let plan = plan.sampling(Sampling::Balanced).augment(Augment::light().mixup(0.3).cutmix(1.0));
    let plan = plan.loss(Loss::cross_entropy().focal(1.0).class_weights(ClassWeights::Balanced)).watch(Metric::Top1);
    let tuner = || FineTuner::new(backbone()).plan(plan.clone()).seed(5).head(Head::mlp(8).dropout(0.3)).workers(1);
    crate::resume::check(tuner, &train, &valid);
    // Other weights to pull back to are another run.
    let mut session = tuner().session(&train).unwrap();
    session.next_phase().unwrap();
    let state = session.state().unwrap();
    let other = Backbone::random(Arch::CIFAR_RESNET20, 99, &CPU).unwrap();
    let error = FineTuner::new(other).plan(plan.clone()).seed(5).head(Head::mlp(8).dropout(0.3)).resume(&state);
    let error = error.session(&train).err().unwrap().to_string();
    assert!(error.contains("L2-SP"), "{error}");
}
