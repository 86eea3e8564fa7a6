//! Runs: the same for the same seed, whatever the threads and whether features are kept; best weights; settings.

use crate::support::{CPU, all_bits, differing, names_of, pictures, plan, read, tensors};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, Dataset, Error, Event, FineTuner, Fit, Fitted, FreezePolicy, Head,
    InputSpec, Loss, Optimizer, Phase, Plan, Report, Schedule, Start, Strategy, TensorDataset, VecDataset, split,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

type Bits = BTreeMap<String, Vec<u64>>;

fn backbone() -> Backbone {
    Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap()
}

fn phase(freeze: FreezePolicy, batch_norm: BatchNormMode, epochs: usize) -> Phase {
    Phase::new(epochs, Optimizer::adamw(2e-3)).freeze(freeze).batch_norm(batch_norm)
}

/// The three shapes of plans: head only, first k, and one after the other.
fn plans() -> Vec<Plan> {
    let head = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 2);
    let first = phase(FreezePolicy::First(7), BatchNormMode::FrozenStats, 2);
    let train = phase(FreezePolicy::First(8), BatchNormMode::Train, 2);
    vec![plan(vec![head.clone()], 8), plan(vec![first], 8), plan(vec![head, train], 8)]
}

/// What the saved file of a predictor holds.
fn saved(fitted: &Fitted) -> Bits {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.safetensors");
    fitted.predictor.save(&path).unwrap();
    all_bits(&read(&path))
}

/// The bytes of its file.
fn bytes(fitted: &Fitted) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fitted.predictor.save(file.path()).unwrap();
    std::fs::read(file.path()).unwrap()
}

fn data() -> (TensorDataset, TensorDataset) {
    (tensors(21, 32, 3, 1), tensors(12, 32, 3, 2))
}

fn tuner(plan: Plan) -> FineTuner {
    FineTuner::new(backbone()).plan(plan).seed(5)
}

#[test]
fn one_seed_gives_one_result_for_any_number_of_threads() {
    let (train, valid) = (pictures(14, 40, 2, 1), pictures(6, 40, 2, 100));
    let mut plan = plan(vec![phase(FreezePolicy::First(3), BatchNormMode::Train, 1)], 6);
    plan.augment = Augment::standard();
    plan.clip = Some(1.0);
    let run = |threads: usize, workers: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let tuner = tuner(plan.clone()).head(Head::mlp(8).dropout(0.2)).seed(seed).workers(workers);
        pool.install(|| saved(&tuner.fit(&train, &valid).unwrap()))
    };
    let first = run(1, 1, 5);
    for (threads, workers) in [(1, 0), (2, 3), (3, 1)] {
        assert_eq!(differing(&first, &run(threads, workers, 5)), [""; 0], "{threads} threads, {workers} workers");
    }
    assert!(!differing(&first, &run(2, 1, 6)).is_empty());
}

#[test]
fn kept_features_change_nothing() {
    // 33 validation samples: a batch of 32 and one left over.
    let (train, valid) = (data().0, tensors(33, 32, 3, 2));
    for plan in plans() {
        let run = |budget: Option<usize>| {
            let tuner = tuner(plan.clone()).head(Head::linear().dropout(0.1));
            let tuner = budget.into_iter().fold(tuner, FineTuner::cache_budget);
            let fitted = tuner.fit(&train, &valid).unwrap();
            assert_eq!(fitted.report.cached_mb > 0.0, budget.is_none());
            let best = fitted.report.best_epoch.unwrap() - 1;
            let evaluation = fitted.predictor.evaluate(&valid).unwrap();
            assert_eq!(fitted.report.epochs[best].valid_loss, Some(evaluation.loss));
            (saved(&fitted), steps(&fitted.report), bytes(&fitted))
        };
        let (kept, anew) = (run(None), run(Some(0)));
        assert_eq!(differing(&kept.0, &anew.0), [""; 0], "{plan}");
        assert!(kept.1 == anew.1 && kept.2 == anew.2, "{plan}");
        // A budget that is too small is as none.
        let little = tuner(plan.clone()).cache_budget(1000).fit(&train, &valid).unwrap();
        assert_eq!(little.report.cached_mb, 0.0);
    }
}

