//! Heads that are fitted in closed form: over the network's features before training, and over all stages.

use crate::support::{CPU, all_bits, bits, class_names, differing, names_of, pictures, plan, read, tensors};
use crate::training::{backbone, data, phase};
use candle_finetune::candle_core::{DType, Tensor};
use candle_finetune::{
    BatchNormMode, Cut, Dataset, Error, Event, FeatureCache, FeatureExtractor, FeatureSet, FineTuner, Fitted,
    FreezePolicy, Head, HeadKind, HeadStart, Init, Optimizer, Plan, Result, Sample, SampleInfo, Session, Strategy,
    Target, split,
};
use std::sync::{Arc, Mutex};

mod files;
mod resumed;

/// The file of the predictor that came out, its report included.
pub fn bytes(fitted: &Fitted) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fitted.predictor.save(file.path()).unwrap();
    std::fs::read(file.path()).unwrap()
}

pub fn tuner(plan: &Plan) -> FineTuner {
    FineTuner::new(backbone()).plan(plan.clone()).seed(5)
}

pub fn fitted_alone(start: HeadStart) -> Plan {
    Plan::new(vec![]).head_start(start)
}

/// A fitted head, then a part of the network is trained.
pub fn fitted_first(optimizer: Optimizer) -> Plan {
    let mut phase = phase(FreezePolicy::First(6), BatchNormMode::Train, 2);
    phase.optimizer = optimizer;
    plan(vec![phase], 8).head_start(HeadStart::Probe)
}

#[test]
fn a_head_is_fitted_and_nothing_else_changes() {
    let (train, valid) = data();
    for start in [HeadStart::Probe, HeadStart::Stages] {
        let fitted = tuner(&fitted_alone(start)).fit(&train, &valid).unwrap();
        let (before, after) = (all_bits(backbone().tensors()), all_bits(fitted.predictor.backbone().tensors()));
        assert_eq!(differing(&before, &after), [""; 0], "{start:?}");
        let report = &fitted.report;
        let fit = report.head_fit.as_ref().unwrap();
        assert_eq!((report.best_epoch, report.epochs.len(), report.samples.valid), (Some(0), 0, Some(12)));
        let evaluation = fitted.predictor.evaluate(&valid).unwrap();
        assert_eq!((report.valid_top1, fit.valid_top1), (Some(evaluation.top1()), Some(evaluation.top1())));
        assert_eq!((fit.valid_loss, fit.samples), (Some(evaluation.loss), 21));
        // The three classes differ in brightness, which even a random network shows; guessing has a loss of ln 3.
        assert!(evaluation.top1() > 0.7 && evaluation.loss < 0.6, "{start:?}: {evaluation} {}", evaluation.loss);
        let (kept, columns) = if start == HeadStart::Probe { (64, 64) } else { (fit.kept, 17 * (16 + 16 + 32 + 64)) };
        assert_eq!((fit.kept, fit.columns), (kept, columns));
        assert_eq!(report.parameters.learning, 3 * kept + 3);
        let text = format!("{report}{}", report.table());
        assert!(text.contains("kept the fitted head") && text.contains("head fitted to 21 samples"), "{text}");
        // A linear head is a classifier like any that comes with weights.
        let classes = (start == HeadStart::Probe).then_some(3);
        assert_eq!(fitted.predictor.backbone().num_classes(), classes);
    }
}

