//! A saved predictor predicts the same as the original.

use crate::support::{CPU, all_bits, bits, differing, names_of, pictures, plan, read, tensors, write};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    Arch, Backbone, BatchNormMode, CropMode, Dataset, Error, Evaluation, FineTuner, Fitted, FreezePolicy, Head,
    HeadKind, Image, InputSpec, Optimizer, Phase, Prediction, Predictor, SampleInfo, Source, Target, TensorDataset,
    VecDataset,
};
use std::collections::BTreeMap;
use std::path::Path;

fn tuned(head: Head) -> (Fitted, VecDataset) {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    let backbone = backbone.for_input_spec(InputSpec::new(32).crop_mode(CropMode::Squash).crop_pct(0.9)).unwrap();
    let data = pictures(20, 36, 3, 1);
    let phase = Phase::new(1, Optimizer::adamw(1e-3)).freeze(FreezePolicy::First(7));
    let fitted = FineTuner::new(backbone).plan(plan(vec![phase], 8)).head(head).fit(&data, &data).unwrap();
    (fitted, data)
}

/// All outputs of a predictor, as bits.
fn said(predictor: &Predictor, data: &VecDataset) -> (Vec<Prediction>, Vec<Vec<u32>>, Evaluation) {
    let images: Vec<Image> = (0..data_len(data)).map(|i| image(data, i)).collect();
    let predictions = predictor.predict_batch(&images).unwrap();
    let bits = predictions.iter().map(|p| p.probabilities.iter().map(|v| v.to_bits()).collect()).collect();
    (predictions, bits, predictor.evaluate(data).unwrap())
}

fn data_len(data: &VecDataset) -> usize {
    candle_finetune::Dataset::len(data)
}

fn image(data: &VecDataset, i: usize) -> Image {
    match candle_finetune::Dataset::sample(data, i).unwrap() {
        candle_finetune::Sample::Image(image) => image,
        other => panic!("{other:?}"),
    }
}

#[test]
fn saved_and_loaded_it_says_the_same_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    for (head, layers) in [(Head::linear(), 1), (Head::mlp(24).dropout(0.3), 2)] {
        let (fitted, data) = tuned(head);
        let path = dir.path().join("predictor.safetensors");
        fitted.predictor.save(&path).unwrap();
        let loaded = Predictor::from_file(&path, &CPU).unwrap();
        assert_eq!(loaded.labels(), names_of(&data));
        assert_eq!(loaded.labels(), fitted.predictor.labels());
        assert_eq!(loaded.backbone().input_spec(), fitted.predictor.backbone().input_spec());
        assert_eq!(said(&loaded, &data), said(&fitted.predictor, &data));
        assert_eq!(fitted.report.valid_top1, Some(loaded.evaluate(&data).unwrap().top1()));
        assert_eq!(loaded.evaluate(&data).unwrap().total, 20);

        // Saving a loaded predictor gives the same file, metadata included.
        let second = dir.path().join("second.safetensors");
        loaded.save(&second).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&second).unwrap());

        // Loaded as a backbone, with and without its architecture.
        for source in [Source::file(&path), Source::file(&path).arch(Arch::CIFAR_RESNET20)] {
            let backbone = Backbone::load(source, &CPU).unwrap();
            assert_eq!(backbone.labels(), Some(loaded.labels()));
            assert_eq!(backbone.num_classes(), (layers == 1).then_some(3));
            assert_eq!(backbone.num_classes(), fitted.predictor.backbone().num_classes());
            assert_eq!(backbone.input_spec(), loaded.backbone().input_spec());
            let (a, b) = (all_bits(backbone.tensors()), all_bits(fitted.predictor.backbone().tensors()));
            assert_eq!(differing(&a, &b), [""; 0]);
        }
        let wrong = Backbone::from_file(Arch::RESNET18, &path, &CPU).unwrap_err();
        assert!(matches!(wrong, Error::WeightsMismatch { .. }), "{wrong}");
    }
}

