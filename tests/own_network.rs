//! Networks that a user makes of blocks: they freeze, train, save and load like any other.

use crate::support::{all_bits, bits, differing, next};
use crate::training::data;
use candle_finetune::candle_core::{DType, Device, Tensor};
use candle_finetune::{
    Arch, Backbone, BatchNormMode, Block, Blueprint, Conv2d, Error, FeatureCache, FineTuner, Fitted, FreezePolicy,
    Head, InputSpec, Interpolation, Layer, Linear, Loss, Naming, Optimizer, Phase, Plan, Pooling, Predictor, Source,
    TensorInit,
};

mod variants;

const CPU: Device = Device::Cpu;

fn conv(inputs: usize, outputs: usize) -> Conv2d {
    Conv2d::new(inputs, outputs, 3).batch_norm()
}

/// A stem with a pool, two residual blocks of which one changes the shape, and a fully connected layer.
fn blocks() -> Vec<Block> {
    let inner = |inputs, outputs, stride| {
        Layer::sequential([conv(inputs, outputs).stride(stride).relu().into(), conv(outputs, outputs).into()])
    };
    let shortcut = Conv2d::new(8, 16, 1).stride(2).batch_norm();
    vec![
        Block::new("stem", Layer::sequential([conv(3, 8).relu().into(), Layer::max_pool_padded(3, 2, 1)])),
        Block::new("block1", Layer::residual(inner(8, 8, 1))).stage("body"),
        Block::new("block2", Layer::residual_with(inner(8, 16, 2), shortcut)).stage("body"),
        Block::new("neck", Layer::sequential([Layer::global_average_pool(), Linear::new(16, 12).relu().into()])),
    ]
}

fn blueprint() -> Blueprint {
    Blueprint::from_blocks("small_cnn", InputSpec::new(32), 12, blocks()).unwrap()
}

fn plan(freeze: FreezePolicy, mode: BatchNormMode) -> Plan {
    let phase = Phase::new(1, Optimizer::sgd(0.05).momentum(0.9)).freeze(freeze).batch_norm(mode);
    Plan::new(vec![phase]).batch_size(8)
}

fn fit(backbone: &Backbone, plan: Plan) -> Fitted {
    let (train, valid) = data();
    FineTuner::new(backbone.clone()).plan(plan).seed(3).fit(&train, &valid).unwrap()
}

fn images(n: usize) -> Tensor {
    let values: Vec<f32> = (0..n * 3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (n, 3, 32, 32), &CPU).unwrap()
}

#[test]
fn its_blocks_and_tensors_are_those_of_its_layers() {
    let blueprint = blueprint();
    let blocks: Vec<_> = blueprint.blocks().iter().map(|b| (b.name.as_str(), b.stage.as_str(), b.parameters)).collect();
    // Kernels and the two parameters of each norm: 3 x 8 x 9 + 16 and so on.
    assert_eq!(
        blocks,
        [("stem", "stem", 232), ("block1", "body", 1184), ("block2", "body", 3680), ("neck", "neck", 204)]
    );
    let backbone = Backbone::random(&blueprint, 1, &CPU).unwrap();
    for name in [
        "stem.0.conv.weight",
        "stem.0.norm.running_mean",
        "block1.main.1.norm.bias",
        "block2.shortcut.conv.weight",
        "neck.1.weight",
    ] {
        assert!(backbone.tensors().contains_key(name), "{name}: {:?}", backbone.tensors().keys());
    }
    assert_eq!((backbone.name(), backbone.arch()), ("small_cnn", None));
    assert_eq!(backbone.forward(&images(2)).unwrap().dims(), [2, 12]);
    let other = Backbone::random(&blueprint, 1, &CPU).unwrap();
    assert_eq!(differing(&all_bits(backbone.tensors()), &all_bits(other.tensors())), [""; 0], "equal seeds");
    // Its own least size is known, as for the crate's architectures.
    assert!(backbone.for_input_size(64, 48).is_ok());
}

