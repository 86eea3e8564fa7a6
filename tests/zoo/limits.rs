//! The limits of the zoo's networks, and their documentation in files.

use super::{loaded, model, plan};
use crate::support::{CPU, bits, images, tensors};
use candle_finetune::candle_core::DType;
use candle_finetune::{
    Advisor, Backbone, BatchNormMode, DataSize, Error, FineTuner, FreezePolicy, Head, Init, Plan, Predictor,
    Similarity, Source, Strategy, StrategyCost, ZooModel,
};
use std::path::Path;

fn random(name: &str) -> Backbone {
    Backbone::random(model(name), 1, &CPU).unwrap().for_input_size(64, 64).unwrap()
}

fn refused(backbone: &Backbone, plan: Plan) -> String {
    let train = tensors(4, 64, 2, 1);
    let forecast = plan.forecast(backbone, Head::linear(), 2).unwrap_err().to_string();
    let error = FineTuner::new(backbone.clone()).plan(plan).session(&train).map(drop).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(error.to_string(), forecast);
    assert!(forecast.contains(backbone.name()), "{forecast}");
    forecast
}

#[test]
fn a_part_of_the_block_is_refused_with_the_reason() {
    let backbone = random("zoo/convnext_atto");
    let names = vec!["stages.0".to_string(), "stem".into()];
    for freeze in [FreezePolicy::First(2), FreezePolicy::AllBut(3), FreezePolicy::UpTo("stages.0".into())] {
        let text = refused(&backbone, plan(freeze, BatchNormMode::Frozen));
        assert!(text.contains("one block") && text.contains("candle-transformers"), "{text}");
    }
    for (freeze, frozen) in [
        (FreezePolicy::Nothing, 0),
        (FreezePolicy::First(1), 1),
        (FreezePolicy::Backbone, 1),
        (FreezePolicy::UpTo("network".into()), 1),
        (FreezePolicy::Named(names), 0),
    ] {
        assert_eq!(freeze.frozen_blocks(&backbone).unwrap(), frozen, "{freeze:?}");
    }
    let unknown = FreezePolicy::UpTo("stages.9".into()).frozen_blocks(&backbone).unwrap_err();
    assert!(matches!(unknown, Error::UnknownBlock { .. }), "{unknown}");
}

#[test]
fn tensors_can_be_frozen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = loaded("zoo/convnext_atto", folder.path()).1.for_input_size(64, 64).unwrap();
    let train = tensors(4, 64, 2, 1);
    let names = FreezePolicy::Named(vec!["stem".into(), "stages.0".into(), "stages.1".into()]);
    let tuned = FineTuner::new(backbone.clone()).plan(plan(names, BatchNormMode::Frozen)).fit(&train, &train.clone());
    let tuned = tuned.unwrap();
    for (name, tensor) in tuned.predictor.backbone().tensors() {
        let frozen = ["stem.", "stages.0.", "stages.1."].iter().any(|part| name.starts_with(part));
        assert_eq!(bits(tensor) == bits(&backbone.tensors()[name]), frozen, "{name}");
    }
}

#[test]
fn batch_statistics_are_refused_where_there_are_batch_norms() {
    let text = refused(&random("zoo/mobileone_s0"), plan(FreezePolicy::Nothing, BatchNormMode::Train));
    assert!(text.contains("statistics") && text.contains("FrozenStats"), "{text}");
    // Frozen, and without batch norms, the mode means nothing.
    let ask = |name: &str, freeze| plan(freeze, BatchNormMode::Train).forecast(&random(name), Head::linear(), 2);
    assert!(ask("zoo/mobileone_s0", FreezePolicy::Backbone).is_ok());
    assert!(ask("zoo/convnext_atto", FreezePolicy::Nothing).is_ok());
}

