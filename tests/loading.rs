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

#[test]
fn unknown_names_get_neighbours() {
    let Error::UnknownArch { name, nearest, .. } = "efficientnet_b9".parse::<Arch>().unwrap_err() else { panic!() };
    assert_eq!(name, "efficientnet_b9");
    assert!(nearest.iter().all(|n| n.starts_with("efficientnet_b")), "{nearest:?}");
    let (_dir, path) = file(&state(&Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap(), Naming::Timm, 2));
    let error = Backbone::load(Source::file(path), &CPU).unwrap_err();
    assert!(matches!(&error, Error::Weights { problem, .. } if problem.contains("Source::arch")), "{error}");
    assert!(error.to_string().contains("--arch") && error.to_string().contains("looks like cifar_resnet20"), "{error}");
}

#[test]
fn prefixes_and_wrappers_are_removed_in_every_format_of_names() {
    let archs = [
        (Arch::CIFAR_RESNET20, Naming::Timm),
        (Arch::RESNET18, Naming::Transformers),
        (Arch::VGG11_BN_FEATURES, Naming::Timm),
        (Arch::TF_EFFICIENTNET_LITE0, Naming::Timm),
        (Arch::EFFICIENTNET_B0, Naming::Torchvision),
    ];
    let prefixes = [
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "net.",
        "encoder.",
        "features.",
        "layer1.0.",
        "model.module.",
        "model.backbone.",
        "module._orig_mod.model.",
        "student.net.0.",
    ];
    for (arch, layout) in archs {
        let backbone = Backbone::random(arch, 3, &CPU).unwrap();
        let plain = state(&backbone, layout, 5);
        assert!(load(arch, &plain).unwrap().notes().is_empty());
        for prefix in if arch == Arch::CIFAR_RESNET20 { &prefixes[..] } else { &["module.", "model.", "net.encoder."] }
        {
            let loaded = load(arch, &renamed(&plain, |name| format!("{prefix}{name}"))).unwrap();
            assert_same(&loaded, &backbone);
            assert_eq!(loaded.num_classes(), Some(5), "{arch} {prefix}");
            let note = &loaded.notes()[0];
            let last = prefix.split_inclusive('.').next_back().unwrap();
            assert!(note.starts_with("removed from the names: ") && note.contains(last), "{note}");
            assert!(format!("{loaded:?}").contains(note.as_str()), "{loaded:?}");
        }
    }
    // Wrappers inside the network: of a part, of every block.
    let vgg = Backbone::random(Arch::VGG11_BN_FEATURES, 3, &CPU).unwrap();
    let inside = renamed(&state(&vgg, Naming::Timm, 5), |name| name.replace("features.", "features.module."));
    assert_same(&load(Arch::VGG11_BN_FEATURES, &inside).unwrap(), &vgg);
    let (backbone, plain) = small();
    for wrapper in ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"] {
        let inside = renamed(&plain, |name| name.replace(".conv2", &format!(".{wrapper}.conv2")));
        assert_same(&load(Arch::CIFAR_RESNET20, &inside).unwrap(), &backbone);
    }
}

#[test]
fn what_lies_beside_the_network_is_left_aside_and_said() {
    let (backbone, plain) = small();
    let mut tensors = renamed(&plain, |name| format!("model.{name}"));
    tensors.insert("criterion.weight".into(), Tensor::ones(5, DType::F32, &CPU).unwrap());
    tensors.insert("train_acc.tp".into(), Tensor::zeros(5, DType::I64, &CPU).unwrap());
    let loaded = load(Arch::CIFAR_RESNET20, &tensors).unwrap();
    assert_same(&loaded, &backbone);
    assert_eq!(loaded.notes()[1], "not part of the network: criterion.weight, train_acc.tp");
    // Unknown names inside the network are still refused.
    tensors.insert("model.layer9.weight".into(), Tensor::ones(5, DType::F32, &CPU).unwrap());
    assert_eq!(mismatch(Arch::CIFAR_RESNET20, &tensors).1, ["model.layer9.weight"]);
    // An average of torch.optim.swa_utils holds a counter.
    let mut average = renamed(&plain, |name| format!("module.{name}"));
    average.insert("n_averaged".into(), Tensor::new(7i64, &CPU).unwrap());
    let loaded = load(Arch::CIFAR_RESNET20, &average).unwrap();
    assert_same(&loaded, &backbone);
    assert_eq!(loaded.notes()[1], "not part of the network: n_averaged");
}

