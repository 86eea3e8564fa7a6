//! Runs: the same for the same seed, for any number of threads, with and without a cache; best weights; settings.

use crate::support::{CPU, all_bits, differing, next, pictures, plan, read, tensors};
use candle_finetune::candle_core::DType;
use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, Event, FeatureCache, FineTuner, Fitted, FreezePolicy, Head, Loss,
    Optimizer, Phase, Plan, Report, Schedule, TensorDataset,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

mod events;
mod logs;

pub type Bits = BTreeMap<String, Vec<u64>>;

pub fn backbone() -> Backbone {
    Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap()
}

pub fn phase(freeze: FreezePolicy, batch_norm: BatchNormMode, epochs: usize) -> Phase {
    Phase::new(epochs, Optimizer::adamw(2e-3)).freeze(freeze).batch_norm(batch_norm)
}

/// Three kinds of plans: head only, the first k blocks frozen, and one after the other.
pub fn plans() -> Vec<Plan> {
    let head = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 2);
    let first = phase(FreezePolicy::First(7), BatchNormMode::FrozenStats, 2);
    let train = phase(FreezePolicy::First(8), BatchNormMode::Train, 2);
    vec![plan(vec![head.clone()], 8), plan(vec![first], 8), plan(vec![head, train], 8)]
}

/// The tensors of a predictor's saved file.
pub fn saved(fitted: &Fitted) -> Bits {
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

pub fn data() -> (TensorDataset, TensorDataset) {
    (tensors(21, 32, 3, 1), tensors(12, 32, 3, 2))
}

pub fn tuner(plan: Plan) -> FineTuner {
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
    // 33 validation samples: a batch of 32 and one of 1.
    let (train, valid) = (data().0, tensors(33, 32, 3, 2));
    for plan in plans() {
        let run = |budget: Option<usize>| {
            let tuner = tuner(plan.clone()).head(Head::linear().dropout(0.1));
            let tuner = budget.into_iter().fold(tuner, |tuner, bytes| tuner.cache(&FeatureCache::new().budget(bytes)));
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
        // In a file, which is deleted with the session.
        let dir = tempfile::tempdir().unwrap();
        let filed = tuner(plan.clone())
            .head(Head::linear().dropout(0.1))
            .cache(&FeatureCache::new().budget(1000).dir(dir.path()));
        let filed = filed.fit(&train, &valid).unwrap();
        assert!(filed.report.cached_mb > 0.0);
        assert_eq!(differing(&kept.0, &saved(&filed)), [""; 0], "{plan}");
        assert!(kept.1 == steps(&filed.report) && std::fs::read_dir(dir.path()).unwrap().count() == 0);
        // A budget that is too small has the same result as none.
        let little = tuner(plan.clone()).cache(&FeatureCache::new().budget(1000)).fit(&train, &valid).unwrap();
        assert_eq!(little.report.cached_mb, 0.0);
    }
}

/// Half precision halves the size, in memory and in a file, and rounds.
#[test]
fn features_in_half_precision() {
    let (train, valid) = data();
    let plan = plans().remove(0);
    let dir = tempfile::tempdir().unwrap();
    let run = |dtype: Option<DType>, filed: bool| {
        let cache = dtype.into_iter().fold(FeatureCache::new(), FeatureCache::dtype);
        let cache = if filed { cache.budget(0).dir(dir.path()) } else { cache };
        tuner(plan.clone()).cache(&cache).fit(&train, &valid).unwrap()
    };
    let full = run(None, false);
    for dtype in [DType::F16, DType::BF16] {
        let (half, filed) = (run(Some(dtype), false), run(Some(dtype), true));
        assert!((half.report.cached_mb * 2.0 - full.report.cached_mb).abs() < 1e-9);
        assert_eq!(differing(&saved(&half), &saved(&filed)), [""; 0], "{dtype:?}");
        assert!(!differing(&saved(&half), &saved(&full)).is_empty(), "{dtype:?} does not round");
        let loss = |fitted: &Fitted| fitted.report.epochs.last().unwrap().train_loss;
        assert!((loss(&half) - loss(&full)).abs() < 0.02 * loss(&full), "{dtype:?}");
    }
    let odd = FeatureCache::new().dtype(DType::U8);
    let error = tuner(plan.clone()).cache(&odd).fit(&train, &valid).unwrap_err().to_string();
    assert!(error.contains("feature cache's dtype"), "{error}");
}

/// The losses of every epoch, as bits.
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
        let tuner = budget.into_iter().fold(tuner, |tuner, bytes| tuner.cache(&FeatureCache::new().budget(bytes)));
        let fitted = tuner.fit(&train, &valid).unwrap();
        let steps = *count.lock().unwrap();
        assert_eq!(steps, 9);
        (saved(&fitted), fitted.report.cached_mb)
    };
    let (kept, anew) = (run(Some(2), None), run(Some(2), Some(0)));
    assert!(kept.1 > 0.0 && anew.1 == 0.0);
    assert_eq!(differing(&kept.0, &anew.0), [""; 0]);
    assert!(!differing(&kept.0, &run(Some(3), None).0).is_empty(), "three views are other views");
    // Without fixed views, only the features of the validation data can be cached.
    assert!(!differing(&kept.0, &run(None, None).0).is_empty());
}