/// The columns are those that the documentation of `HeadKind::Stages` lists.
#[test]
fn logits_are_those_of_the_kept_columns() {
    let (train, valid) = data();
    let fitted = tuner(&fitted_alone(HeadStart::Stages)).fit(&train, &valid).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fitted.predictor.save(file.path()).unwrap();
    let tensors = read(file.path());
    let kept: Vec<i64> = tensors["linear.columns"].to_vec1().unwrap();
    assert!(kept.is_sorted() && kept.len() == fitted.report.head_fit.as_ref().unwrap().kept);

    let (backbone, data): (_, Arc<dyn Dataset>) = (backbone(), Arc::new(valid.clone()));
    let extractor = FeatureExtractor::new(&backbone).unwrap();
    let (cuts, all) = ([Cut::Stages { pooled: 1 }, Cut::Stages { pooled: 4 }], (0..valid.len()).collect::<Vec<_>>());
    let set = FeatureSet::gather(&data, &all, 1, &extractor, &cuts, &FeatureCache::new()).unwrap().unwrap();
    let rows: Vec<Tensor> =
        (0..8).map(|output| set.features(output, &all, 0).unwrap().flatten_from(1).unwrap()).collect();
    let rows: Vec<Vec<f32>> = Tensor::cat(&rows, 1).unwrap().to_vec2().unwrap();
    let weight: Vec<Vec<f32>> = tensors["linear.weight"].to_vec2().unwrap();
    let bias: Vec<f32> = tensors["linear.bias"].to_vec1().unwrap();

    let images: Vec<Tensor> = all
        .iter()
        .map(|&i| match valid.sample(i).unwrap() {
            Sample::Tensor(t) => t,
            other => panic!("{other:?}"),
        })
        .collect();
    let logits: Vec<Vec<f32>> =
        fitted.predictor.logits(&Tensor::stack(&images, 0).unwrap()).unwrap().to_vec2().unwrap();
    for (row, logits) in rows.iter().zip(&logits) {
        for (class, logit) in logits.iter().enumerate() {
            let sum = kept.iter().zip(&weight[class]).map(|(&c, w)| f64::from(row[c as usize]) * f64::from(*w));
            let expected = sum.sum::<f64>() + f64::from(bias[class]);
            assert!((f64::from(*logit) - expected).abs() < 1e-3 * expected.abs().max(1.0), "{logit} {expected}");
        }
    }
}

/// The same for any number of threads, with and without a cache, and with features that another run has cached.
#[test]
fn one_seed_gives_one_fit() {
    let (train, valid) = (pictures(20, 40, 2, 1), pictures(8, 40, 2, 100));
    let shared = FeatureCache::new();
    for plan in [fitted_alone(HeadStart::Stages), fitted_first(Optimizer::adamw(1e-3))] {
        let run = |threads: usize, workers: usize, cache: &FeatureCache| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let tuner = tuner(&plan).workers(workers).cache(cache);
            pool.install(|| bytes(&tuner.fit(&train, &valid).unwrap()))
        };
        let first = run(1, 1, &FeatureCache::new());
        for (threads, workers, cache) in
            [(2, 3, &FeatureCache::off()), (3, 0, &shared), (2, 1, &shared), (1, 1, &FeatureCache::new().budget(9000))]
        {
            assert!(first == run(threads, workers, cache), "{threads} {workers} {cache:?}: {plan}");
        }
        let other = tuner(&plan).seed(6).fit(&train, &valid).unwrap();
        assert!(bytes(&other) != first, "the report has the seed");
    }
}