/// Frozen blocks keep their bits, and every trainable tensor gets a gradient, frozen at every block and in every mode
/// of the norms.
#[test]
fn it_freezes_at_every_cut() {
    let backbone = Backbone::random(blueprint(), 1, &CPU).unwrap();
    let before = all_bits(backbone.tensors());
    for k in 0..=4 {
        for mode in [BatchNormMode::Frozen, BatchNormMode::FrozenStats, BatchNormMode::Train] {
            let tuned = fit(&backbone, plan(FreezePolicy::First(k), mode));
            let changed = differing(&before, &all_bits(tuned.predictor.backbone().tensors()));
            for (i, block) in backbone.blocks().iter().enumerate() {
                let own = |name: &&String| name.starts_with(&format!("{}.", block.name));
                let of_block: Vec<_> = backbone.tensors().keys().filter(own).collect();
                let moved = of_block.iter().filter(|name| changed.contains(name)).count();
                if i < k {
                    assert_eq!(moved, 0, "First({k}) {mode:?} {}", block.name);
                    continue;
                }
                let expected = of_block.iter().filter(|name| match mode {
                    BatchNormMode::Frozen => !name.contains(".norm."),
                    BatchNormMode::FrozenStats => !name.contains("running"),
                    _ => true,
                });
                assert_eq!(moved, expected.count(), "First({k}) {mode:?} {}: {changed:?}", block.name);
            }
        }
    }
    assert_eq!(differing(&before, &all_bits(backbone.tensors())), [""; 0], "the backbone is a value");
}

#[test]
fn it_is_saved_and_loaded_with_its_blueprint() {
    let (blueprint, dir) = (blueprint(), tempfile::tempdir().unwrap());
    let backbone = Backbone::random(&blueprint, 1, &CPU).unwrap();
    let tuned = fit(&backbone, plan(FreezePolicy::First(1), BatchNormMode::Train));
    let path = dir.path().join("own.safetensors");
    tuned.predictor.save(&path).unwrap();
    let loaded = Predictor::from_file_as(&path, &blueprint, &CPU).unwrap();
    let saved = tuned.predictor.backbone();
    assert_eq!(differing(&all_bits(saved.tensors()), &all_bits(loaded.backbone().tensors())), [""; 0]);
    let features = |p: &Predictor| bits(&p.backbone().forward(&images(3)).unwrap());
    assert_eq!(features(&loaded), features(&tuned.predictor));
    assert_eq!(loaded.labels(), tuned.predictor.labels());
    assert_eq!(loaded.report().unwrap().unwrap().arch, "small_cnn");
    // As weights, with its head as the original classifier.
    let weights = Backbone::from_file(&blueprint, &path, &CPU).unwrap();
    assert_eq!(weights.num_classes(), Some(loaded.labels().len()));
    // Without the blueprint, it is named.
    for error in [
        Predictor::from_file(&path, &CPU).unwrap_err(),
        Backbone::load(Source::file(&path), &CPU).unwrap_err(),
        Predictor::load(Source::file(&path), &CPU).map(drop).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, Error::Weights { .. }), "{text}");
        assert!(text.contains("small_cnn") && text.contains("from_file_as"), "{text}");
    }
    // Another blueprint is refused: by its name, and by its tensors.
    let other = Blueprint::from_blocks("other", InputSpec::new(32), 12, blocks()).unwrap();
    let text = Predictor::from_file_as(&path, &other, &CPU).unwrap_err().to_string();
    assert!(text.contains("small_cnn") && text.contains("other"), "{text}");
    let mut fewer = blocks();
    fewer.remove(1);
    let fewer = Blueprint::from_blocks("small_cnn", InputSpec::new(32), 12, fewer).unwrap();
    let error = Predictor::from_file_as(&path, &fewer, &CPU).unwrap_err();
    assert!(matches!(error, Error::WeightsMismatch(_)) && error.to_string().contains("block1"), "{error}");
}

/// The same two convolutions, of the crate's layers and of Candle's operations in closures.
fn both_ways() -> [Blueprint; 2] {
    let own = vec![
        Block::new("a", Conv2d::new(3, 4, 3).relu().names("conv", "")),
        Block::new("b", Conv2d::new(4, 6, 3).relu().names("conv", "")),
    ];
    let closure = |inputs: usize, outputs: usize| {
        Layer::custom(move |tensors| {
            let std = (2.0 / (outputs as f64 * 9.0)).sqrt();
            let weight = tensors.get("conv.weight", &[outputs, inputs, 3, 3], TensorInit::Normal(std))?;
            let bias = tensors.get("conv.bias", &[outputs], TensorInit::Zeros)?;
            Ok(move |x: &Tensor| x.conv2d(&weight, 1, 1, 1, 1)?.broadcast_add(&bias.reshape((1, (), 1, 1))?)?.relu())
        })
    };
    let closures = vec![Block::new("a", closure(3, 4)), Block::new("b", closure(4, 6))];
    [("own", own), ("closures", closures)]
        .map(|(name, blocks)| Blueprint::from_blocks(name, InputSpec::new(32), 6, blocks).unwrap())
}

