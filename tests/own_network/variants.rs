//! Networks that differ little: saved predictors know their layers and pooling.

use super::*;

/// Networks of one name and equal tensors that compute other features.
fn variants() -> Vec<(&'static str, Blueprint)> {
    let of = |second: Layer| {
        let blocks = vec![Block::new("a", Conv2d::new(3, 4, 3).relu()), Block::new("b", second)];
        Blueprint::from_blocks("net", InputSpec::new(32), 4, blocks).unwrap()
    };
    let conv = || Conv2d::new(4, 4, 3);
    let double =
        |factor: f64| Layer::sequential([conv().into(), Layer::custom(move |_| Ok(move |x: &Tensor| x * factor))]);
    vec![
        ("relu", of(conv().relu().into())),
        ("silu", of(conv().silu().into())),
        ("stride", of(conv().relu().stride(2).into())),
        ("padding", of(conv().relu().padding(0).into())),
        ("token", of(conv().relu().into()).pooled_by(Pooling::ClassToken).unwrap()),
        ("mean of cubes", of(conv().relu().into()).pooled_by(Pooling::GeneralizedMean(3.0)).unwrap()),
        ("mean of squares", of(conv().relu().into()).pooled_by(Pooling::GeneralizedMean(2.0)).unwrap()),
        ("twice", of(double(2.0))),
        ("thrice", of(double(3.0))),
    ]
}

/// One cache is shared by networks of one name: none gets another's features.
#[test]
fn cached_features_are_those_of_the_network_itself() {
    let (train, valid) = data();
    let cache = FeatureCache::new();
    for (what, blueprint) in variants() {
        let backbone = Backbone::random(&blueprint, 7, &CPU).unwrap();
        let run = |cache: &FeatureCache| {
            let plan = plan(FreezePolicy::Backbone, BatchNormMode::Frozen);
            let tuner = FineTuner::new(backbone.clone()).plan(plan).seed(3).cache(cache);
            let fitted = tuner.fit(&train, &valid).unwrap();
            (fitted.report.epochs[0].train_loss, fitted.report.epochs[0].valid_loss)
        };
        assert_eq!(run(&cache), run(&FeatureCache::off()), "{what}");
    }
}

/// A predictor is loaded by the blueprint that it was trained with, and by no other, whatever its tensors.
#[test]
fn a_saved_predictor_knows_its_layers_and_pooling() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.safetensors");
    let variants = variants();
    for (i, (what, blueprint)) in variants.iter().enumerate() {
        let backbone = Backbone::random(blueprint, 7, &CPU).unwrap();
        let tuned = fit(&backbone, plan(FreezePolicy::Backbone, BatchNormMode::Frozen));
        tuned.predictor.save(&path).unwrap();
        for (j, (other, wrong)) in variants.iter().enumerate() {
            // No file can tell one closure from another.
            if i == j || (i > 6 && j > 6) {
                let loaded = Predictor::from_file_as(&path, wrong, &CPU).unwrap();
                let same = bits(&loaded.backbone().forward(&images(2)).unwrap())
                    == bits(&tuned.predictor.backbone().forward(&images(2)).unwrap());
                assert_eq!(same, i == j, "{what} as {other}");
                continue;
            }
            let error = Predictor::from_file_as(&path, wrong, &CPU).unwrap_err().to_string();
            let expected = ["layers differ", "pooling differs", "does not hold the weights"];
            assert!(expected.iter().any(|words| error.contains(words)), "{what} as {other}: {error}");
        }
    }
}

