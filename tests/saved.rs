//! Predictors that version 0.1 saved can be loaded, and predict what they predicted.
//!
//! `tests/fixtures/saved/` holds two files as 0.1 wrote them, both trained on noise for two epochs: "mlp" (the embedded
//! backbone, frozen, with a head of two layers and dropout) and "gray" (a random CIFAR ResNet for one channel, squashed
//! images and another interpolation, whose last stage was trained). A third, "linear", has the same backbone as "mlp", so
//! only its header and its head are kept. `expected.json` has what they computed there, as the bits of f32.

use crate::support::{CPU, bits, numbers, read};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{Backbone, CropMode, Image, Interpolation, Predictor, Source};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const NAMES: [&str; 3] = ["linear", "mlp", "gray"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/saved")
}

fn expected(name: &str) -> Value {
    let text = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let mut all: Value = serde_json::from_str(&text).unwrap();
    all[name].take()
}

fn floats(bits: &Value) -> Vec<f32> {
    bits.as_array().unwrap().iter().map(|bits| f32::from_bits(bits.as_u64().unwrap() as u32)).collect()
}

/// The file of the linear head, put together from its own header and head and the backbone of "mlp".
fn linear() -> Vec<u8> {
    let expected = expected("linear");
    let header = expected["header"].as_str().unwrap();
    let other = std::fs::read(folder().join("mlp.safetensors")).unwrap();
    let other = SafeTensors::deserialize(&other).unwrap();
    let entries: Value = serde_json::from_str(header).unwrap();
    let mut tensors: Vec<(u64, u64, &String)> = entries
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, entry)| {
            (entry["data_offsets"][0].as_u64().unwrap(), entry["data_offsets"][1].as_u64().unwrap(), name)
        })
        .collect();
    tensors.sort_unstable();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    for (_, _, name) in tensors {
        match &expected["head"][name] {
            Value::Null => bytes.extend(other.tensor(name).unwrap().data()),
            head => bytes.extend(floats(head).iter().flat_map(|value| value.to_le_bytes())),
        }
    }
    bytes
}

/// A copy of the file in this folder, checked to be what 0.1 wrote.
fn copied(name: &str, to: &Path) -> PathBuf {
    let bytes =
        if name == "linear" { linear() } else { std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap() };
    let sum = Sha256::digest(&bytes).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(sum, expected(name)["sha256"], "{name}: the fixture is not the file that 0.1 wrote");
    let path = to.join(format!("{name}.safetensors"));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A picture of noise.
fn picture(seed: u64, height: usize, width: usize, channels: usize) -> Image {
    let values = numbers(height * width * channels, seed);
    Image::new(height, width, channels, values.iter().map(|v| (128.0 + v * 100.0) as u8).collect()).unwrap()
}

/// The greatest difference, relative to the greatest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let greatest = b.iter().fold(0f32, |most, value| most.max(value.abs()));
    a.iter().zip(b).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / greatest
}

#[test]
fn predictors_of_version_0_1_predict_what_they_predicted() {
    let dir = tempfile::tempdir().unwrap();
    for name in NAMES {
        let path = copied(name, dir.path());
        let expected = expected(name);
        let predictor = Predictor::from_file(&path, &CPU).unwrap();
        assert_eq!(predictor.labels(), ["ant", "bee \"wild\"", "müll/3"]);

        let input = predictor.backbone().input_spec();
        let gray = name == "gray";
        assert_eq!((input.channels, input.size), (if gray { 1 } else { 3 }, (32, 32)));
        assert_eq!(input.crop_mode == CropMode::Squash, gray);
        assert_eq!(input.interpolation == Interpolation::Bilinear, gray);
        if gray {
            assert_eq!((input.crop_pct, &input.mean[..], &input.std[..]), (0.9, &[0.4][..], &[0.25][..]));
        }
        let report = predictor.report().unwrap().unwrap();
        assert_eq!((report.plan.phases.len(), report.plan.phases[0].epochs), (1, 2));

        // Weights are those of the file, bit for bit.
        let stored = read(&path);
        let tensors = predictor.backbone().tensors();
        assert_eq!(tensors.len(), 5 * 19, "convolutions and norms of 19 layers");
        for (tensor, value) in tensors {
            assert_eq!(bits(value), bits(&stored[tensor]), "{name}: {tensor}");
        }

        // Features are the same bits wherever the same instructions compute them.
        let shape = (2, input.channels, 32, 32);
        let images = Tensor::from_vec(numbers(2 * input.channels * 32 * 32, 7), shape, &CPU).unwrap();
        let features = predictor.backbone().forward(&images).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let recorded: Vec<Vec<f32>> = expected["features"].as_object().unwrap().values().map(floats).collect();
        if cfg!(target_arch = "x86_64") {
            assert!(recorded.contains(&features), "{name}: {}", distance(&features, &recorded[0]));
        }
        assert!(distance(&features, &recorded[0]) < 1e-5, "{name}");
        // The head's matrix product is Candle's, which chooses its instructions itself.
        let logits = predictor.logits(&images).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(distance(&logits, &floats(&expected["logits"])) < 1e-5, "{name}: {logits:?}");

        let pictures = [picture(100, 50, 37, input.channels), picture(101, 20, 64, input.channels)];
        let predictions = predictor.predict_batch(&pictures).unwrap();
        for (prediction, expected) in predictions.iter().zip(expected["probabilities"].as_array().unwrap()) {
            let expected = floats(expected);
            assert!(distance(&prediction.probabilities, &expected) < 1e-5, "{name}: {prediction:?}");
            assert!(expected.iter().all(|&probability| probability <= expected[prediction.class as usize]));
        }

        // As a backbone, and saved by this version.
        let backbone = Backbone::load(Source::file(&path), &CPU).unwrap();
        assert_eq!(backbone.labels(), Some(predictor.labels()));
        let again = dir.path().join("again.safetensors");
        predictor.save(&again).unwrap();
        let again = Predictor::from_file(&again, &CPU).unwrap();
        assert_eq!(bits(&again.logits(&images).unwrap()), bits(&predictor.logits(&images).unwrap()));
        assert_eq!(again.predict_batch(&pictures).unwrap(), predictions);
    }
}
