//! Files of predictors with a head over all stages.

use super::{fitted_alone, tuner};
use crate::predictor::edited;
use crate::support::{CPU, bits, images, pictures, read, tensors};
use candle_finetune::candle_core::{DType, Tensor};
use candle_finetune::{
    Backbone, Block, Blueprint, Conv2d, Error, FineTuner, HeadStart, InputSpec, Layer, Predictor, Source,
};
use std::collections::BTreeMap;

type Edit = Box<dyn Fn(&mut BTreeMap<String, Tensor>, &mut String)>;

/// Changes one tensor.
fn changed(name: &'static str, change: impl Fn(&Tensor) -> Tensor + 'static) -> Edit {
    Box::new(move |tensors, _| drop(tensors.insert(name.into(), change(&tensors[name]))))
}

#[test]
fn saved_and_loaded_it_says_the_same_to_the_bit() {
    let (train, valid) = (pictures(20, 40, 3, 1), pictures(9, 40, 3, 100));
    let dir = tempfile::tempdir().unwrap();
    let (path, again) = (dir.path().join("p.safetensors"), dir.path().join("again.safetensors"));
    let fitted = tuner(&fitted_alone(HeadStart::Stages)).fit(&train, &valid).unwrap();
    fitted.predictor.save(&path).unwrap();
    let loaded = Predictor::from_file(&path, &CPU).unwrap();
    let batch = images(5, 3, 32, 3);
    assert_eq!(bits(&loaded.logits(&batch).unwrap()), bits(&fitted.predictor.logits(&batch).unwrap()));
    assert_eq!(loaded.evaluate(&valid).unwrap(), fitted.predictor.evaluate(&valid).unwrap());
    loaded.save(&again).unwrap();
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&again).unwrap());
    assert_eq!(read(&path)["linear.columns"].dtype(), DType::I64);
    // As a backbone: the head is no classifier, whatever its width.
    let backbone = Backbone::load(Source::file(&path), &CPU).unwrap();
    assert_eq!(backbone.num_classes(), None);
    assert!(backbone.notes().iter().any(|note| note.contains("head over all stages")), "{:?}", backbone.notes());
    // Folders work as well, and their card does not promise timm.
    loaded.save_folder(dir.path().join("folder")).unwrap();
    let folder = Predictor::load(Source::dir(dir.path().join("folder")), &CPU).unwrap();
    assert_eq!(bits(&folder.logits(&batch).unwrap()), bits(&loaded.logits(&batch).unwrap()));
    let card = std::fs::read_to_string(dir.path().join("folder/README.md")).unwrap();
    assert!(card.contains("timm cannot load this folder") && card.contains("fitted head is the result"), "{card}");
}

/// Older crates refuse what they do not know, and read everything else.
#[test]
fn only_its_files_have_the_new_version() {
    let data = tensors(12, 32, 3, 1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.safetensors");
    for (start, version) in [(HeadStart::Probe, 1), (HeadStart::Stages, 3)] {
        tuner(&fitted_alone(start)).fit(&data, &data).unwrap().predictor.save(&path).unwrap();
        let file = std::fs::read(&path).unwrap();
        let begins = format!("{{\\\"version\\\":{version},\\\"arch\\\"");
        assert!(file.windows(begins.len()).any(|part| part == begins.as_bytes()), "{start:?}");
    }
}

#[test]
fn damaged_files_are_typed_errors() {
    let data = tensors(12, 32, 3, 1);
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.safetensors"), dir.path().join("bad.safetensors"));
    let fitted = tuner(&fitted_alone(HeadStart::Stages)).fit(&data, &data).unwrap();
    fitted.predictor.save(&good).unwrap();
    let kept = fitted.report.head_fit.unwrap().kept;
    edited(&good, &bad, |_, _| {});
    Predictor::from_file(&bad, &CPU).unwrap();
    let index = |last: i64| {
        move |t: &Tensor| {
            let mut columns: Vec<i64> = t.to_vec1().unwrap();
            *columns.last_mut().unwrap() = last;
            Tensor::from_vec(columns, t.shape(), &CPU).unwrap()
        }
    };
    let edits: Vec<(&str, Edit)> = vec![
        ("linear.columns", Box::new(|tensors, _| drop(tensors.remove("linear.columns")))),
        ("linear.weight", Box::new(|tensors, _| drop(tensors.remove("linear.weight")))),
        ("2176", changed("linear.columns", index(17 * 128))),
        ("-1", changed("linear.columns", index(-1))),
        ("9223372036854775807", changed("linear.columns", index(i64::MAX))),
        ("F32", changed("linear.columns", |t| t.to_dtype(DType::F32).unwrap())),
        ("columns", changed("linear.columns", move |t| t.narrow(0, 0, kept - 1).unwrap())),
        ("columns", changed("linear.columns", |t| t.unsqueeze(0).unwrap())),
        ("weight", changed("linear.weight", |t| t.narrow(0, 0, 2).unwrap())),
        ("weight", changed("linear.weight", |t| t.narrow(1, 0, 1).unwrap())),
        ("bias", changed("linear.bias", |t| t.narrow(0, 0, 2).unwrap())),
        ("labels", Box::new(|_, text| *text = text.replacen("\"class 2\"", "\"class 2\",\"class 3\"", 1))),
        ("NaN", changed("linear.bias", |t| (t * f64::NAN).unwrap())),
    ];
    for (word, edit) in edits {
        edited(&good, &bad, edit);
        let error = Predictor::from_file(&bad, &CPU).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains(word), "{word}: {error}");
    }
}

/// A network with a closure: how many columns it has shows when it runs.
#[test]
fn a_custom_network_has_such_a_head_too() {
    let shift = Layer::custom(|_| Ok(|x: &Tensor| x + 0.5));
    let blocks = vec![
        Block::new("stem", Conv2d::new(3, 8, 3).stride(2).batch_norm().relu()),
        Block::new("shift", shift),
        Block::new("block1", Conv2d::new(8, 12, 3).batch_norm().relu()),
    ];
    let blueprint = Blueprint::from_blocks("closures", InputSpec::new(16), 12, blocks).unwrap();
    let backbone = Backbone::random(&blueprint, 1, &CPU).unwrap();
    let data = tensors(12, 16, 3, 1);
    let fitted = FineTuner::new(backbone).plan(fitted_alone(HeadStart::Stages)).fit(&data, &data).unwrap();
    assert_eq!(fitted.report.head_fit.as_ref().unwrap().columns, 17 * (8 + 8 + 12));
    let dir = tempfile::tempdir().unwrap();
    let (path, bad) = (dir.path().join("p.safetensors"), dir.path().join("bad.safetensors"));
    fitted.predictor.save(&path).unwrap();
    let loaded = Predictor::from_file_as(&path, &blueprint, &CPU).unwrap();
    let batch = images(2, 3, 16, 3);
    assert_eq!(bits(&loaded.logits(&batch).unwrap()), bits(&fitted.predictor.logits(&batch).unwrap()));
    edited(&path, &bad, changed("head.columns", |t| (t + 476.0).unwrap()));
    let error = Predictor::from_file_as(&bad, &blueprint, &CPU).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Weights { .. }) && error.to_string().contains("476 columns"), "{error}");
}
