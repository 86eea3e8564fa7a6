//! Weights from files: names of several libraries, missing tensors, adaptations.

use crate::support::{CPU, bits, images, numbers, read, worn, write};
use candle_finetune::candle_core::{DType, Tensor};
use candle_finetune::{
    Arch, Backbone, Error, Head, InputSpec, Interpolation, Naming, Predictor, Source, WeightsMismatch,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

mod names;

type Tensors = BTreeMap<String, Tensor>;

/// All tensors of a file of the whole network, under the library's names.
fn state(backbone: &Backbone, layout: Naming, classes: usize) -> Tensors {
    let arch = backbone.arch().unwrap();
    let mut all = Tensors::new();
    for (name, tensor) in backbone.tensors() {
        let flat = layout == Naming::Torchvision && name.starts_with("pre_logits.") && tensor.rank() == 4;
        let tensor = if flat { tensor.flatten_from(1).unwrap() } else { tensor.clone() };
        all.insert(arch.name_in(layout, name), tensor);
        if let Some(norm) = name.strip_suffix(".running_mean") {
            let count = Tensor::new(1234i64, &CPU).unwrap();
            all.insert(arch.name_in(layout, &format!("{norm}.num_batches_tracked")), count);
        }
    }
    let dim = arch.feature_dim();
    let weight = Tensor::from_vec(numbers(classes * dim, 7), (classes, dim), &CPU).unwrap();
    let bias = Tensor::from_vec(numbers(classes, 8), classes, &CPU).unwrap();
    all.insert(arch.name_in(layout, &format!("{}.weight", arch.classifier())), weight);
    all.insert(arch.name_in(layout, &format!("{}.bias", arch.classifier())), bias);
    all
}

fn file(tensors: &Tensors) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    write(&path, tensors);
    (dir, path)
}

/// The error of a file that differs from the architecture.
fn difference(arch: Arch, tensors: &Tensors) -> WeightsMismatch {
    let (_dir, path) = file(tensors);
    match Backbone::from_file(arch, &path, &CPU).unwrap_err() {
        Error::WeightsMismatch(found) => {
            assert_eq!((&found.path, found.arch.as_str()), (&path, arch.name()));
            *found
        }
        other => panic!("{other}"),
    }
}

/// The three lists of a mismatch.
fn mismatch(arch: Arch, tensors: &Tensors) -> (Vec<String>, Vec<String>, Vec<String>) {
    let found = difference(arch, tensors);
    (found.missing, found.unknown, found.shapes)
}

/// The tensors, renamed by `name`.
fn renamed(tensors: &Tensors, name: impl Fn(&str) -> String) -> Tensors {
    tensors.iter().map(|(old, t)| (name(old), t.clone())).collect()
}

fn load(arch: Arch, tensors: &Tensors) -> candle_finetune::Result<Backbone> {
    let (_dir, path) = file(tensors);
    Backbone::from_file(arch, path, &CPU)
}

fn assert_same(a: &Backbone, b: &Backbone) {
    assert_eq!(a.tensors().keys().collect::<Vec<_>>(), b.tensors().keys().collect::<Vec<_>>());
    for (name, tensor) in a.tensors() {
        assert_eq!(bits(tensor), bits(&b.tensors()[name]), "{name}");
    }
}

/// The ResNet-20 and all tensors of its file, with a classifier of five classes.
fn small() -> (Backbone, Tensors) {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    let tensors = state(&backbone, Naming::Timm, 5);
    (backbone, tensors)
}