#[test]
fn one_image_and_many_agree() {
    let (fitted, data) = tuned(Head::linear());
    let all = fitted.predictor.predict_batch(&[image(&data, 4), image(&data, 5)]).unwrap();
    let one = fitted.predictor.predict(&image(&data, 5)).unwrap();
    assert_eq!(one.class, all[1].class);
    for (a, b) in one.probabilities.iter().zip(&all[1].probabilities) {
        assert!((a - b).abs() < 1e-6);
    }
    assert!((one.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    assert_eq!(one.label, fitted.predictor.labels()[one.class as usize]);
    assert_eq!(one.probability, one.probabilities[one.class as usize]);
    assert!(fitted.predictor.predict_batch(&[]).unwrap().is_empty());
    // Gray images are converted to RGB.
    let gray = Image::new(10, 50, 1, vec![77; 500]).unwrap();
    assert_eq!(fitted.predictor.predict(&gray).unwrap().probabilities.len(), 3);
}

#[test]
fn the_names_are_those_of_a_whole_timm_network() {
    let dir = tempfile::tempdir().unwrap();
    let backbone = Backbone::random(Arch::RESNET18, 3, &CPU).unwrap();
    let mut expected: Vec<String> = backbone.tensors().keys().cloned().collect();
    let norms: Vec<String> = expected
        .iter()
        .filter_map(|n| n.strip_suffix(".running_mean"))
        .map(|n| format!("{n}.num_batches_tracked"))
        .collect();
    expected.extend(norms);
    expected.extend(["fc.weight".to_string(), "fc.bias".into()]);
    expected.sort();
    assert_eq!(expected.len(), 122, "as many as timm's resnet18 has");
    let phase = Phase::new(1, Optimizer::adamw(1e-3)).freeze(FreezePolicy::Backbone).batch_norm(BatchNormMode::Frozen);
    let data = tensors(4, 32, 2, 1);
    let fitted = FineTuner::new(backbone).plan(plan(vec![phase], 4)).fit(&data, &data).unwrap();
    let path = dir.path().join("p.safetensors");
    fitted.predictor.save(&path).unwrap();
    assert_eq!(read(&path).keys().cloned().collect::<Vec<_>>(), expected);
}

/// A saved file with changed tensors and the same metadata.
pub fn edited(from: &Path, to: &Path, edit: impl FnOnce(&mut BTreeMap<String, Tensor>, &mut String)) {
    let bytes = std::fs::read(from).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut description = header.metadata().as_ref().unwrap()["candle_finetune"].clone();
    let mut tensors = read(from);
    edit(&mut tensors, &mut description);
    let texts = std::collections::HashMap::from([("candle_finetune".to_string(), description)]);
    let file = safetensors::serialize(&tensors, Some(texts)).unwrap();
    std::fs::write(to, file).unwrap();
}

#[test]
fn files_that_do_not_fit_together_are_typed_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.safetensors"), dir.path().join("bad.safetensors"));
    tuned(Head::linear()).0.predictor.save(&good).unwrap();
    edited(&good, &bad, |_, _| {});
    Predictor::from_file(&bad, &CPU).unwrap();

    type Edit = fn(&mut BTreeMap<String, Tensor>, &mut String);
    let edits: [(&str, Edit); 8] = [
        ("classes", |t, _| drop(t.insert("linear.weight".into(), t["linear.weight"].narrow(0, 0, 2).unwrap()))),
        ("classes both", |t, _| {
            t.insert("linear.weight".into(), t["linear.weight"].narrow(0, 0, 2).unwrap());
            t.insert("linear.bias".into(), t["linear.bias"].narrow(0, 0, 2).unwrap());
        }),
        ("features", |t, _| drop(t.insert("linear.weight".into(), t["linear.weight"].narrow(1, 0, 63).unwrap()))),
        ("rank", |t, _| drop(t.insert("linear.weight".into(), t["linear.weight"].flatten_all().unwrap()))),
        ("no head", |t, _| drop(t.remove("linear.bias"))),
        ("labels", |_, d| *d = d.replacen("\"class 2\"", "\"class 2\",\"class 3\"", 1)),
        ("damaged", |_, d| d.truncate(d.len() / 2)),
        ("newer", |_, d| *d = "{\"version\":99,\"everything\":\"else\"}".to_string()),
    ];
    for (what, edit) in edits {
        edited(&good, &bad, edit);
        let error = Predictor::from_file(&bad, &CPU).unwrap_err();
        assert!(matches!(error, Error::Weights { .. }), "{what}: {error}");
        if what == "newer" {
            assert!(error.to_string().contains("newer version"), "{error}");
        }
    }
    edited(&good, &bad, |_, d| *d = d.replace("cifar_resnet20", "cifar_resnet21"));
    assert!(matches!(Predictor::from_file(&bad, &CPU), Err(Error::UnknownArch { .. })));
    edited(&good, &bad, |t, _| drop(t.remove("layer1.0.bn1.weight")));
    assert!(matches!(Predictor::from_file(&bad, &CPU), Err(Error::WeightsMismatch { .. })));

    let plain = dir.path().join("plain.safetensors");
    write(&plain, &read(&good));
    let error = Predictor::from_file(&plain, &CPU).unwrap_err();
    assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains("not a saved predictor"), "{error}");
    assert!(matches!(Predictor::from_file(dir.path().join("none"), &CPU), Err(Error::Io { .. })));
}

/// A dataset of one sample.
#[derive(Clone)]
struct One(Tensor, Target, Vec<String>);

impl Dataset for One {
    fn len(&self) -> usize {
        1
    }
    fn classes(&self) -> &[String] {
        &self.2
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, self.1.clone())
    }
    fn sample(&self, _: usize) -> candle_finetune::Result<candle_finetune::Sample> {
        Ok(candle_finetune::Sample::Tensor(self.0.clone()))
    }
}

/// The same samples with other class names.
fn renamed(data: &VecDataset, names: &[String]) -> VecDataset {
    let class = |i: usize| match data.info(i).target {
        Target::Class(class) => class,
        other => panic!("{other:?}"),
    };
    let samples = (0..data.len()).map(|i| (image(data, i), class(i))).collect();
    VecDataset::new(samples, names.to_vec()).unwrap()
}