#[test]
fn closures_over_tensors_learn_as_layers_do() {
    let backbones = both_ways().map(|blueprint| Backbone::random(&blueprint, 5, &CPU).unwrap());
    let [own, closures] = &backbones;
    assert_eq!(differing(&all_bits(own.tensors()), &all_bits(closures.tensors())), [""; 0], "equal starts");
    let close = |a: &Tensor, b: &Tensor, what: &str| {
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let scale = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference <= 1e-4 * scale.max(1e-3), "{what}: {difference} of {scale}");
    };
    close(&closures.forward(&images(2)).unwrap(), &own.forward(&images(2)).unwrap(), "features");
    for k in 0..=2 {
        let gradients = backbones.clone().map(|backbone| {
            let (train, _) = data();
            let plan = plan(FreezePolicy::First(k), BatchNormMode::Frozen);
            let mut session = FineTuner::new(backbone).plan(plan).seed(3).session(&train).unwrap();
            let batch = next(&mut session).unwrap().unwrap();
            let loss = Loss::cross_entropy().forward(&session.forward(&batch).unwrap(), &batch.targets).unwrap();
            session.gradients(&loss.backward().unwrap()).unwrap()
        });
        let [a, b] = &gradients;
        assert_eq!(a.iter().map(|g| &g.0).collect::<Vec<_>>(), b.iter().map(|g| &g.0).collect::<Vec<_>>());
        assert_eq!(a.len(), 2 + 2 * (2 - k), "First({k})");
        for ((name, a), (_, b)) in a.iter().zip(b) {
            close(b, a, name);
        }
        let tuned = backbones.clone().map(|b| fit(&b, plan(FreezePolicy::First(k), BatchNormMode::Frozen)));
        let [a, b] = tuned.each_ref().map(|tuned| tuned.predictor.backbone().tensors());
        for (name, a) in a {
            close(&b[name], a, name);
        }
        let frozen = |name: &String| k > 0 && name.starts_with("a.") || k > 1;
        for (name, tensor) in b.iter().filter(|(name, _)| frozen(name)) {
            assert_eq!(bits(tensor), bits(&closures.tensors()[name]), "First({k}) {name}");
        }
    }
}

#[test]
fn what_no_dry_run_sees_is_unknown_in_the_forecast() {
    let [own, closures] = both_ways().map(|blueprint| Backbone::random(&blueprint, 5, &CPU).unwrap());
    let of = |backbone: &Backbone| {
        plan(FreezePolicy::Nothing, BatchNormMode::Frozen).forecast(backbone, Head::linear(), 3).unwrap()
    };
    let (own, closures) = (of(&own), of(&closures));
    assert!(own.step.is_some() && own.total().is_some());
    assert_eq!(
        (closures.weights, closures.moments, closures.step, closures.total()),
        (own.weights, own.moments, None, None)
    );
    assert!(closures.to_string().contains("unknown"), "{closures}");
}

#[test]
fn a_closure_that_cuts_the_graph_is_found_by_the_audit() {
    let scale = Layer::custom(|tensors| {
        let scale = tensors.get("scale", &[1, 8, 1, 1], TensorInit::Ones)?;
        Ok(move |x: &Tensor| x.broadcast_mul(&scale.detach()))
    });
    let blocks = vec![Block::new("stem", conv(3, 8).relu()), Block::new("cut", scale)];
    let blueprint = Blueprint::from_blocks("cut", InputSpec::new(32), 8, blocks).unwrap();
    let (train, valid) = data();
    let tuner = FineTuner::new(Backbone::random(&blueprint, 1, &CPU).unwrap());
    let error = tuner.plan(plan(FreezePolicy::Nothing, BatchNormMode::Train)).fit(&train, &valid).unwrap_err();
    match &error {
        Error::Audit { unreached, .. } => assert_eq!(unreached, &["cut.scale"]),
        other => panic!("{other}"),
    }
}

