//! Plans as JSON: versions, fields, and what 0.1 wrote.

use super::*;
use crate::{Arch, BatchNormMode, ClassWeights, Schedule};
use candle_core::Device;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A plan of 0.1 for the strategy large-similar.
const OF_0_1: &str = r#"{"init": "pretrained", "phases": [{"freeze": "backbone", "batch_norm": "frozen", "epochs": 10,
"optimizer": {"rule": {"adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-08}}, "lr": 0.01, "weight_decay": 0.01, "decay_all": false},
"backbone_lr_scale": 0.1, "layer_decay": 1.0, "schedule": {"shape": "cosine", "warmup": 0.0}, "augment": false},
{"freeze": "nothing", "batch_norm": "train", "epochs": 1,
"optimizer": {"rule": {"adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1e-08}}, "lr": 0.01, "weight_decay": 0.01, "decay_all": false},
"backbone_lr_scale": 0.1, "layer_decay": 1.0, "schedule": {"shape": "cosine", "warmup": 0.1}, "augment": true}],
"batch_size": 16,
"augment": {"crop_scale": null, "crop_ratio": [0.75, 1.3333334],
"pad_crop": 2, "flip": 0.5, "vertical_flip": 0.0,
"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "trivial": false, "erase": 0.0},
"views": null, "loss": {"label_smoothing": 0.0}, "clip": 1.0, "patience": null, "reasons": [
"much data that resembles the pretraining's: the weights are a good start, and there is enough data to tune all of them at a small rate",
"pretrained weights learn at 1e-3, a tenth of the rate from scratch (1e-2)"]}"#;

/// A plan that uses every part of a plan.
fn full() -> Plan {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
    let mut plan = Strategy::SmallDifferent.plan(&backbone, 800).augment(Augment::standard()).views(3).patience(4);
    plan.phases[0].optimizer = Optimizer::sgd(0.1).momentum(0.9);
    plan.phases[0].schedule = Schedule::step();
    plan.phases[1].schedule = Schedule::one_cycle();
    let last = plan.phases[1].clone().schedule(Schedule::plateau(3));
    plan.phases.push(last);
    let loss = Loss::cross_entropy().label_smoothing(0.1).focal(2.0).class_weights(ClassWeights::Given(vec![1.0, 2.0]));
    let plan = plan.loss(loss).grad_accum(2).sampling(Sampling::Weighted(vec![1.0, 2.0])).clip_value(0.5).l2_sp(0.1);
    let plan = plan.drop_path(0.1).ema(0.99).watch(Metric::MacroF1);
    let mixed = plan.augment.clone().mixup(0.2).cutmix(1.0);
    plan.augment(mixed).head_start(HeadStart::Probe)
}

/// The same as version 4 has it.
fn without_the_newest() -> Plan {
    let plan = full();
    let plain = Plan::new(vec![]);
    let plan = Plan { loss: Loss::cross_entropy().label_smoothing(0.1), clip_value: None, ema: None, ..plan };
    let plan = plan.grad_accum(1).sampling(Sampling::Shuffled).l2_sp(0.0).drop_path(0.0).watch(plain.watch);
    let plain = plan.augment.clone().mixup(0.0).cutmix(0.0);
    plan.augment(plain)
}

fn read(value: Value) -> Result<Plan, String> {
    serde_json::from_value(value).map_err(|error: serde_json::Error| error.to_string())
}

#[test]
fn a_plan_is_read_as_it_was_written() {
    let plan = full();
    let value = serde_json::to_value(plan.clone()).unwrap();
    assert_eq!(value["version"], json!(5));
    assert_eq!(read(value).unwrap(), plan);
    let mut plan = without_the_newest();
    let value = serde_json::to_value(plan.clone()).unwrap();
    assert_eq!(value["version"], json!(4));
    assert_eq!(read(value).unwrap(), plan);
    plan.phases.iter_mut().for_each(|phase| phase.schedule = Schedule::cosine());
    assert_eq!(serde_json::to_value(plan.clone()).unwrap()["version"], json!(3));
    let plan = plan.head_start(HeadStart::Random); // as version 2 has it
    let text = serde_json::to_string_pretty(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    // In reports it goes through a value.
    let value = serde_json::to_value(&plan).unwrap();
    assert_eq!((value["version"].clone(), value["strategy"].clone()), (json!(2), json!("small-different")));
    assert_eq!(value.get("head_start"), None);
    assert_eq!(read(value).unwrap(), plan);
}

#[test]
fn a_newer_plan_is_refused_by_name_and_not_for_its_fields() {
    let mut value = serde_json::to_value(full()).unwrap();
    value["version"] = json!(6);
    value["phases"][0]["momentum_schedule"] = json!("cosine");
    for text in
        [read(value.clone()).unwrap_err(), serde_json::from_str::<Plan>(&value.to_string()).unwrap_err().to_string()]
    {
        assert!(text.contains("newer version") && text.contains("format 6"), "{text}");
        assert!(!text.contains("momentum_schedule"), "{text}");
    }
    for wrong in [json!(0), json!(-1), json!(1.5), json!("2"), json!(null)] {
        value["version"] = wrong.clone();
        let text = read(value.clone()).unwrap_err();
        assert!(text.contains(&format!("version is {wrong}")), "{text}");
    }
}

#[test]
fn a_field_that_no_known_version_has_is_refused_by_name() {
    for version in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
        for place in ["", "/phases/1", "/loss", "/phases/0/schedule"] {
            let mut value = serde_json::to_value(full()).unwrap();
            value.as_object_mut().unwrap().remove("version");
            if let Some(version) = version {
                value["version"] = json!(version);
            }
            value.pointer_mut(place).unwrap()["patiance"] = json!(3);
            let text = read(value).unwrap_err();
            assert!(text.contains("plan: unknown field `patiance`"), "{version:?} {place}: {text}");
        }
    }
    let mut value = serde_json::to_value(full()).unwrap();
    value.as_object_mut().unwrap().remove("batch_size");
    assert!(read(value).unwrap_err().contains("batch_size"));
    assert!(read(json!([1, 2])).is_err() && read(json!("plan")).is_err());
}

/// All paths to values in a plan's JSON, with the places in lists left out.
fn fields(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            fields(&path, value, found);
        }),
        Value::Array(items) => items.iter().for_each(|value| fields(path, value, found)),
        _ => drop(found.insert(path.to_string())),
    }
}