#[test]
fn both_libraries_names_load_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let archs = [
        Arch::RESNET18,
        Arch::RESNEXT50_32X4D,
        Arch::CIFAR_RESNET20,
        Arch::VGG11_BN_FEATURES,
        Arch::EFFICIENTNET_B0,
        Arch::TF_EFFICIENTNET_LITE0,
    ];
    for arch in archs {
        let backbone = worn(&Backbone::random(arch, 3, &CPU).unwrap(), dir.path());
        for layout in [Naming::Timm, Naming::Torchvision] {
            let (_dir, path) = file(&state(&backbone, layout, 5));
            let loaded = Backbone::from_file(arch, &path, &CPU).unwrap();
            // torchvision has no file of VGG's convolutions alone, so the classifier is the whole network's.
            let classes = (layout == Naming::Timm || arch != Arch::VGG11_BN_FEATURES).then_some(5);
            assert_eq!(loaded.num_classes(), classes, "{arch} {layout:?}");
            assert_eq!(loaded.tensors().len(), backbone.tensors().len());
            for (name, tensor) in backbone.tensors() {
                assert_eq!(bits(tensor), bits(&loaded.tensors()[name]), "{arch} {layout:?} {name}");
            }
        }
    }
}

#[test]
fn flat_fully_connected_layers_become_convolutions_and_features_are_taken_from_the_whole() {
    let full = Backbone::random(Arch::VGG11, 3, &CPU).unwrap();
    let x = images(1, 3, 32, 1);
    for layout in [Naming::Torchvision, Naming::Timm] {
        let (_dir, path) = file(&state(&full, layout, 4));
        let loaded = Backbone::from_file(Arch::VGG11, &path, &CPU).unwrap();
        for (name, tensor) in full.tensors() {
            assert!(tensor.dims() == loaded.tensors()[name].dims(), "{name}");
        }
        assert_eq!(bits(&loaded.forward(&x).unwrap()), bits(&full.forward(&x).unwrap()), "{layout:?}");

        let part = Backbone::from_file(Arch::VGG11_FEATURES, &path, &CPU).unwrap();
        assert_eq!(part.num_classes(), None, "that classifier takes other features");
        assert_eq!(part.forward(&x).unwrap().dims(), [1, 512]);
        for (name, tensor) in part.tensors() {
            assert_eq!(bits(tensor), bits(&full.tensors()[name]), "{layout:?} {name}");
        }
    }
}

#[test]
fn every_difference_is_listed() {
    let whole = state(&Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap(), Naming::Timm, 5);
    let none: Vec<String> = vec![];
    let conv = "layer2.0.conv2.weight";

    let mut t = whole.clone();
    t.remove(conv);
    t.remove("layer3.1.bn1.running_var");
    let expected = vec![conv.to_string(), "layer3.1.bn1.running_var".into()];
    assert_eq!(mismatch(Arch::CIFAR_RESNET20, &t), (expected, none.clone(), none.clone()));

    let mut t = whole.clone();
    t.insert("layer2.0.conv3.weight".into(), whole[conv].clone());
    t.insert("layer2.9.bn1.num_batches_tracked".into(), Tensor::new(1i64, &CPU).unwrap());
    let expected = vec!["layer2.0.conv3.weight".to_string(), "layer2.9.bn1.num_batches_tracked".into()];
    assert_eq!(mismatch(Arch::CIFAR_RESNET20, &t), (none.clone(), expected, none.clone()));

    let mut t = whole.clone();
    t.insert(conv.into(), whole["conv1.weight"].clone());
    let (missing, unknown, shapes) = mismatch(Arch::CIFAR_RESNET20, &t);
    assert!(missing.is_empty() && unknown.is_empty());
    assert_eq!(shapes.len(), 1);
    assert!(shapes[0].starts_with(conv) && shapes[0].contains("[16, 3, 3, 3]") && shapes[0].contains("[32, 32, 3, 3]"));

    // Integers are not weights.
    let mut t = whole.clone();
    t.insert("bn1.bias".into(), Tensor::zeros(16, DType::I64, &CPU).unwrap());
    assert_eq!(mismatch(Arch::CIFAR_RESNET20, &t).2, ["bn1.bias holds I64, but weights are floating point"]);

    // The first convolution determines more than the channels.
    for dims in [vec![16, 3, 3], vec![8, 3, 3, 3], vec![16, 3, 5, 5], vec![16, 0, 3, 3], vec![16]] {
        let mut t = whole.clone();
        t.insert("conv1.weight".into(), Tensor::zeros(dims.as_slice(), DType::F32, &CPU).unwrap());
        let (_, _, shapes) = mismatch(Arch::CIFAR_RESNET20, &t);
        assert!(shapes.len() == 1 && shapes[0].starts_with("conv1.weight"), "{shapes:?}");
    }

    // The message contains the lists.
    let (_dir, path) = file(&state(&Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap(), Naming::Timm, 5));
    let message = Backbone::from_file(Arch::RESNET18, path, &CPU).unwrap_err().to_string();
    assert!(
        message.contains("resnet18") && message.contains("missing (35): layer2.0.downsample.0.weight"),
        "{message}"
    );
}