/// Losses of every epoch, to the bit.
fn steps(report: &Report) -> Vec<(usize, usize, u64)> {
    report.epochs.iter().map(|e| (e.phase, e.epoch, e.train_loss.to_bits())).collect()
}

#[test]
fn fixed_views_kept_or_not() {
    let (train, valid) = (pictures(14, 40, 2, 1), pictures(6, 40, 2, 100));
    let run = |views: Option<usize>, budget: Option<usize>| {
        let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::FrozenStats, 3)], 6);
        (plan.augment, plan.views) = (Augment::light(), views);
        let count = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&count);
        let tuner = tuner(plan).on_event(move |event| {
            if let Event::Step { .. } = event {
                *counter.lock().unwrap() += 1;
            }
        });
        let tuner = budget.into_iter().fold(tuner, FineTuner::cache_budget);
        let fitted = tuner.fit(&train, &valid).unwrap();
        let steps = *count.lock().unwrap();
        assert_eq!(steps, 9);
        (saved(&fitted), fitted.report.cached_mb)
    };
    let (kept, anew) = (run(Some(2), None), run(Some(2), Some(0)));
    assert!(kept.1 > 0.0 && anew.1 == 0.0);
    assert_eq!(differing(&kept.0, &anew.0), [""; 0]);
    assert!(!differing(&kept.0, &run(Some(3), None).0).is_empty(), "three views are other views");
    // Without fixed views only the validation data's features can be kept.
    assert!(!differing(&kept.0, &run(None, None).0).is_empty());
}

#[test]
fn settings_by_hand_win_whatever_the_order_and_the_report_says_so() {
    let (train, valid) = (pictures(21, 36, 3, 1), pictures(12, 36, 3, 100));
    let base = || plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1)], 8);
    let optimizer = Optimizer::sgd(0.05).momentum(0.5);
    let set = |t: FineTuner| {
        t.batch_size(5)
            .optimizer(optimizer)
            .loss(Loss::cross_entropy().label_smoothing(0.1))
            .augment(Augment::none().flip(0.5))
            .patience(7)
            .seed(5)
    };
    let before = set(FineTuner::new(backbone())).plan(base()).fit(&train, &valid).unwrap();
    let after = set(FineTuner::new(backbone()).plan(base())).fit(&train, &valid).unwrap();
    assert_eq!(differing(&saved(&before), &saved(&after)), [""; 0]);
    for report in [&before.report, &after.report] {
        let plan = &report.plan;
        assert_eq!((plan.batch_size, plan.patience), (5, Some(7)));
        assert_eq!((plan.phases[0].optimizer, plan.loss.label_smoothing), (optimizer, 0.1));
        assert!(plan.augment.is_random());
        assert_eq!(report.overrides.len(), 5);
        let text = report.to_string();
        for setting in &report.overrides {
            assert!(text.contains(&format!("set by hand: {setting}")), "{text}");
        }
    }
    let plain = tuner(base()).fit(&train, &valid).unwrap();
    assert!(plain.report.overrides.is_empty());
    // A plan wins over a strategy, before or after it.
    for tuner in [
        FineTuner::new(backbone()).strategy(Strategy::LargeSimilar).plan(base()),
        FineTuner::new(backbone()).plan(base()).strategy(Strategy::LargeSimilar),
    ] {
        let report = tuner.fit(&train, &valid).unwrap().report;
        assert_eq!((report.strategy, &report.plan), (Some(Strategy::LargeSimilar), &base()));
        // The report says where it is not the strategy's.
        assert!(report.overrides.iter().any(|edit| edit.starts_with("phases")), "{:?}", report.overrides);
    }
    let mut edited = Strategy::SmallSimilar.plan(&backbone(), train.len()).batch_size(5);
    edited.phases[0].epochs = 1;
    let tuner = FineTuner::new(backbone()).strategy(Strategy::SmallSimilar).plan(edited);
    let report = tuner.fit(&train, &valid).unwrap().report;
    let fields: Vec<&str> = report.overrides.iter().map(|edit| edit.split(' ').next().unwrap()).collect();
    assert_eq!(fields, ["batch_size", "phases.1.epochs"]);
    let session = FineTuner::new(backbone()).strategy(Strategy::SmallSimilar).session(&train).unwrap();
    assert_eq!(session.report().strategy, Some(Strategy::SmallSimilar));
}