#[test]
fn of_two_networks_in_a_file_one_is_chosen_by_its_prefix() {
    let (first, plain) = small();
    let second = Backbone::random(Arch::CIFAR_RESNET20, 4, &CPU).unwrap();
    let mut both = renamed(&plain, |name| format!("student.{name}"));
    both.extend(renamed(&state(&second, Naming::Timm, 5), |name| format!("module.teacher.{name}")));
    let (_dir, path) = file(&both);
    let source = || Source::file(&path).arch(Arch::CIFAR_RESNET20);
    let text = Backbone::load(source(), &CPU).unwrap_err().to_string();
    for words in ["student.", "teacher.", "Source::prefix", "--prefix"] {
        assert!(text.contains(words), "{text}");
    }
    for (prefix, expected) in
        [("student.", &first), ("student", &first), ("teacher.", &second), ("module.teacher.", &second)]
    {
        let loaded = Backbone::load(source().prefix(prefix), &CPU).unwrap();
        assert_same(&loaded, expected);
        assert!(loaded.notes()[1].contains("not part of the network"), "{:?}", loaded.notes());
    }
    let text = Backbone::load(source().prefix("model."), &CPU).unwrap_err().to_string();
    assert!(text.contains("\"model.\"") && text.contains("module.teacher.bn1.bias"), "{text}");
    // A prefix works for a plain file too, and consists of whole parts of names.
    let (_dir, path) = file(&renamed(&plain, |name| format!("net_{name}")));
    let text =
        Backbone::load(Source::file(&path).arch(Arch::CIFAR_RESNET20).prefix("net"), &CPU).unwrap_err().to_string();
    assert!(text.contains("\"net.\""), "{text}");
    // The same tensor twice, once behind a wrapper.
    let mut twice = plain.clone();
    twice.insert("module.conv1.weight".into(), plain["conv1.weight"].clone());
    let text = load(Arch::CIFAR_RESNET20, &twice).unwrap_err().to_string();
    assert!(text.contains("conv1.weight and module.conv1.weight"), "{text}");
}

#[test]
fn weights_of_another_architecture_are_recognised() {
    let file_of = |arch: Arch| state(&Backbone::random(arch, 3, &CPU).unwrap(), Naming::Timm, 5);
    let lite = file_of(Arch::TF_EFFICIENTNET_LITE0);
    for (asked, tensors) in [
        (Arch::EFFICIENTNET_B0, lite.clone()),
        (Arch::RESNET18, lite.clone()),
        (Arch::RESNET18, renamed(&lite, |name| format!("model.{name}"))),
    ] {
        let found = difference(asked, &tensors);
        assert_eq!(found.looks_like.as_deref(), Some("tf_efficientnet_lite0"), "{asked}");
        let text = found.to_string();
        assert!(text.contains("looks like tf_efficientnet_lite0") && text.contains("--arch"), "{text}");
        assert!(text.len() < 600, "{} characters: {text}", text.len());
    }
    let found = difference(Arch::RESNET18, &small().1);
    assert_eq!(found.looks_like.as_deref(), Some("cifar_resnet20"));
    // None of these names is known; the message mentions their common prefix.
    let strange = renamed(&small().1, |name| format!("trunk.{}", name.replace("layer", "stage")));
    let found = difference(Arch::CIFAR_RESNET20, &strange);
    assert_eq!((found.looks_like.as_deref(), found.prefix.as_deref()), (None, None), "its prefix was found");
    let strange = renamed(&small().1, |name| format!("trunk.{}", name.replace("conv", "filter")));
    let found = difference(Arch::CIFAR_RESNET20, &strange);
    assert_eq!((found.looks_like.as_deref(), found.prefix.as_deref()), (None, Some("trunk.")));
    assert!(found.to_string().contains("\"trunk.\"") && found.to_string().contains("Source::prefix"), "{found}");
}