/// An architecture of the crate with another pooling is saved and loaded by its name.
#[test]
fn the_pooling_of_an_architecture_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pooled.safetensors");
    let arch = Arch::CIFAR_RESNET20;
    let blueprint = Blueprint::try_from(arch).unwrap().pooled_by(Pooling::GeneralizedMean(3.0)).unwrap();
    let tuned =
        fit(&Backbone::random(&blueprint, 1, &CPU).unwrap(), plan(FreezePolicy::Backbone, BatchNormMode::Frozen));
    tuned.predictor.save(&path).unwrap();
    let features = bits(&tuned.predictor.backbone().forward(&images(2)).unwrap());
    for loaded in
        [Predictor::from_file(&path, &CPU).unwrap(), Predictor::from_file_as(&path, &blueprint, &CPU).unwrap()]
    {
        assert_eq!(loaded.backbone().blueprint().pooling(), Pooling::GeneralizedMean(3.0));
        assert_eq!(
            (bits(&loaded.backbone().forward(&images(2)).unwrap()), loaded.backbone().arch()),
            (features.clone(), Some(arch))
        );
    }
    let weights = Backbone::from_file(&blueprint, &path, &CPU).unwrap();
    assert_eq!(bits(&weights.forward(&images(2)).unwrap()), features);
    let token = Blueprint::try_from(arch).unwrap().pooled_by(Pooling::ClassToken).unwrap();
    let error = Predictor::from_file_as(&path, &token, &CPU).unwrap_err().to_string();
    assert!(error.contains("pooling"), "{error}");
    // As a folder it is loaded by its own description; the config alone would say too little.
    let folder = dir.path().join("folder");
    tuned.predictor.save_folder(&folder).unwrap();
    let loaded = Predictor::load(Source::dir(&folder), &CPU).unwrap();
    assert_eq!(bits(&loaded.backbone().forward(&images(2)).unwrap()), features);
}

/// The channels and the naming that a blueprint was made for reach the weights.
#[test]
fn a_blueprint_of_an_architecture_says_its_channels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rgb.safetensors");
    let rgb = Backbone::random(Arch::CIFAR_RESNET20, 1, &CPU).unwrap();
    crate::support::write(&path, rgb.tensors());
    let gray = Arch::CIFAR_RESNET20.blueprint(Naming::Timm, 1).unwrap();
    let loaded = Backbone::from_file(&gray, &path, &CPU).unwrap();
    assert_eq!((loaded.input_spec().channels, loaded.tensors()["conv1.weight"].dims()), (1, &[16, 1, 3, 3][..]));
    assert_eq!(Backbone::from_file(Arch::CIFAR_RESNET20, &path, &CPU).unwrap().input_spec().channels, 3);
    let torchvision = Arch::RESNET18.blueprint(Naming::Torchvision, 3).unwrap();
    let path = dir.path().join("resnet18.safetensors");
    crate::support::write(&path, Backbone::random(Arch::RESNET18, 1, &CPU).unwrap().tensors());
    let crop = |backbone: Backbone| backbone.input_spec().interpolation;
    assert_eq!(crop(Backbone::from_file(&torchvision, &path, &CPU).unwrap()), Interpolation::Bilinear);
    assert_eq!(crop(Backbone::from_file(Arch::RESNET18, &path, &CPU).unwrap()), Interpolation::Bicubic);
}

/// A name that the crate has too confuses nothing.
#[test]
fn a_network_called_like_an_architecture_is_another_network() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = || vec![Block::new("stem", Conv2d::new(3, 8, 3).relu())];
    let own = Blueprint::from_blocks("cifar_resnet20", InputSpec::new(32), 8, blocks()).unwrap();
    let tuned = fit(&Backbone::random(&own, 1, &CPU).unwrap(), plan(FreezePolicy::Nothing, BatchNormMode::Frozen));
    assert_eq!(tuned.predictor.backbone().arch(), None);
    let path = dir.path().join("own.safetensors");
    tuned.predictor.save(&path).unwrap();
    assert!(Predictor::from_file_as(&path, &own, &CPU).is_ok());
    let error = Predictor::from_file(&path, &CPU).unwrap_err().to_string();
    assert!(error.contains("from_file_as"), "{error}");
    let error =
        Predictor::from_file_as(&path, &Arch::CIFAR_RESNET20.try_into().unwrap(), &CPU).unwrap_err().to_string();
    assert!(error.contains("custom network"), "{error}");
    // And the folder of one says what is missing.
    let folder = dir.path().join("folder");
    let own = Blueprint::from_blocks("small_cnn", InputSpec::new(32), 8, blocks()).unwrap();
    let tuned = fit(&Backbone::random(&own, 1, &CPU).unwrap(), plan(FreezePolicy::Nothing, BatchNormMode::Frozen));
    tuned.predictor.save_folder(&folder).unwrap();
    let card = std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(card.contains(".blueprint(&blueprint)") && !card.contains("Predictor::load(Source::dir"), "{card}");
    let error = Predictor::load(Source::dir(&folder), &CPU).map(drop).unwrap_err().to_string();
    assert!(error.contains("small_cnn") && error.contains("from_file_as"), "{error}");
    assert!(Predictor::load(Source::dir(&folder).blueprint(&own), &CPU).is_ok());
}