#[test]
fn what_cannot_work_is_refused_before_it_starts() {
    let (train, valid) = data();
    let error = FineTuner::new(backbone()).fit(&train, &valid).unwrap_err();
    assert!(matches!(error, Error::NoStrategy));
    for strategy in Strategy::ALL {
        assert!(error.to_string().contains(strategy.name()), "{error}");
    }

    let other = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        TensorDataset::new(crate::support::images(2, 3, 32, 1), vec![0, 1], names).unwrap()
    };
    let fit = |valid: &TensorDataset| tuner(plans().remove(0)).fit(&train, valid).unwrap_err().to_string();
    assert!(fit(&other(&["class 0", "wasp", "hornet"])).contains("wasp, hornet"));
    assert!(fit(&other(&["class 0", "class 1"])).contains("class 2"));
    assert!(fit(&other(&["class 0", "class 2", "class 1"])).contains("order"));
    let none = TensorDataset::new(crate::support::images(1, 3, 32, 1), vec![0], names_of(&train)).unwrap();
    let none = candle_finetune::Subset::new(&none, vec![]);
    assert!(none.is_err() || tuner(plans().remove(0)).fit(&train, &none.unwrap()).is_err());

    let one = TensorDataset::new(crate::support::images(2, 3, 32, 1), vec![0, 0], vec!["only".into()]).unwrap();
    let error = tuner(plans().remove(0)).fit(&one, &one).unwrap_err();
    assert!(matches!(&error, Error::Invalid { problem, .. } if problem.contains("1 class")), "{error}");

    type Edit = fn(&mut Plan);
    let edits: [(&str, Edit); 19] = [
        ("phases", |p| p.phases.clear()),
        ("batch_size", |p| p.batch_size = 0),
        ("views", |p| p.views = Some(0)),
        ("label_smoothing", |p| p.loss.label_smoothing = 1.0),
        ("clip", |p| p.clip = Some(f64::NAN)),
        ("patience", |p| p.patience = Some(0)),
        ("epochs", |p| p.phases[0].epochs = 0),
        ("lr", |p| p.phases[0].optimizer.lr = f64::INFINITY),
        ("lr", |p| p.phases[0].optimizer.lr = 0.0),
        ("backbone_lr_scale", |p| p.phases[0].backbone_lr_scale = -1.0),
        ("layer_decay", |p| p.phases[0].layer_decay = f64::NAN),
        ("weight_decay", |p| p.phases[0].optimizer.weight_decay = -0.1),
        ("warmup", |p| p.phases[0].schedule.warmup = 1.0),
        ("momentum", |p| p.phases[0].optimizer = Optimizer::sgd(0.1).momentum(1.0)),
        ("nesterov", |p| p.phases[0].optimizer = Optimizer::sgd(0.1).nesterov(true)),
        ("betas", |p| p.phases[0].optimizer = Optimizer::adamw(0.1).momentum(-0.1)),
        ("freeze", |p| p.phases[0].freeze = FreezePolicy::AllBut(11)),
        ("augment", |p| p.augment = Augment::none().flip(2.0)),
        ("layer9", |p| p.phases[0].freeze = FreezePolicy::UpTo("layer9".into())),
    ];
    for (what, edit) in edits {
        let mut plan = plans().remove(0);
        edit(&mut plan);
        let error = tuner(plan).session(&train).err().unwrap_or_else(|| panic!("{what} is accepted"));
        assert!(matches!(error, Error::Invalid { .. } | Error::UnknownBlock { .. }), "{what}: {error}");
        if what != "augment" {
            assert!(error.to_string().contains(what), "{what}: {error}");
        }
    }
    let mut endless = plans().remove(0);
    endless.phases[0].epochs = usize::MAX;
    tuner(endless).session(&train).unwrap().next_batch().unwrap();
    for head in [Head::mlp(0), Head::linear().dropout(1.0), Head::original()] {
        assert!(tuner(plans().remove(0)).head(head).session(&train).is_err());
    }
}