#[test]
fn a_classifier_of_another_kind_does_not_stop_the_backbone() {
    let (backbone, plain) = small();
    let body: Tensors =
        plain.iter().filter(|(name, _)| !name.starts_with("linear.")).map(|(n, t)| (n.clone(), t.clone())).collect();
    let ones = |dims: &[usize]| Tensor::ones(dims, DType::F32, &CPU).unwrap();
    let heads: [&[(&str, &[usize])]; 9] = [
        &[("linear.1.weight", &[5, 64]), ("linear.1.bias", &[5])],
        &[("fc.0.weight", &[32, 64]), ("fc.0.bias", &[32]), ("fc.2.weight", &[5, 32]), ("fc.2.bias", &[5])],
        &[("classifier.head.weight", &[5, 64])],
        &[("head.norm.weight", &[64]), ("head.fc.weight", &[5, 64]), ("head.fc.bias", &[5])],
        &[("linear.weight", &[5, 64])],
        &[("linear.weight", &[5, 128]), ("linear.bias", &[5])],
        &[("linear.weight", &[5, 64]), ("linear.bias", &[6])],
        &[("linear.weight_g", &[5, 1]), ("linear.weight_v", &[5, 64])],
        &[("last_linear.weight", &[5, 64]), ("last_linear.bias", &[5])],
    ];
    for (i, head) in heads.iter().enumerate() {
        let mut tensors = body.clone();
        tensors.extend(head.iter().map(|(name, dims)| ((*name).to_string(), ones(dims))));
        for prefix in ["", "model."] {
            let (_dir, path) = file(&renamed(&tensors, |name| format!("{prefix}{name}")));
            let loaded = Backbone::from_file(Arch::CIFAR_RESNET20, &path, &CPU).unwrap();
            assert_same(&loaded, &backbone);
            assert_eq!(loaded.num_classes(), None, "{i}");
            let note = loaded.notes().iter().find(|note| note.starts_with("classifier not used: ")).unwrap().clone();
            let text = Predictor::load(Source::file(&path).arch(Arch::CIFAR_RESNET20), &CPU).unwrap_err().to_string();
            let data = crate::support::tensors(4, 32, 2, 1);
            let plan =
                crate::support::plan(vec![candle_finetune::Phase::new(1, candle_finetune::Optimizer::sgd(0.1))], 4);
            let tuner = candle_finetune::FineTuner::new(loaded.clone()).plan(plan).head(Head::original());
            let asked = tuner.session(&data).err().unwrap().to_string();
            for (name, dims) in *head {
                let named = format!("{prefix}{name} {dims:?}");
                for text in [&note, &text, &asked, &format!("{loaded:?}")] {
                    assert!(text.contains(&named), "{i}: {named} is not in {text}");
                }
            }
        }
    }
    // A part of the network whose name merely begins like a classifier's is not a classifier.
    let mut tensors = plain.clone();
    tensors.insert("linear2.weight".into(), ones(&[5, 64]));
    tensors.insert("header.weight".into(), ones(&[5, 64]));
    assert_eq!(mismatch(Arch::CIFAR_RESNET20, &tensors).1, ["header.weight", "linear2.weight"]);
    // A linear classifier is kept, whatever else the file holds.
    let mut tensors = plain;
    tensors.insert("head.extra".into(), ones(&[1]));
    let loaded = load(Arch::CIFAR_RESNET20, &tensors).unwrap();
    assert_eq!(
        (loaded.num_classes(), loaded.notes()),
        (Some(5), &["classifier not used: head.extra [1]".to_string()][..])
    );
    assert!(format!("{loaded:?}").contains("classifier of 5 classes"), "{loaded:?}");
}

