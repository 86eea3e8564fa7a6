//! The smallest row of every family against PyTorch's values (tests/reference/README.md), in f64 and f32.
//!
//! `cargo run --release --example parity` compares any other row and size in the same way.

#[path = "../examples/support/parity.rs"]
mod support;

use std::path::Path;
use support::{Figures, Parity, Precision};

/// Compares a committed file in both precisions and names every error beyond its tolerance.
fn hold(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name);
    let parity = Parity::new(Figures::read(&path).unwrap()).unwrap();
    for precision in [Precision::F64, Precision::F32] {
        let errors = parity.compare(precision).unwrap();
        let held = errors.worst.iter().filter(|w| w.allowed.is_some()).count();
        assert!(held >= 4, "{precision}: only {held} kinds of values are checked");
        let too_large: Vec<_> = errors.worst.iter().filter(|w| w.too_large()).collect();
        assert!(too_large.is_empty(), "{name} in {precision}: {too_large:#?}");
    }
}

#[test]
fn cifar_resnet_with_steps() {
    hold("reference-cifar_resnet20-32-steps5.json");
}

#[test]
fn cifar_resnet_frozen_in_part_with_steps() {
    hold("reference-cifar_resnet20-32-frozen_conv1_bn1_layer1-steps5.json");
}

#[test]
fn resnet() {
    hold("timm-resnet18-64-b2.json");
}

#[test]
fn vgg() {
    hold("reference-vgg11_bn_features-64.json");
}

#[test]
fn efficientnet() {
    hold("timm-efficientnet_b0-64.json");
}

#[test]
fn efficientnet_lite() {
    hold("timm-tf_efficientnet_lite0-64.json");
}

/// A committed file as JSON, damaged by `spoil`.
fn spoilt(spoil: impl FnOnce(&mut serde_json::Value)) -> String {
    let path = "tests/fixtures/parity/reference-cifar_resnet20-32-frozen_conv1_bn1_layer1-steps5.json";
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let mut json = serde_json::from_str(&text).unwrap();
    spoil(&mut json);
    json.to_string()
}

/// The kinds of errors that are beyond their tolerance in f64.
fn too_large(text: &str) -> Vec<String> {
    let parity = Parity::new(Figures::parse(text).unwrap()).unwrap();
    let errors = parity.compare(Precision::F64).unwrap();
    errors.worst.into_iter().filter(support::Worst::too_large).map(|w| w.kind).collect()
}

#[test]
fn a_wrong_figure_is_seen() {
    let change = |value: &mut serde_json::Value| *value = (value.as_f64().unwrap() * 1.0001).into();
    let wrong = spoilt(|json| {
        change(&mut json["gradients"]["layer2.0.conv1.weight"]["probe"]);
        change(&mut json["running_after"]["layer3.2.bn2.running_var"]["l2"]);
        json["adamw"]["parameters"]["linear.weight"]["first"][1] = 1.0.into();
        change(&mut json["sgd"]["losses"][4]);
        json["eval_logits"][3] = 100.0.into();
    });
    let mut kinds = too_large(&wrong);
    kinds.sort();
    assert_eq!(kinds, ["adamw_parameters_first", "eval_logits", "gradient_probe", "running_l2", "sgd_losses"]);
}

#[test]
fn figures_of_another_freezing_do_not_pass() {
    let text = spoilt(|json| json["frozen"] = serde_json::json!(["conv1", "bn1", "layer1.0"]));
    let parity = Parity::new(Figures::parse(&text).unwrap()).unwrap();
    let error = parity.compare(Precision::F64).err().unwrap().to_string();
    assert!(error.contains("layer1.1") && error.contains("not in the file"), "{error}");
}

#[test]
fn bad_files_are_refused() {
    let error = |text: &str| match Figures::parse(text).and_then(Parity::new) {
        Ok(_) => panic!("taken: {}", &text[..80.min(text.len())]),
        Err(error) => error.to_string(),
    };
    assert!(error("").contains("not a parity file"));
    assert!(error("{\"model\": \"timm:resnet18\"}").contains("num_classes"));
    assert!(error(&spoilt(|json| json["model"] = "timm:resnet81".into())).contains("resnet18"));
    assert!(error(&spoilt(|json| json["model"] = "resnet18".into())).contains("timm:NAME"));
    assert!(error(&spoilt(|json| json["batch"] = 0.into())).contains("at least 1"));
    assert!(error(&spoilt(|json| json["size"] = u64::MAX.into())).contains("too large"));
    assert!(error(&spoilt(|json| json["tensors"]["conv1.weight"] = vec![u64::MAX; 4].into())).contains("conv1.weight"));
    assert!(error(&spoilt(|json| drop(json["eval_logits"].as_array_mut().unwrap().pop()))).contains("eval_logits"));
    assert!(error(&spoilt(|json| json["largest_gradient"] = 1e9.into())).contains("largest_gradient"));
    assert!(error(&spoilt(|json| json["steps"] = 6.into())).contains("5 losses"));
    // The loader refuses tensors that the architecture does not have.
    let text = spoilt(|json| json["tensors"]["layer9.weight"] = vec![2, 2].into());
    let refused = Parity::new(Figures::parse(&text).unwrap()).unwrap().compare(Precision::F32).err().unwrap();
    assert!(refused.to_string().contains("layer9.weight"), "{refused}");
}

#[test]
fn a_head_can_be_frozen_by_its_name() {
    let text = spoilt(|json| {
        json["frozen"].as_array_mut().unwrap().push("linear.bias".into());
        json["gradients"].as_object_mut().unwrap().remove("linear.bias");
        json["steps"] = 0.into();
        for key in ["sgd", "adamw"] {
            json.as_object_mut().unwrap().remove(key);
        }
    });
    assert_eq!(too_large(&text), [""; 0]);
}