/// Training that makes the fitted head worse is undone.
#[test]
fn training_that_makes_it_worse_falls_back_to_epoch_0() {
    let (train, valid) = data();
    let alone = tuner(&fitted_alone(HeadStart::Probe)).fit(&train, &valid).unwrap();
    let heard = Arc::new(Mutex::new(vec![]));
    let hearing = heard.clone();
    let worse = tuner(&fitted_first(Optimizer::sgd(0.9))).on_event(move |event| {
        if let Event::HeadFit(fit) = event {
            hearing.lock().unwrap().push((*fit).clone());
        }
    });
    let worse = worse.fit(&train, &valid).unwrap();
    assert_eq!((worse.report.best_epoch, worse.report.epochs.len()), (Some(0), 2), "{}", worse.report.table());
    assert_eq!(heard.lock().unwrap().as_slice(), [worse.report.head_fit.clone().unwrap()]);
    assert!(worse.report.to_string().contains("the fitted head, before 2 epochs"), "{}", worse.report);
    let tensors = |fitted: &Fitted| all_bits(fitted.predictor.backbone().tensors());
    assert_eq!(differing(&tensors(&alone), &tensors(&worse)), [""; 0]);
    let images = crate::support::images(3, 3, 32, 9);
    let logits = |fitted: &Fitted| bits(&fitted.predictor.logits(&images).unwrap());
    assert_eq!(logits(&alone), logits(&worse));
    assert_eq!(alone.report.valid, worse.report.valid);
    // Gentle training begins at the fitted head, if batch norms do not change what it was fitted to.
    let mut gentle = fitted_first(Optimizer::adamw(1e-5));
    gentle.phases[0].batch_norm = BatchNormMode::FrozenStats;
    let better = tuner(&gentle).fit(&train, &valid).unwrap();
    let (fit, first) = (better.report.head_fit.unwrap(), &better.report.epochs[0]);
    assert!((first.valid_loss.unwrap() - fit.valid_loss.unwrap()).abs() < 0.2, "{fit:?} {first:?}");
}

#[test]
fn the_two_strategies_run_on_a_split() {
    let all = pictures(24, 36, 2, 1);
    let (train, valid) = split(&all, 0.3, 1).unwrap();
    for strategy in [Strategy::Intermediate, Strategy::ProbeThenTune] {
        let mut plan = strategy.plan(&backbone(), train.len());
        let forecast = plan.forecast(&backbone(), Head::linear(), 2).unwrap();
        let numbers: usize = backbone().tensors().values().map(Tensor::elem_count).sum();
        let columns = if strategy == Strategy::Intermediate { 17 * 128 } else { 64 };
        assert_eq!(forecast.weights, 4 * (numbers + 2 * columns + 2), "{strategy}");
        assert!(forecast.total().unwrap() > forecast.weights);
        plan.phases.iter_mut().for_each(|p| p.epochs = 1);
        let fitted = tuner(&plan).fit(&train, &valid).unwrap();
        assert_eq!(fitted.report.strategy, Some(strategy));
        assert_eq!(fitted.report.epochs.len(), usize::from(strategy == Strategy::ProbeThenTune));
        assert_eq!(fitted.predictor.report().unwrap().unwrap().head_fit, fitted.report.head_fit);
    }
}

/// Samples with soft targets, in groups.
#[derive(Clone)]
struct Targeted(candle_finetune::TensorDataset);

impl Dataset for Targeted {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn classes(&self) -> &[String] {
        self.0.classes()
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        let soft = (0..3).map(|k| if k == i % 3 { 0.8 } else { 0.1 }).collect();
        SampleInfo::new(i, Target::Soft(soft)).group((i / 4) as u32)
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        self.0.sample(i)
    }
}

#[test]
fn soft_targets_and_groups_are_fitted() {
    let (train, valid) = data();
    for start in [HeadStart::Probe, HeadStart::Stages] {
        let fitted = tuner(&fitted_alone(start)).fit(&Targeted(train.clone()), &valid).unwrap();
        assert!(fitted.report.valid_top1.unwrap() > 0.7, "{start:?} {}", fitted.report);
        // Scaled to targets of 0.8, the most probable class is no more probable than the data says.
        let sure = tuner(&fitted_alone(start)).fit(&train, &valid).unwrap().report.head_fit.unwrap();
        assert!(fitted.report.head_fit.unwrap().temperature < sure.temperature);
    }
}

#[test]
fn few_samples_and_one_class_more_than_samples() {
    for (n, classes) in [(2, 2), (3, 2), (5, 4)] {
        let data = tensors(n, 32, classes, 1);
        for start in [HeadStart::Probe, HeadStart::Stages] {
            let fitted = tuner(&fitted_alone(start)).fit(&data, &data).unwrap();
            assert_eq!(fitted.report.head_fit.unwrap().samples, n, "{start:?}");
        }
    }
}