#[test]
fn a_saved_head_is_shown_by_the_backbone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.safetensors");
    let data = crate::support::tensors(4, 32, 3, 1);
    let tuned = |head: Head| {
        let freeze = candle_finetune::FreezePolicy::Backbone;
        let phase = candle_finetune::Phase::new(1, candle_finetune::Optimizer::sgd(0.1)).freeze(freeze);
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
        let tuner = candle_finetune::FineTuner::new(backbone).plan(crate::support::plan(vec![phase], 4)).head(head);
        tuner.fit(&data, &data).unwrap().predictor.save(&path).unwrap();
        (Backbone::load(Source::file(&path), &CPU).unwrap(), Predictor::from_file(&path, &CPU).unwrap())
    };
    let (backbone, predictor) = tuned(Head::linear());
    assert!(backbone.notes().is_empty());
    let text = format!("{backbone:?}");
    assert!(text.contains("classifier of 3 classes: class 0, class 1, class 2"), "{text}");
    assert!(predictor.backbone().notes().is_empty());
    let (backbone, predictor) = tuned(Head::mlp(7));
    let text = format!("{backbone:?}");
    assert!(
        text.contains("classifier not used (the saved head of two layers with 7 hidden units): linear.0.bias [7]"),
        "{text}"
    );
    // The predictor has it.
    assert!(predictor.backbone().notes().is_empty(), "{predictor:?}");
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_name() {
    let (_, plain) = small();
    let with = |name: &str, values: &[(usize, f32)]| {
        let mut tensors = plain.clone();
        let mut all = plain[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.iter().for_each(|&(at, value)| all[at] = value);
        tensors.insert(name.into(), Tensor::from_vec(all, plain[name].dims(), &CPU).unwrap());
        tensors
    };
    let (nan, infinite) = (f32::NAN, f32::INFINITY);
    for (name, values, words) in [
        ("layer1.0.conv1.weight", &[(7, nan)][..], "1 of 2304 elements is NaN"),
        ("conv1.weight", &[(0, nan), (5, -nan), (431, nan)], "3 of 432 elements are NaN"),
        (
            "conv1.weight",
            &[(0, infinite), (1, -infinite), (2, nan)],
            "1 of 432 elements is NaN, 2 of 432 elements are infinite",
        ),
        ("bn1.running_mean", &[(3, -infinite)], "1 of 16 elements is infinite"),
        (
            "layer3.2.bn2.running_var",
            &[(3, -1e-6), (4, -1.0)],
            "2 of 64 elements are negative, which a running variance cannot be",
        ),
        ("bn1.weight", &[(15, nan)], "1 of 16 elements is NaN"),
        ("linear.weight", &[(15, nan)], "1 of 320 elements is NaN"),
        ("linear.bias", &[(4, infinite)], "1 of 5 elements is infinite"),
    ] {
        let error = load(Arch::CIFAR_RESNET20, &with(name, values)).unwrap_err();
        assert!(matches!(error, Error::Weights { .. }), "{error}");
        assert!(error.to_string().contains(&format!("tensor {name}: {words}.")), "{error}");
        // The message has its name in the file.
        let tensors = renamed(&with(name, values), |name| format!("model.{name}"));
        let error = load(Arch::CIFAR_RESNET20, &tensors).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor model.{name}:")), "{error}");
    }
    // Other tensors may be negative, zero, or as large as f32 allows.
    let fine = with("bn1.running_var", &[(0, 0.0), (1, -0.0), (2, f32::MAX)]);
    load(Arch::CIFAR_RESNET20, &fine).unwrap();
    load(Arch::CIFAR_RESNET20, &with("conv1.weight", &[(0, f32::MIN), (1, 1e-45)])).unwrap();
    // Some finite f64 values are infinite in f32.
    let mut double = plain.clone();
    let mut wide = plain["conv1.weight"].flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    wide[3] = 1e300;
    double.insert("conv1.weight".into(), Tensor::from_vec(wide, (16, 3, 3, 3), &CPU).unwrap());
    let (_dir, path) = file(&double);
    let source = || Source::file(&path).arch(Arch::CIFAR_RESNET20);
    let error = Backbone::load(source(), &CPU).unwrap_err().to_string();
    assert!(error.contains("1 of 432 elements is too large for f32"), "{error}");
    Backbone::load(source().dtype(DType::F64), &CPU).unwrap();
    // Infinite f16 values, as an overflow leaves them.
    let mut half = plain.clone();
    half.insert("conv1.weight".into(), (&plain["conv1.weight"] * 1e8).unwrap().to_dtype(DType::F16).unwrap());
    let error = load(Arch::CIFAR_RESNET20, &half).unwrap_err().to_string();
    assert!(error.contains("conv1.weight: ") && error.contains("elements are infinite"), "{error}");
    // Counters and ignored tensors are not checked.
    let mut aside = renamed(&plain, |name| format!("model.{name}"));
    aside.insert("loss.weight".into(), Tensor::new(&[f32::NAN], &CPU).unwrap());
    load(Arch::CIFAR_RESNET20, &aside).unwrap();
}

#[test]
fn names_without_end_take_no_time() {
    let start = Instant::now();
    let arch = Arch::CIFAR_RESNET20;
    let one = Tensor::ones(1, DType::F32, &CPU).unwrap();
    let (_, plain) = small();
    // A name with a million wrappers, which are all removed; a name with a million prefixes, more than the limit; the
    // first tensors of many networks.
    for name in [
        "module.".repeat(1_000_000) + "conv1.weight",
        "model.".repeat(1_000_000) + "conv1.weight",
        "conv1.weight.".repeat(500_000) + "conv1.weight",
    ] {
        let mut tensors = renamed(&plain, |name| format!("net.{name}"));
        tensors.insert(name, one.clone());
        let loaded = load(arch, &tensors);
        assert!(loaded.is_ok(), "{loaded:?}");
        assert!(loaded.unwrap().notes().iter().all(|note| note.len() < 2000));
    }
    let many: Tensors = (0..50_000).map(|i| (format!("{i}.conv1.weight"), one.clone())).collect();
    let text = load(arch, &many).unwrap_err().to_string();
    assert!(text.contains("missing") && text.len() < 2000, "{text}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
