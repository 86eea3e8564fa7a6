//! Strategies, plans and explicit settings: which wins, what is refused, what the report lists.

use crate::support::{names_of, next, pictures, plan};
use crate::training::{backbone, data, phase, plans, tuner};
use candle_finetune::{
    Augment, BatchNormMode, CropMode, Dataset, Error, FineTuner, FreezePolicy, Head, Init, InputSpec, Loss, Optimizer,
    Phase, Plan, Report, Strategy, TensorDataset, VecDataset, split,
};

/// The fields that a report's edits name.
fn fields(report: &Report) -> Vec<&str> {
    report.overrides.iter().map(|edit| edit.split(' ').next().unwrap()).collect()
}

#[test]
fn the_report_lists_the_edits_of_a_strategys_plan() {
    let (train, valid) = (pictures(21, 36, 3, 1), pictures(12, 36, 3, 100));
    let optimizer = Optimizer::sgd(0.05).momentum(0.5);
    let mut plan = Strategy::SmallDifferent
        .plan(&backbone(), train.len())
        .batch_size(5)
        .optimizer(optimizer)
        .loss(Loss::cross_entropy().label_smoothing(0.1))
        .augment(Augment::none().flip(0.5))
        .patience(7);
    plan.phases.iter_mut().for_each(|phase| phase.epochs = 1);
    // The plan knows its strategy.
    let report = FineTuner::new(backbone()).plan(plan.clone()).seed(5).fit(&train, &valid).unwrap().report;
    assert_eq!((report.strategy, &report.plan), (Some(Strategy::SmallDifferent), &plan));
    assert!(report.plan.phases.iter().all(|phase| phase.optimizer == optimizer && phase.augmented));
    let expected = [
        "augment.flip",
        "batch_size",
        "loss.label_smoothing",
        "patience",
        "phases.1.augmented",
        "phases.1.epochs",
        "phases.1.optimizer.lr",
        "phases.1.optimizer.rule",
        "phases.1.optimizer.weight_decay",
        "phases.2.epochs",
        "phases.2.optimizer.lr",
        "phases.2.optimizer.rule",
        "phases.2.optimizer.weight_decay",
    ];
    assert_eq!(fields(&report), expected);
    assert!(report.overrides.contains(&"patience 7 (the strategy has none)".to_string()), "{:?}", report.overrides);
    // Long lines are wrapped.
    let text = report.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    for setting in &report.overrides {
        assert!(text.contains(&format!("set by hand: {setting}")), "{text}");
    }

    // A custom plan has nothing to be compared with.
    let custom = || Plan::new(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1)]);
    let report = tuner(custom()).fit(&train, &valid).unwrap().report;
    assert_eq!((report.strategy, report.overrides), (None, vec![]));
    // With a strategy it has, whatever the order of the calls, and the plan is followed.
    for tuner in [
        FineTuner::new(backbone()).strategy(Strategy::LargeSimilar).plan(custom()),
        FineTuner::new(backbone()).plan(custom()).strategy(Strategy::LargeSimilar),
    ] {
        let report = tuner.fit(&train, &valid).unwrap().report;
        assert_eq!((report.strategy, &report.plan), (Some(Strategy::LargeSimilar), &custom()));
        assert!(fields(&report).contains(&"phases"), "{:?}", report.overrides);
    }
    // A strategy that is set wins over the one that the plan remembers.
    let tuner = FineTuner::new(backbone()).strategy(Strategy::LargeDifferent).plan(plan);
    assert_eq!(tuner.session(&train).unwrap().report().strategy, Some(Strategy::LargeDifferent));
    let session = FineTuner::new(backbone()).strategy(Strategy::SmallSimilar).session(&train).unwrap();
    let report = session.report();
    assert_eq!((report.strategy, report.overrides.len()), (Some(Strategy::SmallSimilar), 0));
}