/// Training that learns nothing: labels without meaning, a rate that is too small to change a prediction.
fn idle(epochs: usize) -> Plan {
    let mut plan = plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, epochs)], 8);
    plan.phases[0].optimizer = Optimizer::sgd(1e-30);
    plan
}

#[test]
fn patience_ends_a_phase() {
    let (train, valid) = data();
    for patience in [1, 3] {
        let mut plan = idle(20);
        plan.phases.push(plan.phases[0].clone().epochs(2));
        plan.patience = Some(patience);
        let report = tuner(plan).fit(&train, &valid).unwrap().report;
        let of = |phase: usize| report.epochs.iter().filter(|e| e.phase == phase).count();
        // The first is the best; equal ones are no better. The second phase cannot do better either.
        assert_eq!((of(1), of(2)), (1 + patience, patience.min(2)));
        assert_eq!(report.best_epoch, Some(1));
    }
    let report = tuner(idle(4)).fit(&train, &valid).unwrap().report;
    assert_eq!(report.epochs.len(), 4, "without patience every epoch is run");
}

#[test]
fn the_best_epoch_is_what_comes_out() {
    let (train, valid) = data();
    // A sound first phase, then one that ruins the network.
    let mut ruin = phase(FreezePolicy::First(2), BatchNormMode::Train, 2);
    ruin.optimizer = Optimizer::sgd(3.0);
    let head = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 8);
    let mut two = plan(vec![head.clone(), ruin], 8);
    two.clip = Some(1.0);
    let fitted = tuner(two.clone()).fit(&train, &valid).unwrap();
    let best = fitted.report.best_epoch.unwrap();
    let tops: Vec<f64> = fitted.report.epochs.iter().map(|e| e.valid_top1.unwrap()).collect();
    assert!(best <= 8, "the second phase should have ruined it: {tops:?}");
    assert_eq!(tops[best - 1], tops.iter().copied().fold(0.0, f64::max));
    assert_eq!(fitted.report.valid_top1, Some(tops[best - 1]));
    let evaluation = fitted.predictor.evaluate(&valid).unwrap();
    assert_eq!(evaluation.top1(), tops[best - 1]);
    assert_eq!(evaluation.loss.to_bits(), fitted.report.epochs[best - 1].valid_loss.unwrap().to_bits());
    // The backbone of the first phase is the one that was given.
    let (a, b) = (all_bits(fitted.predictor.backbone().tensors()), all_bits(backbone().tensors()));
    assert_eq!(differing(&a, &b), [""; 0]);
    // It is what a run that stops there gives.
    let mut one = plan(vec![head], 8);
    one.clip = two.clip;
    let short = tuner(one).fit(&train, &valid).unwrap();
    assert_eq!(differing(&saved(&short), &saved(&fitted)), [""; 0]);
}

#[test]
fn a_best_epoch_in_between_has_that_epochs_backbone() {
    let (train, valid) = data();
    let train_all = phase(FreezePolicy::First(6), BatchNormMode::Train, 1);
    let mut ruin = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1);
    ruin.optimizer = Optimizer::sgd(1e4);
    let good = tuner(plan(vec![train_all.clone()], 8)).fit(&train, &valid).unwrap();
    let fitted = tuner(plan(vec![train_all, ruin], 8)).fit(&train, &valid).unwrap();
    assert_eq!(fitted.report.epochs.len(), 2);
    assert_eq!(fitted.report.best_epoch, Some(1), "the second epoch ruins the head");
    assert_eq!(differing(&saved(&good), &saved(&fitted)), [""; 0]);
    assert_eq!(fitted.predictor.evaluate(&valid).unwrap().top1(), fitted.report.epochs[0].valid_top1.unwrap());
}

