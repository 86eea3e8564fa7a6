use super::super::learner::Group;
use super::*;
use crate::ops::backward;
use crate::{Arch, Backbone};
use candle_core::{DType, Device, Tensor, Var};

fn frozen() -> (Backbone, Slots, Network) {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
    let mut slots = Slots::new();
    for (name, tensor) in backbone.tensors() {
        slots.insert(name.clone(), Slot::Frozen(tensor.copy().unwrap()));
    }
    let network = Network::build(backbone.blueprint(), &slots).unwrap();
    (backbone, slots, network)
}

fn images(size: usize) -> Tensor {
    Tensor::ones((2, 3, size, size), DType::F32, &Device::Cpu).unwrap()
}

/// The names in an audit's two lists.
fn lists(error: Error) -> (Vec<String>, Vec<String>) {
    match error {
        Error::Audit { phase: 1, unreached, changed } => (unreached, changed),
        other => panic!("{other}"),
    }
}

#[test]
fn one_changed_bit_of_a_frozen_tensor_is_found() {
    let (_, mut slots, network) = frozen();
    let mut audit = Audit::begin(1, &slots, true).unwrap();
    network.features(&images(32)).unwrap();
    audit.frozen(&slots, &network).unwrap();
    // More copies are added for other sizes; that is no change.
    network.features(&images(40)).unwrap();
    audit.frozen(&slots, &network).unwrap();

    let name = "layer2.1.bn1.running_mean";
    let mut values = slots[name].tensor().to_vec1::<f32>().unwrap();
    let last = values.last_mut().unwrap();
    *last = f32::from_bits(last.to_bits() ^ 1);
    let len = values.len();
    slots.insert(name.into(), Slot::Frozen(Tensor::from_vec(values, len, &Device::Cpu).unwrap()));
    let error = audit.frozen(&slots, &network).unwrap_err();
    assert!(error.to_string().contains(name), "{error}");
    assert_eq!(lists(error), (vec![], vec![name.to_string()]));
}

#[test]
fn a_folded_copy_that_is_not_that_of_its_tensors_is_found() {
    let (_, mut slots, network) = frozen();
    let mut audit = Audit::begin(1, &slots, true).unwrap();
    network.features(&images(32)).unwrap();
    audit.frozen(&slots, &network).unwrap();
    // Another network, of which one convolution is folded otherwise, over the same frozen tensors.
    let as_before = slots.clone();
    let name = "layer1.0.bn2.weight";
    slots.insert(name.into(), Slot::Frozen((slots[name].tensor() * 2.0).unwrap()));
    let other = Network::build(&Arch::CIFAR_RESNET20.blueprint(crate::Naming::Timm, 3).unwrap(), &slots).unwrap();
    other.features(&images(32)).unwrap();
    let (unreached, changed) = lists(audit.frozen(&as_before, &other).unwrap_err());
    assert!(unreached.is_empty());
    assert!(!changed.is_empty() && changed.iter().all(|name| name.starts_with("layer1.0.conv2")), "{changed:?}");
}

#[test]
fn gradients_are_sorted_into_missing_endless_and_zero() {
    let var = |values: [f32; 2]| Var::new(&values, &Device::Cpu).unwrap();
    let (good, lost, endless, idle) = (var([1.0, 2.0]), var([1.0, 2.0]), var([0.0, 1.0]), var([1.0, 2.0]));
    let learners = |vars: &[(&str, &Var)]| {
        let group = Group { lr_scale: 1.0, decays: true };
        let mut learners = Learners::default();
        learners.enter(vars.iter().map(|(name, var)| (name.to_string(), (*var).clone(), group)).collect()).unwrap();
        learners
    };
    let all = learners(&[("good", &good), ("lost", &lost), ("idle", &idle)]);
    let audit = Audit::begin(1, &Slots::new(), true).unwrap();

    let loss = (good.sqr().unwrap() + (idle.as_tensor() - idle.as_tensor()).unwrap()).unwrap().sum_all().unwrap();
    let gradients = backward(&loss, all.ids()).unwrap();
    assert_eq!(lists(audit.gradients(&all, &gradients).unwrap_err()), (vec!["lost".into()], vec![]));
    let all = learners(&[("good", &good), ("idle", &idle)]);
    assert_eq!(audit.gradients(&all, &gradients).unwrap(), ["idle"]);

    let all = learners(&[("good", &good), ("idle", &idle), ("endless", &endless)]);
    let loss = (loss + endless.sqrt().unwrap().sum_all().unwrap()).unwrap(); // the slope of a root at 0
    assert_eq!(all.not_finite(&backward(&loss, all.ids()).unwrap()).unwrap(), ["endless"]);
}