#[test]
fn the_pooling_is_a_value() {
    let blocks = || vec![Block::new("stem", Conv2d::new(3, 4, 1))];
    let of = |pooling| {
        let blueprint = Blueprint::from_blocks("pooled", InputSpec::new(8), 4, blocks()).unwrap();
        let backbone = Backbone::random(blueprint.pooled_by(pooling).unwrap(), 2, &CPU).unwrap();
        let images = images(2).narrow(2, 0, 8).unwrap().narrow(3, 0, 8).unwrap().contiguous().unwrap();
        (backbone.tensors().clone(), images.clone(), backbone.forward(&images).unwrap())
    };
    let (tensors, images, mean) = of(Pooling::Mean);
    let map = images.conv2d(&tensors["stem.conv.weight"], 0, 1, 1, 1).unwrap();
    let close = |a: &Tensor, b: Tensor| {
        let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-5, "{difference}");
    };
    close(&mean, map.mean((2, 3)).unwrap());
    let first = map.narrow(2, 0, 1).unwrap().narrow(3, 0, 1).unwrap().flatten_from(1).unwrap();
    close(&of(Pooling::ClassToken).2, first);
    let positive = map.maximum(1e-6).unwrap();
    close(
        &of(Pooling::GeneralizedMean(3.0)).2,
        positive.powf(3.0).unwrap().mean((2, 3)).unwrap().powf(1.0 / 3.0).unwrap(),
    );
    let blueprint = Blueprint::from_blocks("pooled", InputSpec::new(8), 4, blocks()).unwrap();
    assert!(blueprint.pooled_by(Pooling::GeneralizedMean(-1.0)).is_err());
}

#[test]
fn blocks_that_cannot_be_a_network_are_refused_with_their_names() {
    let error = |name: &str, dim: usize, blocks: Vec<Block>| {
        Blueprint::from_blocks(name, InputSpec::new(32), dim, blocks).unwrap_err().to_string()
    };
    let stem = || Block::new("stem", conv(3, 8).relu());
    for (text, words) in [
        (error("net", 8, vec![]), "no blocks"),
        (error("", 8, vec![stem()]), "name"),
        (error("net", 0, vec![stem()]), "no features"),
        (error("net", 8, vec![stem(), stem()]), "stem"),
        (error("net", 8, vec![Block::new("head", conv(3, 8))]), "head"),
        (error("net", 9, vec![stem()]), "9"),
        (error("net", 8, vec![stem(), Block::new("wrong", conv(7, 8))]), "wrong"),
        (error("net", 8, vec![Block::new("stem", conv(1, 8))]), "stem"),
        (error("net", 8, vec![Block::new("stem", Conv2d::new(3, 8, 3).groups(2))]), "groups"),
        (error("net", 8, vec![Block::new("stem", Conv2d::new(3, 8, 3).stride(0))]), "stride"),
        (error("net", 8, vec![stem(), Block::new("join", Layer::residual(conv(8, 8).stride(2)))]), "join"),
        (error("net", 8, vec![Block::new("stem", Layer::max_pool(64, 1))]), "stem"),
        (error("net", 3, vec![Block::new("stem", Layer::max_pool_padded(3, 1, 2))]), "half of a window"),
        (error("net", 3, vec![Block::new("stem", Layer::max_pool(1 << 40, 1))]), "stem"),
        (error("net", 8, vec![Block::new("stem", Conv2d::new(3, 8, 3).padding(usize::MAX))]), "padding"),
        (error("net", 8, vec![stem(), Block::new("full", Linear::new(8, 8))]), "one pixel"),
        (error("net", 8, vec![stem(), Block::new("head.0", conv(8, 8))]), "head.0"),
        (
            error(
                "net",
                8,
                vec![stem(), Block::new("b", conv(8, 8)).stage("stem"), Block::new("c", conv(8, 8)).stage("b")],
            ),
            "block b: its stage is called stem",
        ),
        (
            error(
                "net",
                8,
                vec![stem().stage("s"), Block::new("b", conv(8, 8)), Block::new("c", conv(8, 8)).stage("s")],
            ),
            "goes on",
        ),
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // A closure is checked when it runs.
    let flat = Layer::custom(|_| Ok(|x: &Tensor| x.flatten_all()));
    let blueprint = Blueprint::from_blocks("flat", InputSpec::new(32), 8, vec![Block::new("flat", flat)]).unwrap();
    let text = Backbone::random(&blueprint, 1, &CPU).unwrap().forward(&images(1)).unwrap_err().to_string();
    assert!(text.contains("(N, C, H, W)"), "{text}");
    let fewer = Layer::custom(|_| Ok(|x: &Tensor| x.mean((2, 3))));
    let blueprint = Blueprint::from_blocks("few", InputSpec::new(32), 8, vec![Block::new("few", fewer)]).unwrap();
    let text = Backbone::random(&blueprint, 1, &CPU).unwrap().forward(&images(1)).unwrap_err().to_string();
    assert!(text.contains("feature_dim") && text.contains('3') && text.contains('8'), "{text}");
    let source = Source::file("x.safetensors").blueprint(&self::blueprint()).channels(1).dtype(DType::F32);
    assert!(Backbone::load(source, &CPU).is_err());
}