/// The weights after a run of one epoch by the plan with an edit.
fn after(edit: impl FnOnce(&mut Plan)) -> (Bits, Report) {
    let train = tensors(16, 32, 2, 1);
    let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::FrozenStats, 1)], 4);
    edit(&mut plan);
    let mut session = tuner(plan).session(&train).unwrap();
    while let Some(batch) = session.next_batch().unwrap() {
        session.step(&batch).unwrap();
    }
    let state = all_bits(&session.state().unwrap());
    (state, session.finish().unwrap().report)
}

#[test]
fn every_setting_of_the_recipe_has_an_effect() {
    type Edit = fn(&mut Plan);
    let edits: [(&str, Edit); 13] = [
        ("nothing", |_| {}),
        ("smoothing", |p| p.loss = Loss::cross_entropy().label_smoothing(0.2)),
        ("clip", |p| p.clip = Some(1e-3)),
        ("sgd", |p| p.phases[0].optimizer = Optimizer::sgd(0.01)),
        ("momentum", |p| p.phases[0].optimizer = Optimizer::sgd(0.01).momentum(0.9)),
        ("nesterov", |p| p.phases[0].optimizer = Optimizer::sgd(0.01).momentum(0.9).nesterov(true)),
        ("sgd decay", |p| p.phases[0].optimizer = Optimizer::sgd(0.01).weight_decay(0.1)),
        ("no decay", |p| p.phases[0].optimizer = Optimizer::adamw(2e-3).weight_decay(0.0)),
        ("decay all", |p| p.phases[0].optimizer = Optimizer::adamw(2e-3).decay_all(true)),
        ("warmup", |p| p.phases[0].schedule = Schedule::constant().warmup(0.5)),
        ("cosine", |p| p.phases[0].schedule = Schedule::cosine()),
        ("scale", |p| p.phases[0].backbone_lr_scale = 0.1),
        ("batch", |p| p.batch_size = 8),
    ];
    let results: Vec<(&str, Bits)> = edits.into_iter().map(|(what, edit)| (what, after(edit).0)).collect();
    for (i, (a, one)) in results.iter().enumerate() {
        for (b, other) in &results[i + 1..] {
            assert!(!differing(one, other).is_empty(), "{a} and {b} end the same");
        }
    }
    // A layer decay distinguishes stages; with one stage that learns it is a scale.
    let decayed = after(|p| p.phases[0].layer_decay = 0.5).0;
    let scaled = after(|p| p.phases[0].backbone_lr_scale = 0.5).0;
    assert_eq!(differing(&decayed, &scaled), [""; 0]);
}

#[test]
fn clipping_bounds_the_step_and_warmup_the_rate() {
    // Plain SGD moves by rate times gradient, so the whole way is at most rate x clip per step.
    let train = tensors(8, 32, 2, 1);
    let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::FrozenStats, 1)], 8);
    plan.phases[0].optimizer = Optimizer::sgd(0.5);
    plan.clip = Some(1e-2);
    let mut session = tuner(plan).session(&train).unwrap();
    let before = session.state().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    session.step(&batch).unwrap();
    let mut square = 0.0;
    for (name, now) in session.state().unwrap() {
        let way = (now - &before[&name]).unwrap().sqr().unwrap().sum_all().unwrap();
        square += f64::from(way.to_scalar::<f32>().unwrap());
    }
    assert!((square.sqrt() / (0.5 * 1e-2) - 1.0).abs() < 1e-3, "{}", square.sqrt());
    let (_, report) = after(|p| p.phases[0].schedule = Schedule::cosine());
    let (_, warm) = after(|p| p.phases[0].schedule = Schedule::constant());
    assert!(report.epochs[0].lr < warm.epochs[0].lr && warm.epochs[0].lr == 2e-3);
}