#[test]
fn this_version_has_these_fields() {
    let expected = "augment.brightness augment.contrast augment.crop_ratio augment.crop_scale augment.cutmix \
                    augment.erase augment.flip augment.hue augment.mixup augment.pad_crop augment.saturation \
                    augment.trivial augment.vertical_flip batch_size clip clip_value drop_path ema grad_accum \
                    head_start init l2_sp loss.class_weights.given loss.focal loss.label_smoothing patience phases.augmented phases.backbone_lr_scale phases.batch_norm \
                    phases.epochs phases.freeze phases.freeze.up_to phases.layer_decay phases.optimizer.decay_all \
                    phases.optimizer.lr phases.optimizer.rule.adamw.beta1 phases.optimizer.rule.adamw.beta2 \
                    phases.optimizer.rule.adamw.eps phases.optimizer.rule.sgd.momentum \
                    phases.optimizer.rule.sgd.nesterov phases.optimizer.weight_decay phases.schedule.least \
                    phases.schedule.shape.onecycle.momentum phases.schedule.shape.onecycle.start \
                    phases.schedule.shape.plateau.factor phases.schedule.shape.plateau.patience \
                    phases.schedule.shape.step.every phases.schedule.shape.step.factor phases.schedule.warmup reasons \
                    samples sampling.weighted strategy version views watch";
    let mut found = BTreeSet::new();
    fields("", &serde_json::to_value(full()).unwrap(), &mut found);
    assert_eq!(
        found.into_iter().collect::<Vec<_>>().join(" "),
        expected,
        "raise plan::version::VERSION, say in its comment what changed, and keep reading what was written before"
    );
    assert_eq!(version::VERSION, 5, "the fields above are those of this version");
}