/// Long chains of narrow convolutions recompute each other to a small depth only.
#[test]
fn a_chain_of_narrow_layers_trains_in_linear_time() {
    let layer =
        |i: usize| Block::new(format!("b{i}"), Conv2d::new(if i == 0 { 3 } else { 16 }, 16, 1).batch_norm().relu());
    let of = |count: usize| {
        let blueprint =
            Blueprint::from_blocks("deep", InputSpec::new(32), 16, (0..count).map(layer).collect()).unwrap();
        Backbone::random(&blueprint, 1, &CPU).unwrap()
    };
    // The memory model counts what is held: with a bounded depth it grows with the length.
    let step = |backbone: &Backbone| {
        plan(FreezePolicy::Nothing, BatchNormMode::Train).forecast(backbone, Head::linear(), 3).unwrap().step.unwrap()
    };
    let (short, long) = (step(&of(6)), step(&of(24)));
    assert!(long > 2 * short, "{short} {long}");
    fit(&of(24), plan(FreezePolicy::Nothing, BatchNormMode::Train));
}

#[test]
fn layers_that_cannot_be_are_refused_and_not_a_panic() {
    let blueprint = |layer: Layer| Blueprint::from_blocks("net", InputSpec::new(8), 3, vec![Block::new("a", layer)]);
    let starting = |init: TensorInit| {
        Layer::custom(move |tensors| {
            let shift = tensors.get("shift", &[1, 3, 1, 1], init)?;
            Ok(move |x: &Tensor| x.broadcast_add(&shift))
        })
    };
    for init in [
        TensorInit::Uniform(-1.0),
        TensorInit::Uniform(f64::INFINITY),
        TensorInit::Normal(f64::NAN),
        TensorInit::Constant(f64::NAN),
    ] {
        let error = blueprint(starting(init)).map(drop).unwrap_err().to_string();
        assert!(error.contains("a.shift") && error.contains("finite"), "{init:?}: {error}");
    }
    // A width of 0 is a value like any other.
    let zero = Backbone::random(blueprint(starting(TensorInit::Uniform(0.0))).unwrap(), 1, &CPU).unwrap();
    assert!(zero.tensors().values().all(|tensor| bits(tensor).iter().all(|&bits| bits == 0)));
    let error = blueprint(Conv2d::new(3, 3, 0).into()).map(drop).unwrap_err().to_string();
    assert!(error.contains("kernel"), "{error}");
    let error = blueprint(Linear::new(2, usize::MAX).into()).map(drop).unwrap_err().to_string();
    assert!(error.contains("a.weight") || error.contains("linear"), "{error}");
    // A closure that drops an image.
    let fewer = Layer::custom(|_| Ok(|x: &Tensor| x.narrow(0, 0, 1)));
    let backbone = Backbone::random(blueprint(fewer).unwrap(), 1, &CPU).unwrap();
    let error = backbone.forward(&images(2)).unwrap_err().to_string();
    assert!(error.contains("number of images"), "{error}");
}
