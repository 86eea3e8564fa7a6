//! Events and reports of a run.

use super::*;

#[test]
fn events_come_in_order() {
    let (train, valid) = data();
    let heard = Arc::new(Mutex::new(Vec::<String>::new()));
    let log = Arc::clone(&heard);
    let tuner = tuner(plans().remove(2)).on_event(move |event| {
        let line = match event {
            Event::Start(report) => {
                assert!(report.header().contains("21 samples of 3 classes"), "{}", report.header());
                "start".to_string()
            }
            Event::Phase { phase, phases, frozen_blocks } => format!("phase {phase}/{phases} {frozen_blocks}"),
            Event::Features { done, total } => format!("features {done}/{total}"),
            Event::Step { epoch, step, steps, loss, lr, gradient_norm, run_step, samples } => {
                assert!(loss.is_finite() && *lr == 2e-3 && *gradient_norm > 0.0);
                format!("step {epoch} {step}/{steps}, {run_step} of {samples}")
            }
            Event::Epoch(report) => format!("epoch {}.{}", report.phase, report.epoch),
            other => panic!("{other:?}"),
        };
        log.lock().unwrap().push(line);
    });
    tuner.fit(&train, &valid).unwrap();
    let mut expected = vec!["start".to_string()];
    let mut run_step = 0;
    for (phase, frozen) in [(1, 10), (2, 8)] {
        expected.extend([format!("phase {phase}/2 {frozen}"), "features 21/21".into(), "features 12/12".into()]);
        for epoch in 1..=2 {
            // 21 samples in batches of 8.
            for (step, samples) in [(1, 8), (2, 8), (3, 5)] {
                run_step += 1;
                expected.push(format!("step {epoch} {step}/3, {run_step} of {samples}"));
            }
            expected.push(format!("epoch {phase}.{epoch}"));
        }
    }
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[test]
fn a_single_sample_left_over_does_not_break_batch_statistics() {
    // An input of 4 pixels leaves one pixel at the last stage, where one sample has no batch statistics.
    let small = backbone().for_input_size(4, 4).unwrap();
    let recipe = plan(vec![phase(FreezePolicy::First(1), BatchNormMode::Train, 2)], 4);
    for budget in [0, 1 << 20] {
        let tuner =
            FineTuner::new(small.clone()).plan(recipe.clone()).seed(1).cache(&FeatureCache::new().budget(budget));
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
        // The file holds the report, without the timings.
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
fn double_precision_trains_with_kept_features_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    crate::support::write(&path, backbone().tensors());
    let source = candle_finetune::Source::file(path).arch(Arch::CIFAR_RESNET20);
    let double = Backbone::load(source.dtype(candle_finetune::candle_core::DType::F64), &CPU).unwrap();
    let (train, valid) = data();
    for budget in [0, 1 << 30] {
        let tuner = FineTuner::new(double.clone()).plan(plans().remove(2)).cache(&FeatureCache::new().budget(budget));
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
    assert_eq!((report.samples.train, report.seed, report.arch.as_str()), (21, 5, "cifar_resnet20"));
    assert_eq!(report.top1, report.valid_top1, "tested on the validation data here");
    let samples = serde_json::to_value(report.samples).unwrap();
    assert_eq!(samples, serde_json::json!({ "train": 21, "valid": 12, "test": 12 }));
    let test = serde_json::to_value(&report.test).unwrap();
    assert!(
        test["interval"][0].as_f64() < test["top1"].as_f64() && test["top1"].as_f64() < test["interval"][1].as_f64()
    );
    assert_eq!((report.input_size, report.version.as_str()), ((32, 32), env!("CARGO_PKG_VERSION")));
    assert!(
        report.date.as_ref().is_some_and(|date| date.starts_with("20") && date.ends_with('Z')),
        "{:?}",
        report.date
    );
    let summary = report.to_string();
    for words in ["kept epoch", "validation", "test", "95 % interval", "largest class", "peak memory"] {
        assert!(summary.contains(words), "{words}\n{summary}");
    }
    let text = report.table();
    let long = |text: &str| text.lines().any(|line| line.chars().count() > 80);
    let lines = report.epochs.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    for text in [&text, &summary, &report.header(), &lines] {
        assert!(!long(text), "{text}");
    }
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
    assert_eq!(text.matches("  best").count(), 1);
    // A report of version 0.1 had the number of training samples only, and no evaluations.
    let mut old = serde_json::to_value(&report).unwrap();
    old["samples"] = 21.into();
    for field in ["version", "date", "warnings", "input_size", "valid", "test"] {
        old.as_object_mut().unwrap().remove(field);
    }
    let old: Report = serde_json::from_value(old).unwrap();
    assert_eq!((old.samples.train, old.samples.valid, old.valid_top1), (21, None, report.valid_top1));
}