#[test]
fn counters_are_kept_and_not_needed() {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    let mut t = state(&backbone, Naming::Timm, 5);
    let counters: Vec<String> = t.keys().filter(|name| name.ends_with("num_batches_tracked")).cloned().collect();
    assert_eq!(counters.len(), 19);
    let (dir, path) = file(&t);
    let predictor = Predictor::load(Source::file(&path).arch(Arch::CIFAR_RESNET20), &CPU).unwrap();
    let saved = dir.path().join("saved.safetensors");
    predictor.save(&saved).unwrap();
    let saved = read(&saved);
    assert_eq!(saved.keys().collect::<Vec<_>>(), t.keys().collect::<Vec<_>>());
    for (name, tensor) in &saved {
        assert_eq!(bits(tensor), bits(&t[name]), "{name}");
        assert_eq!(tensor.dims(), t[name].dims(), "{name}");
    }
    counters.iter().for_each(|name| drop(t.remove(name)));
    let (_dir, path) = file(&t);
    Backbone::from_file(Arch::CIFAR_RESNET20, path, &CPU).unwrap();
}

#[test]
fn the_first_convolution_is_adapted_to_the_channels() {
    let backbone = Backbone::random(Arch::RESNET18, 3, &CPU).unwrap();
    let (_dir, path) = file(&state(&backbone, Naming::Timm, 5));
    let load = |source: Source| Backbone::load(source.arch(Arch::RESNET18), &CPU);
    let gray = load(Source::file(&path).channels(1)).unwrap();
    let spec = gray.input_spec();
    assert_eq!((spec.channels, spec.mean.len(), spec.std.len()), (1, 1, 1));
    assert_eq!(gray.tensors()["conv1.weight"].dims(), [64, 1, 7, 7]);
    // A gray image in all three channels gives the same features.
    let x = images(2, 1, 32, 4);
    let three = Tensor::cat(&[&x, &x, &x], 1).unwrap();
    let (a, b) = (gray.forward(&x).unwrap(), backbone.forward(&three).unwrap());
    let apart = (&a - &b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(size > 0.0 && apart < 1e-4 * size, "{apart} of {size}");

    let four = load(Source::file(&path).channels(4)).unwrap();
    assert_eq!(four.tensors()["conv1.weight"].dims(), [64, 4, 7, 7]);
    let sum = |b: &Backbone| b.tensors()["conv1.weight"].sum_all().unwrap().to_scalar::<f32>().unwrap();
    let first = backbone.tensors()["conv1.weight"].narrow(1, 0, 1).unwrap();
    let fourth = four.tensors()["conv1.weight"].narrow(1, 3, 1).unwrap();
    assert_eq!(bits(&(first * 0.75).unwrap()), bits(&fourth));
    assert!(sum(&four).is_finite() && four.forward(&images(1, 4, 32, 5)).is_ok());
    assert!(four.forward(&images(1, 3, 32, 5)).is_err());
    for channels in [0, usize::MAX] {
        assert!(matches!(load(Source::file(&path).channels(channels)), Err(Error::Invalid { .. })));
    }

    // An input spec with other channels is refused with a hint at the adaptation; weights for gray images are
    // recognised.
    let spec = InputSpec::new(28).normalize(&[0.5], &[0.25]).interpolation(Interpolation::Bilinear);
    let error = load(Source::file(&path).input_spec(spec.clone())).unwrap_err().to_string();
    assert!(error.contains("Source::channels"), "{error}");
    let by_spec = load(Source::file(&path).channels(1).input_spec(spec.clone())).unwrap();
    assert_eq!(by_spec.input_spec(), &spec);
    assert_eq!(bits(&by_spec.tensors()["conv1.weight"]), bits(&gray.tensors()["conv1.weight"]));
    let (_dir, path) = file(&state(&gray, Naming::Timm, 5));
    let again = load(Source::file(path)).unwrap();
    assert_eq!(again.input_spec().channels, 1);
    assert_eq!(bits(&again.forward(&x).unwrap()), bits(&a));
}

#[test]
fn whose_weights_they_are_decides_how_images_are_prepared() {
    let spec = |arch: Arch, names: Naming, said: Option<Naming>| {
        let backbone = Backbone::random(arch, 3, &CPU).unwrap();
        let (_dir, path) = file(&state(&backbone, names, 5));
        let source = said.into_iter().fold(Source::file(&path).arch(arch), Source::naming);
        Backbone::load(source, &CPU).unwrap().input_spec().clone()
    };
    use Naming::{Timm, Torchvision};
    // EfficientNet's names identify the library. torchvision's B1 was trained with ImageNet's mean, timm's default with
    // another.
    let own = spec(Arch::EFFICIENTNET_B1, Torchvision, None);
    assert_eq!((own.mean.as_slice(), own.crop_pct), (InputSpec::IMAGENET_MEAN.as_slice(), 240.0 / 256.0));
    assert_eq!(spec(Arch::EFFICIENTNET_B1, Timm, None), Arch::EFFICIENTNET_B1.input_spec());
    // ResNet's names do not.
    assert_eq!(spec(Arch::RESNET18, Torchvision, None), Arch::RESNET18.input_spec());
    let said = spec(Arch::RESNET18, Torchvision, Some(Torchvision));
    assert_eq!((said.crop_pct, said.interpolation), (0.875, Interpolation::Bilinear));
    // A naming that contradicts the names, or that torchvision does not have, is refused.
    let refused = |arch: Arch, names: Naming, said: Naming| {
        let (_dir, path) = file(&state(&Backbone::random(arch, 3, &CPU).unwrap(), names, 5));
        Backbone::load(Source::file(path).arch(arch).naming(said), &CPU).unwrap_err().to_string()
    };
    assert!(refused(Arch::EFFICIENTNET_B0, Torchvision, Timm).contains("Torchvision's"));
    assert!(refused(Arch::EFFICIENTNET_B0, Timm, Torchvision).contains("Timm's"));
    assert!(refused(Arch::CIFAR_RESNET20, Timm, Torchvision).contains("torchvision has no cifar_resnet20"));
}

#[test]
fn double_precision_on_request() {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    let (_dir, path) = file(&state(&backbone, Naming::Timm, 5));
    let source = || Source::file(&path).arch(Arch::CIFAR_RESNET20);
    let double = Backbone::load(source().dtype(DType::F64), &CPU).unwrap();
    assert!(double.tensors().values().all(|t| t.dtype() == DType::F64));
    let x = images(2, 3, 32, 4);
    let a = double.forward(&x.to_dtype(DType::F64).unwrap()).unwrap();
    assert_eq!(a.dtype(), DType::F64);
    let b = backbone.forward(&x).unwrap().to_dtype(DType::F64).unwrap();
    let apart = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    assert!(apart < 1e-3, "{apart}");
    for dtype in [DType::F16, DType::U8] {
        assert!(matches!(Backbone::load(source().dtype(dtype), &CPU), Err(Error::Invalid { .. })));
    }
}

#[test]
fn other_sizes_and_images_that_are_too_small() {
    let backbone = Backbone::random(Arch::VGG11_BN_FEATURES, 3, &CPU).unwrap();
    let larger = backbone.for_input_size(64, 96).unwrap();
    assert_eq!(larger.input_spec().size, (64, 96));
    assert_eq!(backbone.input_spec().size, (224, 224));
    let wide = Tensor::zeros((1, 3, 64, 96), DType::F32, &CPU).unwrap();
    assert_eq!(larger.forward(&wide).unwrap().dims(), [1, 512]);
    // The message names the minimum size, whether the images or a setting are too small.
    let errors = [
        backbone.forward(&images(1, 3, 31, 1)).unwrap_err(),
        backbone.stage_features(&images(1, 3, 40, 1).narrow(2, 0, 16).unwrap()).unwrap_err(),
        backbone.for_input_size(31, 64).unwrap_err(),
        backbone.for_input_size(0, 0).unwrap_err(),
        backbone.for_input_spec(InputSpec::new(8)).unwrap_err(),
    ];
    for error in errors.map(|error| error.to_string()) {
        assert!(error.contains("too few") && error.contains("32 x 32 at least"), "{error}");
    }
    // A size beyond any memory is refused without an attempt.
    for side in [16_385, 1_000_000, 1 << 32, usize::MAX] {
        assert!(backbone.for_input_size(side, 64).unwrap_err().to_string().contains("16384 at most"));
    }
    assert!(backbone.for_input_size(32, 32).unwrap().forward(&images(1, 3, 32, 1)).is_ok());
    let shapes: [&[usize]; 6] =
        [&[1, 3, 0, 0], &[0, 3, 32, 32], &[3, 32, 32], &[1, 1, 32, 32], &[1, 3, 32, 0], &[1, 4, 32, 32]];
    for arch in [Arch::VGG11_BN_FEATURES, Arch::CIFAR_RESNET20, Arch::TF_EFFICIENTNET_LITE0, Arch::RESNET18] {
        let backbone = Backbone::random(arch, 3, &CPU).unwrap();
        for shape in shapes {
            let x = Tensor::zeros(shape, DType::F32, &CPU).unwrap();
            assert!(backbone.forward(&x).is_err(), "{arch} {shape:?}");
        }
        // One pixel: features or an error, no panic.
        let _ = backbone.forward(&images(1, 3, 1, 1));
    }
    assert!(backbone.for_input_spec(InputSpec::new(32).normalize(&[0.5], &[0.5])).is_err());
}

#[test]
fn a_gray_start_is_as_loud_as_a_coloured_one() {
    // He initialisation uses the fan-out, which does not depend on the images' channels.
    let spread = |arch: Arch, channels: usize| {
        let (_dir, path) = file(&state(&Backbone::random(arch, 3, &CPU).unwrap(), Naming::Timm, 2));
        let backbone = Backbone::load(Source::file(path).arch(arch).channels(channels), &CPU).unwrap();
        let data = {
            let x = images(4, channels, 32, 1);
            let names = vec!["a".to_string(), "b".into()];
            candle_finetune::TensorDataset::new(x, vec![0, 1, 0, 1], names).unwrap()
        };
        let optimizer = candle_finetune::Optimizer::sgd(0.1);
        let mut plan = candle_finetune::Plan::new(vec![candle_finetune::Phase::new(1, optimizer)]);
        plan.init = candle_finetune::Init::Random;
        let session = candle_finetune::FineTuner::new(backbone).plan(plan).session(&data).unwrap();
        let kernel = session.tensors().unwrap()["conv1.weight"].clone();
        kernel.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
    };
    let (gray, colour) = (spread(Arch::CIFAR_RESNET20, 1), spread(Arch::CIFAR_RESNET20, 3));
    assert!((gray / colour - 1.0).abs() < 0.3, "{gray} {colour}");
}
