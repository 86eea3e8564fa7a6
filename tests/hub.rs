//! Backbones and predictors from a hub, and pushed to it.

#[path = "../examples/support/local_hub.rs"]
mod local_hub;

use crate::support::{CPU, images, pictures, plan, write};
use crate::training::{phase, saved};
use candle_finetune::candle_core::{DType, Tensor};
use candle_finetune::{
    Arch, Backbone, BatchNormMode, Dataset, Error, FineTuner, Fitted, FreezePolicy, Head, HubErrorKind, HubUpload,
    InputSpec, Naming, Predictor, Source,
};
use local_hub::{Fault, LocalHub};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod predictors;

struct Place {
    dir: tempfile::TempDir,
    hub: LocalHub,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = LocalHub::start(&dir.path().join("hub")).unwrap();
        Self { dir, hub }
    }

    fn repository(&self, id: &str) -> PathBuf {
        let path = self.dir.path().join("hub").join(id);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn source(&self, id: &str) -> Source {
        Source::hub(id).endpoint(self.hub.url()).cache_dir(self.dir.path().join("cache"))
    }
}

/// Random weights of an architecture under a library's names, with a classifier of this many classes.
fn state(arch: Arch, layout: Naming, classes: usize) -> BTreeMap<String, Tensor> {
    let backbone = Backbone::random(arch, 7, &CPU).unwrap();
    let named = |(name, t): (&String, &Tensor)| (arch.name_in(layout, name), t.clone());
    let mut tensors: BTreeMap<String, Tensor> = backbone.tensors().iter().map(named).collect();
    for (suffix, shape) in [("weight", vec![classes, arch.feature_dim()]), ("bias", vec![classes])] {
        let name = arch.name_in(layout, &format!("{}.{suffix}", arch.classifier()));
        let count = shape.iter().product::<usize>();
        let values = (Tensor::arange(0f32, count as f32, &CPU).unwrap() * 0.7).unwrap().sin().unwrap();
        tensors.insert(name, values.reshape(shape).unwrap());
    }
    tensors
}