#[test]
fn events_come_in_order() {
    let (train, valid) = data();
    let heard = Arc::new(Mutex::new(Vec::<String>::new()));
    let log = Arc::clone(&heard);
    let tuner = tuner(plans().remove(2)).on_event(move |event| {
        let line = match event {
            Event::Phase { phase, phases, frozen_blocks } => format!("phase {phase}/{phases} {frozen_blocks}"),
            Event::Features { done, total } => format!("features {done}/{total}"),
            Event::Step { epoch, step, steps, loss } => {
                assert!(loss.is_finite());
                format!("step {epoch} {step}/{steps}")
            }
            Event::Epoch(report) => format!("epoch {}.{}", report.phase, report.epoch),
            other => panic!("{other:?}"),
        };
        log.lock().unwrap().push(line);
    });
    tuner.fit(&train, &valid).unwrap();
    let mut expected = vec![];
    for (phase, frozen) in [(1, 10), (2, 8)] {
        expected.extend([format!("phase {phase}/2 {frozen}"), "features 21/21".into(), "features 12/12".into()]);
        for epoch in 1..=2 {
            expected.extend((1..=3).map(|step| format!("step {epoch} {step}/3")));
            expected.push(format!("epoch {phase}.{epoch}"));
        }
    }
    assert_eq!(*heard.lock().unwrap(), expected);
}

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
fn a_single_sample_left_over_does_not_break_batch_statistics() {
    // Four pixels leave the last stage one by one, where the statistics of one sample are no statistics.
    let small = backbone().input_size(4, 4).unwrap();
    let recipe = plan(vec![phase(FreezePolicy::First(1), BatchNormMode::Train, 2)], 4);
    for budget in [0, 1 << 20] {
        let tuner = FineTuner::new(small.clone()).plan(recipe.clone()).seed(1).cache_budget(budget);
        let fitted = tuner.fit(&tensors(9, 4, 3, 1), &tensors(5, 4, 3, 2)).unwrap();
        assert_eq!(fitted.report.epochs.len(), 2);
        assert!(fitted.report.epochs.iter().all(|e| e.train_loss.is_finite()));
    }
}