#[test]
fn plans_of_0_1_are_read() {
    let first = Phase::new(10, Optimizer::adamw(0.01))
        .freeze(FreezePolicy::Backbone)
        .batch_norm(BatchNormMode::Frozen)
        .backbone_lr_scale(0.1)
        .schedule(Schedule::cosine())
        .augmented(false);
    let second = Phase::new(1, Optimizer::adamw(0.01)).backbone_lr_scale(0.1).schedule(Schedule::cosine().warmup(0.1));
    let mut expected = Plan::new(vec![first, second]).batch_size(16).clip(1.0);
    expected.augment = Augment::none().pad_crop(2).flip(0.5);
    let plan: Plan = serde_json::from_str(OF_0_1).unwrap();
    expected.reasons = plan.reasons.clone();
    assert_eq!(plan, expected);
    assert_eq!(plan.reasons.len(), 2);
    // Before phases could choose, all of them were augmented.
    let mut value: Value = serde_json::from_str(OF_0_1).unwrap();
    value["phases"][0].as_object_mut().unwrap().remove("augment");
    assert!(read(value).unwrap().phases[0].augmented);
}

/// The oldest version that has all of a plan, so that files of the four strategies stay as they are.
#[test]
fn a_plan_is_written_as_the_oldest_version_that_has_it() {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
    for strategy in Strategy::ALL {
        let plan = strategy.plan(&backbone, 500);
        let version = if Strategy::QUADRANTS.contains(&strategy) { 2 } else { 3 };
        let value = serde_json::to_value(&plan).unwrap();
        assert_eq!(
            (&value["version"], value.get("head_start").is_some()),
            (&json!(version), version == 3),
            "{strategy}"
        );
        assert_eq!(read(value).unwrap(), plan);
        // A strategy that older crates do not know, whatever the head.
        let value = serde_json::to_value(plan.head_start(HeadStart::Random)).unwrap();
        assert_eq!(value["version"], json!(version), "{strategy}");
    }
    for name in ["random", "probe", "stages"] {
        let mut value = serde_json::to_value(full()).unwrap();
        value["head_start"] = json!(name);
        assert_eq!(serde_json::to_value(read(value).unwrap().head_start).unwrap(), json!(name));
    }
}

#[test]
fn an_edit_of_the_heads_start_is_listed() {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
    let plan = Strategy::SmallSimilar.plan(&backbone, 500);
    let edited = plan.clone().head_start(HeadStart::Probe).batch_size(7);
    let edits = edited.edits(&plan);
    assert_eq!(edits.len(), 2, "{edits:?}");
    assert!(edits.contains(&"head_start \"probe\" (the strategy has \"random\")".to_string()), "{edits:?}");
    assert_eq!(plan.edits(&edited).len(), 2);
    // Settings that are left out where they have their usual value.
    let edited = plan.clone().ema(0.9).loss(Loss::cross_entropy().focal(2.0));
    assert_eq!(edited.edits(&plan), ["ema 0.9 (the strategy has none)", "loss.focal 2.0 (the strategy has none)"]);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
    let plan = || Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]);
    for (plan, part) in [
        (plan().grad_accum(0), "grad_accum"),
        (plan().clip_value(0.0), "clip_value"),
        (plan().clip_value(f64::NAN), "clip_value"),
        (plan().ema(1.0), "ema"),
        (plan().ema(0.0), "ema"),
        (plan().drop_path(1.0), "drop_path"),
        (plan().l2_sp(-1.0), "l2_sp"),
        (plan().l2_sp(1.0).init(Init::Random), "random weights"),
        (plan().sampling(Sampling::Weighted(vec![1.0, -1.0])), "sampling"),
        (plan().sampling(Sampling::Weighted(vec![0.0, 0.0])), "sampling"),
        (plan().loss(Loss::cross_entropy().focal(-1.0)), "focal"),
        (plan().augment(Augment::none().mixup(0.2)).views(2), "views"),
    ] {
        let error = plan.check(&backbone).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    plan().grad_accum(4).clip_value(1.0).ema(0.999).drop_path(0.5).l2_sp(0.1).check(&backbone).unwrap();
}