/// Training without effect: meaningless labels, and a rate too small to change a prediction.
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
        // The first epoch is the best; equal ones are not better. Each phase counts its own patience.
        assert_eq!((of(1), of(2)), (1 + patience, 2));
        assert_eq!(report.best_epoch, Some(1));
    }
    let report = tuner(idle(4)).fit(&train, &valid).unwrap().report;
    assert_eq!(report.epochs.len(), 4, "without patience every epoch is run");
}

#[test]
fn the_best_epoch_is_what_comes_out() {
    let (train, valid) = data();
    // A good first phase, then one that destroys the network.
    let mut ruin = phase(FreezePolicy::First(2), BatchNormMode::Train, 2);
    ruin.optimizer = Optimizer::sgd(3.0);
    let head = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 8);
    let mut two = plan(vec![head.clone(), ruin], 8);
    two.clip = Some(1.0);
    let fitted = tuner(two.clone()).fit(&train, &valid).unwrap();
    let best = fitted.report.best_epoch.unwrap();
    let tops: Vec<f64> = fitted.report.epochs.iter().map(|e| e.valid_top1.unwrap()).collect();
    assert!(best <= 8, "the second phase should have ruined it: {tops:?}");
    // Of the epochs that are at least as accurate, it has the lowest loss.
    let loss = |i: usize| fitted.report.epochs[i].valid_loss.unwrap();
    let rivals: Vec<f64> = (0..tops.len()).filter(|&i| tops[i] >= tops[best - 1]).map(loss).collect();
    assert_eq!(loss(best - 1), rivals.iter().copied().fold(f64::INFINITY, f64::min), "{tops:?}");
    assert_eq!(fitted.report.valid_top1, Some(tops[best - 1]));
    let evaluation = fitted.predictor.evaluate(&valid).unwrap();
    assert_eq!(evaluation.top1(), tops[best - 1]);
    assert_eq!(evaluation.loss.to_bits(), fitted.report.epochs[best - 1].valid_loss.unwrap().to_bits());
    // In the first phase, the backbone is unchanged.
    let (a, b) = (all_bits(fitted.predictor.backbone().tensors()), all_bits(backbone().tensors()));
    assert_eq!(differing(&a, &b), [""; 0]);
    // It equals the result of a run that stops there.
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

/// The weights after a run of one epoch with an edited plan.
fn after(edit: impl FnOnce(&mut Plan)) -> (Bits, Report) {
    let train = tensors(16, 32, 2, 1);
    let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::FrozenStats, 1)], 4);
    edit(&mut plan);
    let mut session = tuner(plan).session(&train).unwrap();
    while let Some(batch) = next(&mut session).unwrap() {
        session.step(&batch).unwrap();
    }
    let state = all_bits(&session.tensors().unwrap());
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
    // A layer decay differs by stage; with one learning stage it is a scale.
    let decayed = after(|p| p.phases[0].layer_decay = 0.5).0;
    let scaled = after(|p| p.phases[0].backbone_lr_scale = 0.5).0;
    assert_eq!(differing(&decayed, &scaled), [""; 0]);
}

#[test]
fn clipping_bounds_the_step_and_warmup_the_rate() {
    // Plain SGD moves by rate x gradient, so the total distance is at most rate x clip per step.
    let train = tensors(8, 32, 2, 1);
    let mut plan = plan(vec![phase(FreezePolicy::First(8), BatchNormMode::FrozenStats, 1)], 8);
    plan.phases[0].optimizer = Optimizer::sgd(0.5);
    plan.clip = Some(1e-2);
    let mut session = tuner(plan).session(&train).unwrap();
    let before = session.tensors().unwrap();
    let batch = next(&mut session).unwrap().unwrap();
    session.step(&batch).unwrap();
    let mut square = 0.0;
    for (name, now) in session.tensors().unwrap() {
        let way = (now - &before[&name]).unwrap().sqr().unwrap().sum_all().unwrap();
        square += f64::from(way.to_scalar::<f32>().unwrap());
    }
    assert!((square.sqrt() / (0.5 * 1e-2) - 1.0).abs() < 1e-3, "{}", square.sqrt());
    let (_, report) = after(|p| p.phases[0].schedule = Schedule::cosine());
    let (_, warm) = after(|p| p.phases[0].schedule = Schedule::constant());
    assert!(report.epochs[0].lr < warm.epochs[0].lr && warm.epochs[0].lr == 2e-3);
}