#[test]
fn equal_seeds_save_equal_files() {
    let (train, valid) = data();
    let run = |seed: u64| {
        let mut fitted = tuner(plans().remove(2)).seed(seed).fit(&train, &valid).unwrap();
        assert!(fitted.report.seconds.total > 0.0);
        // What the file says of its making is the report, without the seconds.
        let top1 = fitted.test(&valid).unwrap().top1();
        let kept = fitted.predictor.report().unwrap().unwrap();
        assert_eq!((kept.top1, kept.seconds.total), (Some(top1), 0.0));
        assert_eq!((&kept.plan, kept.best_epoch), (&fitted.report.plan, fitted.report.best_epoch));
        bytes(&fitted)
    };
    let first = run(1);
    assert!(first == run(1));
    assert!(first != run(2));
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

#[test]
fn a_strategy_alone_is_enough_and_its_plan_is_kept_by_name() {
    let (train, valid) = (pictures(24, 32, 2, 1), pictures(8, 32, 2, 50));
    let mut fitted = FineTuner::new(backbone()).strategy(Strategy::SmallDifferent).seed(1).fit(&train, &valid).unwrap();
    let report = &fitted.report;
    assert_eq!((report.strategy, report.overrides.len()), (Some(Strategy::SmallDifferent), 0));
    assert_eq!(report.plan, Strategy::SmallDifferent.plan(&backbone(), 24));
    assert_eq!(report.plan.phases[1].freeze, FreezePolicy::UpTo("layer1.2".into()));
    assert!(fitted.test(&valid).unwrap().total == 8 && fitted.report.top1.is_some());
    // Blocks that were counted are named as well.
    let counted = plan(vec![phase(FreezePolicy::First(4), BatchNormMode::Train, 1)], 8);
    let session = tuner(counted).session(&train).unwrap();
    assert_eq!(session.report().plan.phases[0].freeze, FreezePolicy::UpTo("layer1.2".into()));
}

#[test]
fn a_recipe_with_unknown_words_is_refused() {
    let recipe = plans().remove(2);
    let json = serde_json::to_value(&recipe).unwrap();
    assert_eq!(serde_json::from_value::<Plan>(json.clone()).unwrap(), recipe);
    let paths = [
        "",
        "/phases/0",
        "/phases/0/optimizer",
        "/phases/0/optimizer/rule/adamw",
        "/phases/0/schedule",
        "/loss",
        "/augment",
    ];
    for path in paths {
        let mut spoilt = json.clone();
        spoilt.pointer_mut(path).unwrap()["patiance"] = 3.into();
        let error = serde_json::from_value::<Plan>(spoilt).unwrap_err().to_string();
        assert!(error.contains("patiance"), "{path}: {error}");
    }
}

#[test]
fn tensors_are_not_varied_and_the_report_says_so() {
    let (train, valid) = data();
    let varied = plans().remove(1).augment(Augment::light());
    let report = tuner(varied).fit(&train, &valid).unwrap().report;
    assert!(!report.plan.augment.is_random() && report.cached_mb > 0.0);
    assert!(report.plan.reasons.iter().any(|reason| reason.contains("tensors")), "{:?}", report.plan.reasons);
    assert!(report.overrides.is_empty());
}

#[test]
fn a_phase_may_leave_images_as_they_are() {
    let (train, valid) = (pictures(16, 40, 2, 1), pictures(6, 40, 2, 100));
    let first = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1);
    let cached = |phase: Phase, augment: Augment| {
        let recipe = plan(vec![phase], 8).augment(augment);
        let report = tuner(recipe).fit(&train, &valid).unwrap().report;
        (report.cached_mb > 0.0, report.epochs[0].train_loss)
    };
    let plain = cached(first.clone(), Augment::none());
    assert_eq!(cached(first.clone().augment(false), Augment::standard()), plain);
    let varied = cached(first, Augment::standard());
    assert!(!varied.0 && varied.1 != plain.1);
}

#[test]
fn images_are_varied_where_that_is_asked_for_by_hand() {
    let (train, valid) = (pictures(16, 40, 2, 1), pictures(6, 40, 2, 100));
    let tuner = FineTuner::new(backbone()).strategy(Strategy::SmallSimilar).seed(1);
    let mut session = tuner.augment(Augment::standard()).session(&train).unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    assert_eq!(batch.images.dims()[1..], [3, 32, 32], "images, and no features of unvaried ones");
    // A plan whose blocks are counted is no edit of one that names the same.
    let mut plan = Strategy::SmallDifferent.plan(&backbone(), train.len());
    plan.phases.iter_mut().for_each(|phase| phase.epochs = 1);
    plan.phases[1].freeze = FreezePolicy::First(4);
    let report =
        FineTuner::new(backbone()).strategy(Strategy::SmallDifferent).plan(plan).fit(&train, &valid).unwrap().report;
    let fields: Vec<&str> = report.overrides.iter().map(|edit| edit.split(' ').next().unwrap()).collect();
    assert_eq!(fields, ["phases.1.epochs", "phases.2.epochs"]);
}

#[test]
fn a_plan_in_which_nothing_can_learn_is_refused() {
    let (train, valid) = data();
    let all = ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"].map(String::from).to_vec();
    let frozen = plan(vec![phase(FreezePolicy::Named(all), BatchNormMode::Train, 1)], 8);
    // Also in a later phase it is found before the first one has been trained in vain.
    let mut later = frozen.clone();
    later.phases.insert(0, phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1));
    for frozen in [frozen, later] {
        let error = tuner(frozen).session(&train).err().unwrap().to_string();
        assert!(error.contains("nothing would learn"), "{error}");
    }
    let random = plan(vec![phase(FreezePolicy::First(2), BatchNormMode::Train, 1)], 8).init(Start::Random);
    let error = tuner(random).fit(&train, &valid).unwrap_err().to_string();
    assert!(error.contains("start from chance"), "{error}");
}