#[test]
fn what_cannot_work_is_refused_before_it_starts() {
    let (train, _) = data();
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
    next(&mut tuner(endless).session(&train).unwrap()).unwrap();
    for head in [Head::mlp(0), Head::mlp(100_000_000_000), Head::linear().dropout(1.0), Head::original()] {
        assert!(tuner(plans().remove(0)).head(head).session(&train).is_err());
    }
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
    // Blocks given by count are shown with their names too.
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
fn tensors_are_not_augmented_and_the_report_says_so() {
    let (train, valid) = data();
    let augmented = plans().remove(1).augment(Augment::light());
    let report = tuner(augmented).fit(&train, &valid).unwrap().report;
    assert!(!report.plan.augment.is_random() && report.cached_mb > 0.0);
    assert!(report.plan.reasons.iter().any(|reason| reason.contains("tensors")), "{:?}", report.plan.reasons);
    assert!(report.overrides.is_empty());
}

#[test]
fn an_augmentation_set_by_hand_is_for_every_phase() {
    let (train, valid) = (pictures(16, 40, 2, 1), pictures(6, 40, 2, 100));
    let plan = Strategy::SmallSimilar.plan(&backbone(), train.len());
    let of = |plan: Plan| FineTuner::new(backbone()).plan(plan).seed(1).session(&train).unwrap();
    let mut session = of(plan.clone().augment(Augment::standard()));
    let batch = next(&mut session).unwrap().unwrap();
    assert_eq!(batch.images().unwrap().dims()[1..], [3, 32, 32], "images, not cached features");
    // Not augmenting is no edit of a strategy that does not.
    assert_eq!(of(plan.augment(Augment::none())).report().overrides, [""; 0]);
    // A plan that counts blocks is the same as one that names the same blocks, not an edit of it.
    let mut plan = Strategy::SmallDifferent.plan(&backbone(), train.len());
    plan.phases.iter_mut().for_each(|phase| phase.epochs = 1);
    plan.phases[1].freeze = FreezePolicy::First(4);
    let report = FineTuner::new(backbone()).plan(plan).fit(&train, &valid).unwrap().report;
    assert_eq!(fields(&report), ["phases.1.epochs", "phases.2.epochs"]);
}

#[test]
fn a_phase_may_go_without_augmentation() {
    let (train, valid) = (pictures(16, 40, 2, 1), pictures(6, 40, 2, 100));
    let first = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1);
    let cached = |phase: Phase, augment: Augment| {
        let mut recipe = plan(vec![phase], 8);
        recipe.augment = augment;
        let report = tuner(recipe).fit(&train, &valid).unwrap().report;
        (report.cached_mb > 0.0, report.epochs[0].train_loss)
    };
    let plain = cached(first.clone(), Augment::none());
    assert_eq!(cached(first.clone().augmented(false), Augment::standard()), plain);
    let augmented = cached(first, Augment::standard());
    assert!(!augmented.0 && augmented.1 != plain.1);
}

#[test]
fn a_plan_in_which_nothing_can_learn_is_refused() {
    let (train, valid) = data();
    let all = ["conv1", "bn1", "layer1", "layer2", "layer3", "linear"].map(String::from).to_vec();
    let frozen = plan(vec![phase(FreezePolicy::Named(all), BatchNormMode::Train, 1)], 8);
    // A fault in a later phase is found before the first phase is trained.
    let mut later = frozen.clone();
    later.phases.insert(0, phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 1));
    for frozen in [frozen, later] {
        let error = tuner(frozen).session(&train).err().unwrap().to_string();
        assert!(error.contains("nothing would be trained"), "{error}");
    }
    let random = plan(vec![phase(FreezePolicy::First(2), BatchNormMode::Train, 1)], 8).init(Init::Random);
    let error = tuner(random).fit(&train, &valid).unwrap_err().to_string();
    assert!(error.contains("start from random weights"), "{error}");
}

#[test]
fn the_four_strategies_run_on_a_split() {
    let all: VecDataset = pictures(18, 36, 2, 1);
    let (train, valid) = split(&all, 0.3, 1).unwrap();
    for strategy in Strategy::QUADRANTS {
        let backbone = backbone().for_input_spec(InputSpec::new(32).crop_mode(CropMode::Squash)).unwrap();
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

/// Class 3 of the classifier is not class 3 of the data, although both have the same number of classes.
#[test]
fn the_original_classifier_wants_its_own_classes_in_its_order() {
    let backbone = candle_finetune::Backbone::embedded(&crate::support::CPU).unwrap();
    let labels = backbone.labels().unwrap().to_vec();
    let data =
        |labels: Vec<String>| TensorDataset::new(crate::support::images(2, 3, 32, 1), vec![0, 1], labels).unwrap();
    let start = |labels: Vec<String>| {
        FineTuner::new(backbone.clone()).head(Head::original()).plan(plans().remove(0)).session(&data(labels))
    };
    start(labels.clone()).unwrap();
    let mut swapped = labels.clone();
    swapped.swap(3, 4);
    let error = start(swapped).err().unwrap().to_string();
    assert!(error.contains("class 3") && error.contains(&labels[3]) && error.contains(&labels[4]), "{error}");
    assert!(start(labels[..9].to_vec()).is_err());
}

/// A gray image is the same error with and without a frozen prefix.
#[test]
fn images_of_other_channels_are_refused_before_frozen_blocks_too() {
    let gray = TensorDataset::new(crate::support::images(4, 1, 32, 1), vec![0, 1, 0, 1], vec!["a".into(), "b".into()])
        .unwrap();
    for plan in plans() {
        let mut session = tuner(plan).session(&gray).unwrap();
        let error = next(&mut session).and_then(|batch| session.forward(&batch.unwrap())).unwrap_err().to_string();
        assert!(error.contains("(N, 3, height, width)"), "{error}");
    }
}
