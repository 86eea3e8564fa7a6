//! Names of tensors: unknown ones, prefixes and wrappers, and what lies beside the network.

use super::*;

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