#[test]
fn the_original_classifier_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (fitted, data) = tuned(Head::linear());
    let path = dir.path().join("p.safetensors");
    fitted.predictor.save(&path).unwrap();
    // Without its metadata, it is a plain file of weights with a classifier of three classes.
    let plain = dir.path().join("plain.safetensors");
    write(&plain, &read(&path));
    let source =
        Source::file(&plain).arch(Arch::CIFAR_RESNET20).input_spec(fitted.predictor.backbone().input_spec().clone());
    let predictor = Predictor::load(source, &CPU).unwrap();
    assert_eq!(predictor.labels(), ["0", "1", "2"]);
    let (a, b) = (said(&predictor, &renamed(&data, predictor.labels())), said(&fitted.predictor, &data));
    assert_eq!((a.1, a.2), (b.1, b.2));
    // With it, labels and head are there too.
    assert_eq!(Predictor::load(Source::file(&path), &CPU).unwrap().labels(), fitted.predictor.labels());
    let (mlp, data_too) = tuned(Head::mlp(8));
    mlp.predictor.save(&path).unwrap();
    let back = Predictor::load(Source::file(&path), &CPU).unwrap();
    let (a, b) = (said(&back, &data_too), said(&mlp.predictor, &data_too));
    assert_eq!((a.1, a.2), (b.1, b.2));
    // For another architecture it is a file of weights that do not fit.
    let source = Source::file(&path).arch(Arch::CIFAR_RESNET32);
    assert!(matches!(Predictor::load(source, &CPU), Err(Error::WeightsMismatch { .. })));

    // Training can continue from there, with the classifier as it is.
    let mut p = plan(vec![Phase::new(1, Optimizer::sgd(1e-3))], 8);
    p.patience = Some(3);
    let session = FineTuner::new(predictor.backbone().clone()).plan(p).head(Head::original()).session(&data).unwrap();
    let state = session.tensors().unwrap();
    assert_eq!(bits(&state["linear.weight"]), bits(&read(&plain)["linear.weight"]));
    assert_eq!(Head::original().kind, HeadKind::Original);
    // The backbone of a tuned predictor has the head as its classifier, as its file has.
    let again = FineTuner::new(fitted.predictor.backbone().clone()).head(Head::original());
    let session = again.plan(plan(vec![Phase::new(1, Optimizer::sgd(1e-3))], 8)).session(&data).unwrap();
    assert_eq!(bits(&session.tensors().unwrap()["linear.weight"]), bits(&read(&plain)["linear.weight"]));
}

#[test]
fn data_that_is_not_the_predictors_is_refused() {
    let (fitted, data) = tuned(Head::linear());
    let with = |names: &[&str]| {
        let names = names.iter().map(ToString::to_string).collect();
        let one = (image(&data, 0), 0);
        fitted.predictor.evaluate(&VecDataset::new(vec![one], names).unwrap())
    };
    assert!(with(&["class 0", "class 1", "class 2"]).is_ok());
    let cases = [
        (["class 0", "class 1"].as_slice(), "class 2 is missing"),
        (&["ant", "bee"], "class 0 is \"ant\""),
        (&["class 0", "bee", "class 2"], "class 1 is \"bee\", and the network's is \"class 1\""),
    ];
    for (names, said) in cases {
        let error = with(names).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let error = with(&["class 0", "class 2", "class 1"]).unwrap_err().to_string();
    assert!(error.contains("class 2"), "{error}");
    assert!(with(&["a", "b", "c", "d"]).is_err());
    // Evaluation takes one class per sample; soft targets are used as they are.
    let names: Vec<String> = fitted.predictor.labels().to_vec();
    let one = Tensor::zeros((3, 32, 32), candle_finetune::candle_core::DType::F32, &CPU).unwrap();
    let with_target = |target: Target| fitted.predictor.evaluate(&One(one.clone(), target, names.clone()));
    let error = with_target(Target::Labels(vec![0])).unwrap_err().to_string();
    assert!(error.contains("lists of labels"), "{error}");
    let hard: Vec<f64> = (0..3).map(|class| with_target(Target::Class(class)).unwrap().loss).collect();
    let soft = with_target(Target::Soft(vec![0.5, 0.25, 0.25])).unwrap().loss;
    assert!((soft - (0.5 * hard[0] + 0.25 * (hard[1] + hard[2]))).abs() < 1e-9, "{soft} {hard:?}");
    assert!(fitted.predictor.evaluate(&VecDataset::new(vec![], names_of(&data)).unwrap()).is_err());
    let wrong = TensorDataset::new(crate::support::images(2, 1, 32, 1), vec![0, 1], names_of(&data)).unwrap();
    assert!(fitted.predictor.evaluate(&wrong).is_err());
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let (fitted, _) = tuned(Head::linear());
    let path = dir.path().join("p.safetensors");
    fitted.predictor.save(&path).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(fitted.predictor.save(dir.path()).is_err(), "a folder is no file");
    assert!(fitted.predictor.save(dir.path().join("no such folder").join("p")).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
}