#[test]
fn weights_and_biases_of_batch_norms_learn_as_the_mode_says() {
    let backbone = random("zoo/mobileone_s0");
    let train = tensors(4, 64, 2, 1);
    let learning = |mode| {
        let session = FineTuner::new(backbone.clone()).plan(plan(FreezePolicy::Nothing, mode)).session(&train);
        let mut session = session.unwrap();
        assert!(session.next_phase().unwrap());
        session.parameters().unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let (stats, frozen) = (learning(BatchNormMode::FrozenStats), learning(BatchNormMode::Frozen));
    let norms = backbone.tensors().keys().filter(|name| name.ends_with(".running_mean")).count();
    assert!(norms > 50 && stats.iter().chain(&frozen).all(|name| !name.contains("running_")));
    assert_eq!(stats.len(), frozen.len() + 2 * norms);
    assert!(frozen.iter().all(|name| !name.contains("bn.") && !name.contains("identity.")));
}

#[test]
fn networks_without_complete_gradients_are_refused_before_training() {
    for (name, size) in [("zoo/deit_tiny_patch16_224", 224), ("zoo/vit_small_patch14_dinov2", 56)] {
        let backbone = Backbone::random(model(name), 1, &CPU).unwrap().for_input_size(size, size).unwrap();
        let part = FreezePolicy::Named(vec!["blocks.0".into(), "vit.encoder.layer.0".into()]);
        let part = if part.frozen_blocks(&backbone).is_ok() { part } else { FreezePolicy::Nothing };
        let scratch = plan(FreezePolicy::Nothing, BatchNormMode::Frozen).init(Init::Random);
        for plan in [
            plan(FreezePolicy::Nothing, BatchNormMode::Frozen),
            plan(part, BatchNormMode::Frozen),
            Strategy::LargeSimilar.plan(&backbone, 4),
            scratch,
        ] {
            let text = refused(&backbone, plan);
            assert!(text.contains("layer_norm") && text.contains("FreezePolicy::Backbone"), "{text}");
        }
        // Frozen tensors need no gradient.
        let frozen = Strategy::SmallDifferent.plan(&backbone, 4);
        assert!(frozen.forecast(&backbone, Head::linear(), 2).is_ok());
    }
}

/// A thousand images that fit would be enough to train everything.
#[test]
fn of_a_network_that_cannot_be_trained_the_head_alone_is_advised() {
    let backbone = Backbone::random(model("zoo/vit_small_patch14_dinov2"), 1, &CPU).unwrap();
    let backbone = backbone.for_input_size(14, 14).unwrap();
    let advice = Advisor::new(&backbone).advise(&tensors(1_000, 14, 2, 1)).unwrap();
    assert_eq!((advice.size, advice.similarity), (DataSize::Large, Similarity::Similar), "{advice}");
    assert_eq!((advice.strategy, advice.plan.strategy), (Strategy::SmallSimilar, Some(Strategy::SmallSimilar)));
    assert!(advice.reasons.iter().any(|reason| reason.contains("large-similar is not possible")), "{advice}");
    assert_eq!(
        advice.costs.iter().map(StrategyCost::fits).collect::<Vec<_>>(),
        [true, false, false, false, true, false]
    );
    assert!(advice.costs[0].minutes.is_some() && advice.costs[2].minutes.is_none() && advice.runner_up.is_none());
}

#[test]
fn over_maps_of_one_pixel_the_audit_finds_what_no_gradient_reaches() {
    let backbone = Backbone::random(model("zoo/convnext_atto"), 1, &CPU).unwrap().for_input_size(32, 32).unwrap();
    let train = tensors(4, 32, 2, 1);
    let tuner = FineTuner::new(backbone).plan(plan(FreezePolicy::Nothing, BatchNormMode::Frozen));
    match tuner.fit(&train, &train.clone()).unwrap_err() {
        Error::Audit { unreached, .. } => {
            let reached = |name: &String| !name.starts_with("stages.3.");
            assert!(!unreached.is_empty() && !unreached.iter().any(reached), "{unreached:?}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn the_forecast_of_a_step_is_unknown() {
    let backbone = random("zoo/convnext_atto");
    let plan = plan(FreezePolicy::Nothing, BatchNormMode::Frozen);
    let forecast = plan.forecast(&backbone, Head::linear(), 2).unwrap();
    assert!(forecast.total().is_none() && forecast.weights > 10_000_000, "{forecast}");
}

#[test]
fn sizes_and_types_that_a_model_cannot_take_are_refused() {
    let error = |name: &str, height: usize, width: usize| {
        let images = images(1, 3, height.max(width), 1).narrow(2, 0, height).unwrap().narrow(3, 0, width).unwrap();
        let backbone = Backbone::random(model(name), 1, &CPU).unwrap();
        backbone.forward(&images.contiguous().unwrap()).unwrap_err().to_string()
    };
    let text = error("zoo/deit_tiny_patch16_224", 208, 224);
    assert!(text.contains("224 x 224"), "{text}");
    let text = error("zoo/vit_small_patch14_dinov2", 28, 42);
    assert!(text.contains("square"), "{text}");
    let text = error("zoo/vit_small_patch14_dinov2", 30, 30);
    assert!(text.contains("14"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let (_, backbone) = loaded("zoo/mobileone_s0", folder.path());
    let source = Source::file(folder.path().join("weights.safetensors")).blueprint(backbone.blueprint());
    let text = Backbone::load(source.dtype(DType::F64), &CPU).unwrap_err().to_string();
    assert!(text.contains("zoo/mobileone_s0") && text.contains("f64"), "{text}");
}

#[test]
fn weights_of_another_version_are_refused_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    loaded("zoo/convnextv2_atto", folder.path());
    let error = Backbone::from_file(model("zoo/convnext_atto"), &path, &CPU).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::WeightsMismatch(_)) && text.contains("gamma") && text.contains("grn"), "{text}");
}

fn write(folder: &Path, file: &str, text: &str) {
    std::fs::write(folder.join(file), text).unwrap();
}

#[test]
fn folders_of_the_hub_load_with_the_network_that_the_user_names() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path();
    let (_, backbone) = loaded("zoo/vit_small_patch14_dinov2", place);
    std::fs::rename(place.join("weights.safetensors"), place.join("model.safetensors")).unwrap();
    write(
        place,
        "config.json",
        r#"{"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "global_pool": "token",
            "pretrained_cfg": {"input_size": [3, 518, 518], "interpolation": "bicubic", "crop_pct": 1.0,
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}"#,
    );
    let source = || Source::dir(place).blueprint(backbone.blueprint());
    let found = Backbone::load(source(), &CPU).unwrap();
    assert_eq!(found.input_spec(), &model("zoo/vit_small_patch14_dinov2").input_spec());
    // A classifier of 1000 classes is ImageNet's.
    assert_eq!(Predictor::load(source(), &CPU).unwrap().labels()[0], "tench");
    // The crate's own architectures do not have it.
    assert!(matches!(Backbone::load(Source::dir(place), &CPU), Err(Error::UnknownArch { .. })));
    // A folder that the crate wrote names the network itself.
    let (_, backbone) = loaded("zoo/mobileone_s0", place);
    let weights = Source::file(place.join("weights.safetensors")).blueprint(backbone.blueprint());
    let written = place.join("written");
    Predictor::load(weights, &CPU).unwrap().save_folder(&written).unwrap();
    let again = Predictor::load(Source::dir(&written), &CPU).unwrap();
    assert_eq!(again.backbone().name(), "zoo/mobileone_s0");
    let images = images(1, 3, 64, 2);
    assert_eq!(bits(&again.backbone().forward(&images).unwrap()), bits(&backbone.forward(&images).unwrap()));
}

#[test]
fn the_table_in_the_documentation_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/zoo/TABLE.md");
    let text = ZooModel::table().unwrap();
    if std::env::var("ZOO_TABLE").is_ok_and(|v| v == "write") {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text, "ZOO_TABLE=write writes it anew");
    for model in ZooModel::all() {
        assert!(text.contains(&format!("`{model}`")) && text.contains(model.hub_id()), "{model}");
    }
    assert!(ZooModel::all().iter().any(ZooModel::is_trainable));
}