fn put(folder: &Path, tensors: &BTreeMap<String, Tensor>, config: &Value) {
    write(&folder.join("model.safetensors"), tensors);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn timm(arch: Arch, classes: usize) -> Value {
    json!({
        "architecture": arch.name(), "num_classes": classes, "num_features": arch.feature_dim(), "global_pool": "avg",
        "model_args": {"in_chans": 3, "num_classes": classes},
        "pretrained_cfg": {
            "tag": "x", "input_size": [3, 96, 64], "test_input_size": [3, 128, 128], "interpolation": "bilinear",
            "crop_pct": 0.9, "test_crop_pct": 1.0, "crop_mode": "center", "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6], "num_classes": classes, "pool_size": [7, 7], "license": "apache-2.0"
        }
    })
}

#[test]
fn timm_repositories() {
    let place = Place::new();
    for arch in [Arch::RESNET18, Arch::VGG11_BN_FEATURES, Arch::TF_EFFICIENTNET_LITE0] {
        let id = format!("acme/{}", arch.name().replace('_', "-"));
        let tensors = state(arch, Naming::Timm, 3);
        let mut config = timm(arch, 3);
        config["label_names"] = json!(["ant", "bee", "cat"]);
        put(&place.repository(&id), &tensors, &config);
        let predictor = Predictor::load(place.source(&id), &CPU).unwrap();
        assert_eq!(predictor.labels(), ["ant", "bee", "cat"]);
        let spec = predictor.backbone().input_spec();
        assert_eq!((spec.size, spec.crop_pct), ((96, 64), 0.9));
        assert_eq!((spec.mean.as_slice(), spec.std.as_slice()), (&[0.1, 0.2, 0.3][..], &[0.4, 0.5, 0.6][..]));
        assert_eq!(format!("{:?} {:?}", spec.interpolation, spec.crop_mode), "Bilinear Center");
        // The same weights as from the file itself.
        let file = place.repository(&id).join("model.safetensors");
        let direct = Backbone::from_file(arch, &file, &CPU).unwrap();
        let x = images(2, 3, 64, 1);
        assert_eq!(numbers(&direct.forward(&x).unwrap()), numbers(&predictor.backbone().forward(&x).unwrap()));
        // The same from a folder, without a hub.
        let folder = Predictor::load(Source::dir(place.repository(&id)), &CPU).unwrap();
        assert_eq!(numbers(&folder.logits(&x).unwrap()), numbers(&predictor.logits(&x).unwrap()));
    }
}

#[test]
fn every_field_but_the_architecture_is_optional() {
    let place = Place::new();
    let folder = place.repository("acme/old");
    let arch = Arch::RESNET18;
    for (config, size, crop, labels) in [
        (json!({"architecture": "resnet18"}), (224, 224), 0.95, vec!["0", "1"]),
        (
            json!({"architecture": "resnet18.a1_in1k", "num_classes": 2, "pretrained_cfg": null}),
            (224, 224),
            0.95,
            vec!["0", "1"],
        ),
        // As old versions wrote it: everything at the top level, the classes as "labels".
        (
            json!({"architecture": "resnet18", "num_classes": 2, "input_size": [3, 160, 160], "crop_pct": 0.5,
                "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "pool_size": null,
                "labels": ["a", "b"], "hf_hub_id": "x/y"}),
            (160, 160),
            0.5,
            vec!["a", "b"],
        ),
        (
            json!({"architecture": "resnet18", "pretrained_cfg": {"label_names": ["a", "b"], "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5]}, "model_type": "timm_wrapper"}),
            (224, 224),
            0.95,
            vec!["a", "b"],
        ),
    ] {
        put(&folder, &state(arch, Naming::Timm, 2), &config);
        let predictor = Predictor::load(Source::dir(&folder), &CPU).unwrap();
        let spec = predictor.backbone().input_spec();
        assert_eq!((spec.size, spec.crop_pct), (size, crop), "{config}");
        assert_eq!(predictor.labels(), labels, "{config}");
    }
}

#[test]
fn transformers_repositories() {
    let place = Place::new();
    let bottleneck = json!({"model_type": "resnet", "architectures": ["ResNetForImageClassification"],
        "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck",
        "hidden_act": "relu", "embedding_size": 64, "downsample_in_first_stage": false, "num_channels": 3,
        "id2label": {"0": "tench", "1": "shark"}, "label2id": {"tench": 0, "shark": 1}});
    let basic = json!({"model_type": "resnet", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512],
        "layer_type": "basic", "id2label": {"1": "shark", "0": "tench"}});
    for (arch, config) in [(Arch::RESNET50, bottleneck), (Arch::RESNET18, basic)] {
        let id = format!("acme/{arch}");
        let folder = place.repository(&id);
        put(&folder, &state(arch, Naming::Transformers, 2), &config);
        let predictor = Predictor::load(place.source(&id), &CPU).unwrap();
        assert_eq!(
            (predictor.backbone().arch().unwrap(), predictor.labels()),
            (arch, &["tench".to_string(), "shark".into()][..])
        );
        assert_eq!(predictor.backbone().input_spec().crop_pct, 0.875);
        let expected = Backbone::random(arch, 7, &CPU).unwrap();
        let x = images(1, 3, 64, 1);
        assert_eq!(numbers(&expected.forward(&x).unwrap()), numbers(&predictor.backbone().forward(&x).unwrap()));
        // The preprocessing is in a separate file.
        for (processor, size, fit, crop) in [
            (
                json!({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.8, "resample": 3,
                "size": {"shortest_edge": 192}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}),
                (192, 192),
                "Center",
                0.8,
            ),
            (
                json!({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "resample": 3,
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}),
                (384, 384),
                "Squash",
                1.0,
            ),
            (
                json!({"image_processor_type": "ViTImageProcessor", "resample": 2, "size": {"height": 64, "width": 96}}),
                (64, 96),
                "Squash",
                1.0,
            ),
            (
                json!({"image_processor_type": "BitImageProcessor", "do_center_crop": true, "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224}}),
                (224, 224),
                "Center",
                0.875,
            ),
            // Without a type, a ResNet's processor is a ConvNext's.
            (json!({"size": 128, "resample": 2, "do_normalize": false}), (128, 128), "Center", 0.875),
        ] {
            std::fs::write(folder.join("preprocessor_config.json"), processor.to_string()).unwrap();
            let backbone = Backbone::load(Source::dir(&folder), &CPU).unwrap();
            let spec = backbone.input_spec();
            assert_eq!((spec.size, format!("{:?}", spec.crop_mode).as_str()), (size, fit), "{processor}");
            assert_eq!(spec.crop_pct, crop, "{processor}");
        }
    }
}

#[test]
fn what_a_processor_does_not_say_is_its_default_or_refused() {
    let place = Place::new();
    let folder = place.repository("acme/processors");
    let config = json!({"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic",
        "hidden_sizes": [64, 128, 256, 512]});
    put(&folder, &state(Arch::RESNET18, Naming::Transformers, 2), &config);
    let load = |processor: &Value| {
        std::fs::write(folder.join("preprocessor_config.json"), processor.to_string()).unwrap();
        Backbone::load(Source::dir(&folder), &CPU).map(|backbone| backbone.input_spec().clone())
    };
    let clip = [0.481_454_66, 0.457_827_5, 0.408_210_73];
    for (processor, words, mean) in [
        (json!({"image_processor_type": "ViTImageProcessor"}), "Bilinear (224, 224) Squash 1", [0.5; 3]),
        (json!({"image_processor_type": "ViTImageProcessorFast", "size": 96}), "Bilinear (96, 96) Squash 1", [0.5; 3]),
        (json!({"feature_extractor_type": "ViTFeatureExtractor", "size": 96}), "Bilinear (96, 96) Squash 1", [0.5; 3]),
        (json!({"image_processor_type": "BitImageProcessor"}), "Bicubic (224, 224) Center 1", clip),
        (
            json!({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 256}}),
            "Bicubic (224, 224) Center 0.875",
            clip,
        ),
        (
            json!({"image_processor_type": "ConvNextImageProcessor", "resample": 3, "size": {"shortest_edge": 160}}),
            "Bicubic (160, 160) Center 0.875",
            [0.5; 3],
        ),
        (
            json!({"image_processor_type": "ConvNextImageProcessorFast", "resample": 2}),
            "Bilinear (384, 384) Squash 1",
            [0.5; 3],
        ),
    ] {
        let spec = load(&processor).unwrap();
        let found = format!("{:?} {:?} {:?} {}", spec.interpolation, spec.size, spec.crop_mode, spec.crop_pct);
        assert_eq!((found.as_str(), spec.mean.as_slice()), (words, &mean[..]), "{processor}");
    }
    for (processor, field) in [
        // Versions of transformers disagree.
        (
            json!({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 160}}),
            "resample is absent",
        ),
        (
            json!({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 160, "resample": 3}),
            "image_mean is absent",
        ),
        (json!({"feature_extractor_type": "ConvNextFeatureExtractor", "resample": 3}), "size is absent"),
        (json!({"image_processor_type": "MyProcessor", "size": 160, "resample": 3}), "image_mean is absent"),
        (json!({"size": 160, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}), "resample is absent"),
        (json!({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5, 0.5]}), "image_std is absent"),
    ] {
        let error = load(&processor).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Weights { .. }), "{text}");
        assert!(text.contains(field) && text.contains("Source::input_spec"), "{processor}: {text}");
    }
}

