//! Tests of the recorder on a model's requests.

use super::asked::Request;
use super::*;
use crate::params::{Kind, TensorInit};

fn request(name: &str) -> (&'static Row, Request) {
    let row = name.parse::<ZooModel>().unwrap().0;
    (row, Request::of(row).unwrap())
}

#[test]
fn a_batch_norm_is_told_by_the_statistics_that_the_model_asks_for() {
    for (name, norms) in
        [("zoo/mobileone_s0", true), ("zoo/convnext_atto", false), ("zoo/deit_tiny_patch16_224", false)]
    {
        let (row, request) = request(name);
        let facts = request.facts(row).unwrap();
        let of = |kind: Kind| facts.iter().filter(|f| f.kind == kind).count();
        let means = request.tensors.iter().filter(|a| a.name.ends_with("running_mean")).count();
        assert_eq!(means > 0, norms, "{name}");
        assert_eq!((of(Kind::RunningMean), of(Kind::RunningVariance)), (means, means), "{name}");
        assert_eq!(of(Kind::BatchNormAffine), 2 * means, "{name}: a layer norm's weight is a parameter like others");
        for (asked, facts) in request.tensors.iter().zip(&facts) {
            let is_position = ["cls_token", "position_embeddings"].iter().any(|part| asked.name.ends_with(part));
            assert_eq!(facts.decays, asked.shape.len() > 1 && !is_position, "{name} {}", asked.name);
        }
    }
}

#[test]
fn what_a_model_only_looks_for_is_recorded_apart() {
    let names = |request: &Request| request.tensors.iter().map(|a| a.name.clone()).collect::<Vec<_>>();
    let (_, first) = request("zoo/convnext_atto");
    let (_, second) = request("zoo/convnextv2_atto");
    let grn = "stages.0.blocks.0.mlp.grn.weight".to_string();
    let gamma = "stages.0.blocks.0.gamma".to_string();
    assert!(first.probed.contains(&grn) && !names(&first).contains(&grn) && names(&first).contains(&gamma));
    assert!(second.probed.contains(&gamma) && !names(&second).contains(&gamma) && names(&second).contains(&grn));
    let (_, with) = request("zoo/mobileone_s4");
    let attention: Vec<_> = names(&with).into_iter().filter(|name| name.contains(".attn.fc1.weight")).collect();
    assert_eq!(attention.len(), 12, "{attention:?}");
    assert!(with.probed.contains("stages.2.9.attn.fc1.weight"));
    assert!(!names(&request("zoo/mobileone_s0").1).iter().any(|name| name.contains("attn")));
}

#[test]
fn initial_values_are_the_models_own() {
    let (row, request) = request("zoo/convnext_tiny");
    let facts = request.facts(row).unwrap();
    let init = |name: &str| facts[request.tensors.iter().position(|a| a.name == name).unwrap()].init;
    // Kaiming's normal distribution over the fan-in of 3 x 4 x 4, and PyTorch's bound for the bias.
    assert_eq!(init("stem.0.weight"), TensorInit::Normal(2f64.sqrt() / 48f64.sqrt()));
    assert_eq!(init("stem.0.bias"), TensorInit::Uniform(1.0 / 3f64.sqrt()));
    assert_eq!((init("stem.1.weight"), init("stem.1.bias")), (TensorInit::Ones, TensorInit::Zeros));
    assert_eq!(init("stages.0.blocks.0.gamma"), TensorInit::Constant(1e-6));
}

#[test]
fn every_row_has_as_many_features_as_its_model_has_channels_at_the_end() {
    for model in ZooModel::all() {
        let tensors = Request::of(model.0).unwrap().tensors;
        let width = |name: &str| tensors.iter().find(|a| a.name == name).map(|a| a.shape[0]);
        let last_norm = || tensors.iter().rfind(|a| a.name.ends_with(".running_mean")).map(|a| a.shape[0]);
        let width = width("head.norm.weight")
            .or_else(|| width("vit.layernorm.weight"))
            .or_else(|| width("norm.weight").map(|width| 2 * width))
            .or_else(last_norm);
        assert_eq!(width, Some(model.feature_dim()), "{model}");
    }
}