#[test]
fn heads_and_plans_that_do_not_fit_are_refused_with_the_remedy() {
    let (train, _) = data();
    let refused = |plan: &Plan, head: Head, words: &[&str]| {
        let error = tuner(plan).head(head).session(&train).err().unwrap_or_else(|| panic!("accepted: {words:?}"));
        let text = error.to_string();
        assert!(matches!(error, Error::Invalid { .. }) && words.iter().all(|word| text.contains(word)), "{text}");
        assert!(plan.forecast(&backbone(), head, 3).is_err());
    };
    let mut stages = Head::linear();
    stages.kind = HeadKind::Stages;
    let trained = fitted_first(Optimizer::adamw(1e-3));
    refused(&trained.clone().head_start(HeadStart::Stages), Head::linear(), &["phases", "HeadStart::Probe"]);
    refused(&trained.clone().head_start(HeadStart::Random), stages, &["HeadStart::Stages"]);
    refused(&trained, stages, &["HeadStart::Stages"]);
    for plan in [&trained, &fitted_alone(HeadStart::Stages)] {
        refused(plan, Head::mlp(8), &["one linear layer", "Head::linear()"]);
    }
    let error = tuner(&trained).head(Head::original()).session(&train).err().unwrap().to_string();
    assert!(error.contains("replace the original classifier"), "{error}");
    refused(&fitted_alone(HeadStart::Stages), Head::linear().dropout(0.1), &["dropout"]);
    refused(&Plan::new(vec![]), Head::linear(), &["phases", "there are none"]);
    for start in [HeadStart::Probe, HeadStart::Stages] {
        refused(&fitted_alone(start).init(Init::Random), Head::linear(), &["random weights"]);
    }
    tuner(&fitted_alone(HeadStart::Stages)).head(stages).session(&train).unwrap();
    tuner(&trained).head(Head::linear().dropout(0.1)).session(&train).unwrap();
}

#[test]
fn a_start_is_offered_once_and_before_the_first_step() {
    let (train, valid) = data();
    let refused = |session: &mut Session, word: &str| {
        let evaluation = session.evaluate(&valid).unwrap();
        let error = session.offer_start(&evaluation).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    let mut session = tuner(&fitted_first(Optimizer::adamw(1e-3))).session(&train).unwrap();
    refused(&mut session, "fit_head");
    assert!(session.fit_head().unwrap());
    assert!(!session.fit_head().unwrap());
    let evaluation = session.evaluate(&valid).unwrap();
    assert!(session.offer_start(&evaluation).unwrap());
    refused(&mut session, "before");
    let mut session = tuner(&fitted_first(Optimizer::adamw(1e-3))).session(&train).unwrap();
    let batch = crate::support::next(&mut session).unwrap().unwrap();
    session.step(&batch).unwrap();
    refused(&mut session, "before the first step");
    // Of a plan whose head starts at random.
    let random = fitted_first(Optimizer::adamw(1e-3)).head_start(HeadStart::Random);
    let mut session = tuner(&random).session(&train).unwrap();
    assert!(!session.fit_head().unwrap());
    refused(&mut session, "no head was fitted");
}

/// A network in f64 keeps its type.
#[test]
fn the_heads_type_is_the_networks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    crate::support::write(&path, backbone().tensors());
    let source = candle_finetune::Source::file(&path).arch(candle_finetune::Arch::CIFAR_RESNET20).dtype(DType::F64);
    let backbone = candle_finetune::Backbone::load(source, &CPU).unwrap();
    let (train, valid) = data();
    for start in [HeadStart::Probe, HeadStart::Stages] {
        let tuned = FineTuner::new(backbone.clone()).plan(fitted_alone(start)).fit(&train, &valid).unwrap();
        let images = crate::support::images(2, 3, 32, 1);
        assert_eq!(tuned.predictor.logits(&images).unwrap().dtype(), DType::F64);
        assert_eq!(names_of(&train), class_names(3));
    }
}