#[test]
fn descriptions_that_cannot_be() {
    let place = Place::new();
    let folder = place.repository("acme/odd");
    let tensors = state(Arch::RESNET18, Naming::Timm, 2);
    let cfg = |field: &str, value: Value| {
        let mut config = timm(Arch::RESNET18, 2);
        config["pretrained_cfg"][field] = value;
        config
    };
    for (config, words) in [
        (json!({"architecture": "resnet81"}), "resnet18"),
        (json!({"model_type": "vit"}), "vit"),
        (json!({"model_type": "resnet", "depths": [1, 1, 1, 1]}), "depths [1, 1, 1, 1]"),
        (json!({"model_type": "resnet", "downsample_in_bottleneck": true}), "downsample_in_bottleneck"),
        (json!({"num_classes": 3}), "Source::arch"),
        (json!([1, 2]), "JSON"),
        (json!({"architecture": 5}), "architecture is 5"),
        (cfg("mean", json!([0.5, "x"])), "mean"),
        (cfg("std", json!([0.5, 0.5, 0.0])), "std"),
        (cfg("std", json!([0.5, 0.5])), "std"),
        (cfg("input_size", json!([3, 0, 224])), "input_size"),
        (cfg("input_size", json!([3, 99_999_999, 224])), "input_size"),
        (json!({"architecture": "resnet18", "pretrained_cfg": {"input_size": [5000, 96, 96]}}), "input_size is [5000"),
        (json!({"architecture": "resnet18", "model_args": {"in_chans": 5000}}), "in_chans is 5000"),
        (cfg("crop_pct", json!(-1)), "crop_pct"),
        (cfg("interpolation", json!("random")), "interpolation is \"random\""),
        (cfg("crop_mode", json!("x")), "crop_mode"),
        (cfg("crop_mode", json!("squash")), "crop_pct is 0.9"),
        (json!({"architecture": "resnet18", "global_pool": "max"}), "global_pool"),
        (json!({"architecture": "resnet18", "model_args": {"output_stride": 8}}), "output_stride"),
        (json!({"architecture": "resnet18", "label_names": ["only one"]}), "lists 1 classes"),
        (json!({"architecture": "resnet50"}), "resnet50"),
    ] {
        put(&folder, &tensors, &config);
        let error = Predictor::load(Source::dir(&folder), &CPU).unwrap_err().to_string();
        assert!(error.contains(words), "{config}: {error}");
    }
    // The preprocessing must be given, in known terms.
    let resnet = json!({"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic",
        "hidden_sizes": [64, 128, 256, 512]});
    put(&folder, &state(Arch::RESNET18, Naming::Transformers, 2), &resnet);
    for (processor, field) in [
        (json!({}), "size is absent"),
        (json!({"size": {"longest_edge": 512}}), "size is {"),
        (json!({"size": {"height": 384}}), "size is {"),
        (json!({"size": {"shortest_edge": 256}, "do_center_crop": true}), "crop_size is absent"),
        (json!({"size": {"shortest_edge": 256}, "crop_size": {"width": 224}}), "crop_size is {"),
        (json!({"size": {"shortest_edge": 128}, "crop_size": 224}), "crop_size is 224"),
    ] {
        std::fs::write(folder.join("preprocessor_config.json"), processor.to_string()).unwrap();
        let error = Backbone::load(Source::dir(&folder), &CPU).unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("Source::input_spec"), "{processor}: {error}");
    }
    std::fs::remove_file(folder.join("preprocessor_config.json")).unwrap();
    // The user's choice wins over an unknown name.
    put(&folder, &tensors, &json!({"architecture": "my_resnet", "pretrained_cfg": {"crop_pct": 0.7}}));
    let backbone = Backbone::load(Source::dir(&folder).arch(Arch::RESNET18), &CPU).unwrap();
    assert_eq!(backbone.input_spec().crop_pct, 0.7);
    // It also wins over an impossible description of the preprocessing.
    put(&folder, &tensors, &cfg("interpolation", json!("random")));
    let error = Backbone::load(Source::dir(&folder), &CPU).unwrap_err().to_string();
    assert!(error.contains("Source::input_spec"), "{error}");
    Backbone::load(Source::dir(&folder).input_spec(InputSpec::new(64)), &CPU).unwrap();
    let error = Backbone::load(Source::dir(folder.join("nothere")), &CPU).unwrap_err().to_string();
    assert!(error.contains("nothere"), "{error}");
}