#[test]
fn double_precision_trains_with_kept_features_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    crate::support::write(&path, backbone().tensors());
    let source = candle_finetune::Source::file(path).arch(Arch::CIFAR_RESNET20);
    let double = Backbone::load(source.dtype(candle_finetune::candle_core::DType::F64), &CPU).unwrap();
    let (train, valid) = data();
    for budget in [0, 1 << 30] {
        let tuner = FineTuner::new(double.clone()).plan(plans().remove(2)).cache_budget(budget);
        let fitted = tuner.fit(&train, &valid).unwrap();
        assert_eq!(fitted.report.epochs.len(), 4);
        let path = dir.path().join("p.safetensors");
        fitted.predictor.save(&path).unwrap();
        let loaded = candle_finetune::Predictor::from_file(&path, &CPU).unwrap();
        assert_eq!(loaded.evaluate(&valid).unwrap(), fitted.predictor.evaluate(&valid).unwrap());
    }
}

#[test]
fn a_report_is_json_and_a_table() {
    let (train, valid) = data();
    let mut fitted = tuner(plans().remove(2)).fit(&train, &valid).unwrap();
    fitted.test(&valid).unwrap();
    let report = fitted.report;
    let back: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert_eq!(back.to_json().unwrap(), report.to_json().unwrap());
    assert_eq!((&back.plan, &back.classes, back.best_epoch), (&report.plan, &report.classes, report.best_epoch));
    assert_eq!((report.samples, report.seed, report.arch.as_str()), (21, 5, "cifar_resnet20"));
    assert_eq!(report.top1, report.valid_top1);
    let text = report.to_string();
    let table: Vec<&str> = text.lines().skip_while(|line| !line.trim_start().starts_with("stage")).collect();
    for stage in ["stem", "layer1", "layer2", "layer3", "head", "all"] {
        assert!(table.iter().any(|line| line.split_whitespace().next() == Some(stage)), "{stage}\n{text}");
    }
    let sum: usize = report.parameters.stages.iter().map(|s| s.learning + s.frozen).sum();
    let numbers: usize = backbone().blocks().iter().map(|b| b.parameters).sum();
    assert_eq!(sum, numbers + 64 * 3 + 3);
    assert_eq!(report.parameters.learning + report.parameters.frozen, sum);
    // First(8): the stem and seven of nine blocks.
    let learning: usize = backbone().blocks()[8..].iter().map(|b| b.parameters).sum();
    assert_eq!(report.parameters.learning, learning + 64 * 3 + 3);
    assert_eq!(text.matches("  kept").count(), 1);
}

#[test]
fn the_four_strategies_run_on_a_split() {
    let all: VecDataset = pictures(18, 36, 2, 1);
    let (train, valid) = split(&all, 0.3, 1).unwrap();
    for strategy in Strategy::ALL {
        let backbone = backbone().respecify(InputSpec::new(32).fit(Fit::Squash)).unwrap();
        let mut plan = strategy.plan(&backbone, train.len());
        plan.phases.iter_mut().for_each(|p| p.epochs = 1);
        let phases = plan.phases.len();
        let fitted = FineTuner::new(backbone).plan(plan).fit(&train, &valid).unwrap();
        assert_eq!(fitted.report.epochs.len(), phases, "{strategy}");
        let frozen = fitted.report.parameters.frozen > 0;
        assert_eq!(frozen, matches!(strategy, Strategy::SmallSimilar | Strategy::SmallDifferent), "{strategy}");
    }
    assert_eq!(train.classes(), valid.classes());
}