#[test]
fn networks_for_other_channels() {
    let place = Place::new();
    let folder = place.repository("acme/gray");
    let mut tensors = state(Arch::RESNET18, Naming::Timm, 2);
    let first = tensors["conv1.weight"].sum_keepdim(1).unwrap();
    tensors.insert("conv1.weight".into(), first);
    // Older timm exports keep the size of the earlier colour images.
    let mut config = timm(Arch::RESNET18, 2);
    config["model_args"]["in_chans"] = json!(1);
    put(&folder, &tensors, &config);
    let backbone = Backbone::load(Source::dir(&folder), &CPU).unwrap();
    let spec = backbone.input_spec();
    assert_eq!((spec.channels, spec.size), (1, (96, 64)));
    assert!((spec.mean[0] - 0.2).abs() < 1e-6, "{:?}", spec.mean);
}

#[test]
fn shards_and_pickles() {
    let place = Place::new();
    let folder = place.repository("acme/parts");
    let arch = Arch::CIFAR_RESNET20;
    let tensors = state(arch, Naming::Timm, 2);
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, t)) in tensors.iter().enumerate() {
        let name_of = |k: usize| format!("model-0000{}-of-00002.safetensors", k + 1);
        map.insert(name.clone(), json!(name_of(i % 2)));
        shards[i % 2].insert(name.clone(), t.clone());
    }
    for (k, shard) in shards.iter().enumerate() {
        write(&folder.join(format!("model-0000{}-of-00002.safetensors", k + 1)), shard);
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::write(folder.join("config.json"), json!({"architecture": arch.name()}).to_string()).unwrap();
    let predictor = Predictor::load(place.source("acme/parts"), &CPU).unwrap();
    let whole = Backbone::random(arch, 7, &CPU).unwrap();
    let x = images(2, 3, 32, 1);
    assert_eq!(numbers(&whole.forward(&x).unwrap()), numbers(&predictor.backbone().forward(&x).unwrap()));
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = Predictor::load(place.source("acme/parts"), &CPU).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002"), "{error}");
}
