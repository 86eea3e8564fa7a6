//! Frozen tensors stay, trainable tensors change: for every architecture, frozen at every block, in every mode of batch
//! norm.

use crate::support::{CPU, all_bits, all_sums, bits, differing, images, next, plan, tensors, worn};
use candle_finetune::{
    Arch, Backbone, BatchNormMode, Error, FeatureCache, FineTuner, FreezePolicy, Loss, Optimizer, Phase, Session,
    TensorDataset,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Bits = BTreeMap<String, Vec<u64>>;

const MODES: [BatchNormMode; 3] = [BatchNormMode::Train, BatchNormMode::FrozenStats, BatchNormMode::Frozen];

fn is_statistic(name: &str) -> bool {
    name.ends_with(".running_mean") || name.ends_with(".running_var")
}

/// The names of the batch norm modules.
fn norms(names: &BTreeSet<String>) -> BTreeSet<String> {
    names.iter().filter_map(|name| name.strip_suffix(".running_mean")).map(String::from).collect()
}

fn of_norm(name: &str, norms: &BTreeSet<String>) -> bool {
    name.rsplit_once('.').is_some_and(|(module, _)| norms.contains(module))
}

/// Which tensors must get a gradient and change in one step, of those that the policy does not freeze.
struct Expected {
    frozen: BTreeSet<String>,
    learning: BTreeSet<String>,
    moving: BTreeSet<String>,
}

impl Expected {
    /// `open`: the tensors of trainable blocks.
    fn new(backbone: &Backbone, open: &BTreeSet<String>, mode: BatchNormMode) -> Self {
        let all: BTreeSet<String> = backbone.tensors().keys().cloned().collect();
        let norms = norms(&all);
        let (mut frozen, mut learning, mut moving) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for name in all {
            let place = if !open.contains(&name) {
                &mut frozen
            } else if is_statistic(&name) {
                if mode == BatchNormMode::Train { &mut moving } else { &mut frozen }
            } else if of_norm(&name, &norms) && mode == BatchNormMode::Frozen {
                &mut frozen
            } else {
                &mut learning
            };
            place.insert(name);
        }
        Self { frozen, learning, moving }
    }
}

pub fn start(backbone: &Backbone, data: &TensorDataset, freeze: FreezePolicy, mode: BatchNormMode) -> Session {
    // The size of Adam's step does not depend on the gradient's, so every change shows in f32.
    let optimizer = Optimizer::adamw(1e-2).weight_decay(0.0);
    let phase = Phase::new(2, optimizer).freeze(freeze).batch_norm(mode);
    FineTuner::new(backbone.clone()).plan(plan(vec![phase], 4)).workers(0).session(data).unwrap()
}

/// Takes one step of one phase and checks everything.
fn check(backbone: &Backbone, data: &TensorDataset, freeze: FreezePolicy, mode: BatchNormMode, expected: &Expected) {
    let what = format!("{} {freeze:?} {mode:?}", backbone.name());
    let mut session = start(backbone, data, freeze, mode);
    let before = all_sums(&session.tensors().unwrap());
    check_step(&mut session, backbone, &before, expected, &what);
    if mode != BatchNormMode::Train {
        assert_eq!(session.report().zero_gradients, [""; 0], "{what}");
    }
    // A second step, after which the audit compares the frozen tensors and their folded copies again.
    let batch = next(&mut session).unwrap().unwrap();
    session.step(&batch).unwrap();
    session.finish().unwrap();
}

/// Checks that the session's next step changes what it should and nothing else. Returns the checksums after it.
fn check_step(
    session: &mut Session,
    backbone: &Backbone,
    before: &BTreeMap<String, u64>,
    expected: &Expected,
    what: &str,
) -> BTreeMap<String, u64> {
    let batch = next(session).unwrap().unwrap();
    let learning: BTreeSet<String> = session.parameters().unwrap().into_iter().map(|(name, _)| name).collect();
    let head: BTreeSet<String> = learning.iter().filter(|n| !backbone.tensors().contains_key(*n)).cloned().collect();
    assert_eq!(head.len(), 2, "{what}");
    assert_eq!(learning.difference(&head).cloned().collect::<BTreeSet<_>>(), expected.learning, "{what}");

    let logits = session.forward(&batch).unwrap();
    let loss = Loss::cross_entropy().forward(&logits, &batch.targets).unwrap();
    session.backward_step(&loss).unwrap();
    let after = all_sums(&session.tensors().unwrap());
    let changed: BTreeSet<String> = differing(before, &after).into_iter().collect();

    let may: BTreeSet<String> = learning.union(&expected.moving).cloned().collect();
    assert_eq!(changed.difference(&may).collect::<Vec<_>>(), Vec::<&String>::new(), "{what}: changed");
    let zero: BTreeSet<String> = session.report().zero_gradients.iter().cloned().collect();
    // Only a bias that the norm's batch mean cancels has no gradient.
    let norms = norms(&backbone.tensors().keys().cloned().collect());
    for name in &zero {
        let bias = name.ends_with(".bias") && !of_norm(name, &norms) && !name.contains("se.");
        assert!(bias && !norms.is_empty(), "{what}: {name} has a gradient of zero");
    }
    let must: BTreeSet<String> = may.difference(&zero).cloned().collect();
    assert_eq!(must.difference(&changed).collect::<Vec<_>>(), Vec::<&String>::new(), "{what}: unchanged");
    assert!(changed.is_disjoint(&expected.frozen), "{what}");
    after
}

/// Checks the gradients that a user's `loss.backward()` gives.
fn check_user_gradients(backbone: &Backbone, data: &TensorDataset, k: usize) {
    let mut session = start(backbone, data, FreezePolicy::First(k), BatchNormMode::Train);
    let batch = next(&mut session).unwrap().unwrap();
    let loss = Loss::cross_entropy().forward(&session.forward(&batch).unwrap(), &batch.targets).unwrap();
    let gradients: BTreeMap<_, _> = session.gradients(&loss.backward().unwrap()).unwrap().into_iter().collect();
    for (name, parameter) in session.parameters().unwrap() {
        let gradient = gradients.get(&name).unwrap_or_else(|| panic!("{} First({k}): {name}", backbone.name()));
        assert_eq!(gradient.dims(), parameter.dims(), "{name}");
    }
}

/// The names of each block's tensors: those that freezing one more block adds to the frozen ones.
fn blocks(backbone: &Backbone, data: &TensorDataset) -> Vec<BTreeSet<String>> {
    let n = backbone.blocks().len();
    let learning = |k: usize| -> BTreeSet<String> {
        let phase = Phase::new(1, Optimizer::sgd(0.1)).freeze(FreezePolicy::First(k)).batch_norm(BatchNormMode::Frozen);
        // Without audit and feature cache, which are irrelevant here.
        let tuner =
            FineTuner::new(backbone.clone()).plan(plan(vec![phase], 4)).audit(false).cache(&FeatureCache::off());
        let mut session = tuner.workers(0).session(data).unwrap();
        next(&mut session).unwrap();
        session.parameters().unwrap().into_iter().map(|(name, _)| name).collect()
    };
    let sets: Vec<BTreeSet<String>> = (0..=n).map(learning).collect();
    let all: BTreeSet<String> = backbone.tensors().keys().cloned().collect();
    let norms = norms(&all);
    // A convolution and its norm: the norm is declared after it, in the same module.
    let parent = |name: &str| name.rsplit_once('.').map_or("", |(module, _)| module).to_string();
    let mut result = vec![BTreeSet::new(); n];
    for (i, block) in result.iter_mut().enumerate() {
        let kernels: BTreeSet<String> = sets[i].difference(&sets[i + 1]).cloned().collect();
        assert!(!kernels.is_empty(), "{} block {i}", backbone.name());
        for norm in &norms {
            if kernels.iter().any(|kernel| norm_of(&parent(kernel)) == *norm) {
                block.extend(all.iter().filter(|name| parent(name) == *norm).cloned());
            }
        }
        block.extend(kernels);
    }
    let together: BTreeSet<String> = result.iter().flatten().cloned().collect();
    assert_eq!(together, all, "{}: every tensor is in a block", backbone.name());
    assert_eq!(result.iter().map(BTreeSet::len).sum::<usize>(), all.len(), "and in one");
    result
}

/// The name of the norm after a convolution, in the naming of all families.
fn norm_of(conv: &str) -> String {
    let (module, leaf) = conv.rsplit_once('.').map_or(("", conv), |(module, leaf)| (module, leaf));
    let at = |leaf: String| if module.is_empty() { leaf } else { format!("{module}.{leaf}") };
    let first_stage = module.starts_with("blocks.0.");
    match leaf {
        "conv_stem" => "bn1".into(),
        "conv_head" => "bn2".into(),
        "conv_dw" => at(if first_stage { "bn1" } else { "bn2" }.into()),
        "conv_pw" => at(if first_stage { "bn2" } else { "bn1" }.into()),
        "conv_pwl" => at("bn3".into()),
        number if number.parse::<usize>().is_ok() => at((number.parse::<usize>().unwrap() + 1).to_string()),
        conv => at(conv.replace("conv", "bn")),
    }
}

/// Every cut in every mode of batch norm, each in a new session.
fn every_cut(arch: Arch, dir: &Path) {
    let backbone = worn(&Backbone::random(arch, 5, &CPU).unwrap(), dir);
    let data = tensors(4, 32, 2, 9);
    let blocks = blocks(&backbone, &data);
    untouched(&backbone, || {
        for k in 0..=blocks.len() {
            let open: BTreeSet<String> = blocks[k..].iter().flatten().cloned().collect();
            for mode in MODES {
                let expected = Expected::new(&backbone, &open, mode);
                check(&backbone, &data, FreezePolicy::First(k), mode, &expected);
            }
            check_user_gradients(&backbone, &data, k);
        }
    });
}

/// Every cut of a network that is too large for a session per cut: one run with a phase per cut, from the head alone
/// to everything, alternating the modes of batch norm.
fn every_cut_in_turn(arch: Arch) {
    let backbone = Backbone::random(arch, 5, &CPU).unwrap();
    let data = tensors(4, 32, 2, 9);
    let blocks = blocks(&backbone, &data);
    let mode = |k: usize| MODES[k % MODES.len()];
    // A step that shows in f32 whatever the gradient's size, and small enough for many of them.
    let optimizer = Optimizer::adamw(1e-4).weight_decay(0.0);
    let phase = |k| Phase::new(1, optimizer).freeze(FreezePolicy::First(k)).batch_norm(mode(k));
    let phases = (0..=blocks.len()).rev().map(phase).collect();
    untouched(&backbone, || {
        let mut session = FineTuner::new(backbone.clone()).plan(plan(phases, 4)).workers(0).session(&data).unwrap();
        let mut sums = all_sums(&session.tensors().unwrap());
        for k in (0..=blocks.len()).rev() {
            let open: BTreeSet<String> = blocks[k..].iter().flatten().cloned().collect();
            let expected = Expected::new(&backbone, &open, mode(k));
            sums = check_step(&mut session, &backbone, &sums, &expected, &format!("{arch} First({k})"));
        }
    });
    check_user_gradients(&backbone, &data, 0);
}

/// Checks that training does not change the backbone that it started from.
fn untouched(backbone: &Backbone, run: impl FnOnce()) {
    let x = images(2, 3, 32, 11);
    let (sums, features) = (all_sums(backbone.tensors()), bits(&backbone.forward(&x).unwrap()));
    run();
    assert_eq!(differing(&sums, &all_sums(backbone.tensors())), [""; 0], "{}", backbone.name());
    assert_eq!(bits(&backbone.forward(&x).unwrap()), features, "{}", backbone.name());
}

/// How an architecture is tested.
#[derive(PartialEq)]
enum Size {
    /// A session per cut and mode.
    Small,
    /// One run through all cuts.
    Large,
    /// The same, on request only: VGG's fully connected layers have a hundred million parameters.
    Huge,
}

fn size(arch: Arch) -> Size {
    let name = arch.name();
    let small = ["resnet18", "vgg11_features", "vgg11_bn_features", "efficientnet_b0", "tf_efficientnet_lite0"];
    match name {
        _ if name.starts_with("vgg") && !name.ends_with("_features") => Size::Huge,
        "cifar_resnet20" | "cifar_resnet32" => Size::Small,
        _ if small.contains(&name) => Size::Small,
        _ => Size::Large,
    }
}

fn of_size(wanted: Size) -> impl Iterator<Item = Arch> {
    Arch::all().iter().copied().filter(move |&arch| size(arch) == wanted)
}

#[test]
fn every_cut_of_small_networks() {
    let dir = tempfile::tempdir().unwrap();
    of_size(Size::Small).for_each(|arch| every_cut(arch, dir.path()));
}

#[test]
fn every_cut_of_large_networks() {
    of_size(Size::Large).for_each(every_cut_in_turn);
}

#[test]
#[ignore = "takes minutes and gigabytes; run with --ignored"]
fn every_cut_of_huge_networks() {
    of_size(Size::Huge).for_each(every_cut_in_turn);
}

#[test]
fn only_the_fully_connected_rows_wait_for_a_request() {
    assert_eq!(of_size(Size::Huge).count(), 8);
    assert_eq!(of_size(Size::Small).count() + of_size(Size::Large).count() + 8, Arch::all().len());
}

pub fn small() -> (Backbone, TensorDataset, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let backbone = worn(&Backbone::random(Arch::CIFAR_RESNET20, 5, &CPU).unwrap(), dir.path());
    (backbone, tensors(4, 32, 2, 9), dir)
}

#[test]
fn names_freeze_anywhere() {
    let (backbone, data, _dir) = small();
    let all: BTreeSet<String> = backbone.tensors().keys().cloned().collect();
    let frozen_by = |names: &[&str]| -> BTreeSet<String> {
        let below = |t: &String| names.iter().any(|n| t == n || t.starts_with(&format!("{n}.")));
        all.iter().filter(|t| below(t)).cloned().collect()
    };
    let cases: [&[&str]; 6] = [
        &["layer2.1"],
        &["layer3.2.conv2"],
        &["conv1", "bn1", "layer2", "layer3.0.bn1"],
        &["layer1.0.bn1", "layer1.0.bn2"],
        &["layer2.0.conv1.weight", "layer2.0.bn2.weight"],
        &["bn1"],
    ];
    for names in cases {
        for mode in MODES {
            let policy = FreezePolicy::Named(names.iter().map(ToString::to_string).collect());
            let open: BTreeSet<String> = all.difference(&frozen_by(names)).cloned().collect();
            check(&backbone, &data, policy, mode, &Expected::new(&backbone, &open, mode));
        }
    }
    // Naming one statistic of a norm freezes the other too.
    let policy = FreezePolicy::Named(vec!["layer2.0.bn1.running_mean".into()]);
    let open = all.iter().filter(|n| !n.starts_with("layer2.0.bn1.running")).cloned().collect();
    check(&backbone, &data, policy, BatchNormMode::Train, &Expected::new(&backbone, &open, BatchNormMode::Train));
    let wrong = start_error(&backbone, &data, FreezePolicy::Named(vec!["layer2.7".into()]));
    assert!(matches!(wrong, Error::UnknownBlock { name, .. } if name == "layer2.7"));
    // An unknown name, of the backbone or the head, is refused with the nearest known names.
    for (name, near) in
        [("layer2.0.conv3.weight", "layer2.0.conv2.weight"), ("linear.weigth", "linear.weight"), ("conv", "conv1")]
    {
        let wrong = start_error(&backbone, &data, FreezePolicy::Named(vec![name.into()]));
        assert!(wrong.to_string().contains(near), "{wrong}");
        assert!(matches!(wrong, Error::UnknownBlock { name: found, .. } if found == name));
    }
}

fn start_error(backbone: &Backbone, data: &TensorDataset, freeze: FreezePolicy) -> Error {
    let phase = Phase::new(1, Optimizer::sgd(0.1)).freeze(freeze);
    FineTuner::new(backbone.clone()).plan(plan(vec![phase], 4)).session(data).err().unwrap()
}

#[test]
fn policies_that_count_or_name_blocks_agree() {
    let (backbone, data, _dir) = small();
    let learning = |freeze: FreezePolicy| {
        let mut session = start(&backbone, &data, freeze, BatchNormMode::Train);
        next(&mut session).unwrap();
        session.parameters().unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(learning(FreezePolicy::First(4)), learning(FreezePolicy::UpTo("layer1".into())));
    assert_eq!(learning(FreezePolicy::First(4)), learning(FreezePolicy::AllBut(6)));
    assert_eq!(learning(FreezePolicy::Backbone), learning(FreezePolicy::First(10)));
    assert_eq!(learning(FreezePolicy::Nothing), learning(FreezePolicy::AllBut(10)));
    assert_eq!(learning(FreezePolicy::Backbone), ["linear.bias", "linear.weight"]);
    assert!(matches!(start_error(&backbone, &data, FreezePolicy::First(11)), Error::Invalid { .. }));
    assert!(matches!(start_error(&backbone, &data, FreezePolicy::UpTo("layer".into())), Error::UnknownBlock { .. }));
}

#[test]
fn a_frozen_backbone_leaves_no_graph() {
    let (backbone, data, _dir) = small();
    assert!(!backbone.forward(&images(1, 3, 32, 1)).unwrap().track_op());
    // The gradient store shows the graph of the logits: with a frozen backbone, the head's few nodes and no others.
    let count = |freeze: FreezePolicy| {
        let phase = Phase::new(1, Optimizer::sgd(0.1)).freeze(freeze);
        let tuner = FineTuner::new(backbone.clone()).plan(plan(vec![phase], 4)).cache(&FeatureCache::off());
        let mut session = tuner.session(&data).unwrap();
        let batch = next(&mut session).unwrap().unwrap();
        let loss = session.forward(&batch).unwrap().sum_all().unwrap();
        let store = loss.backward().unwrap();
        store.get_ids().count()
    };
    let (none, one, all) =
        (count(FreezePolicy::Backbone), count(FreezePolicy::AllBut(1)), count(FreezePolicy::Nothing));
    assert!(none < one && one < all, "{none} {one} {all}");
    assert!(none <= 8, "the head's own nodes alone, and there are {none}");
}

#[test]
fn a_cut_through_phases_keeps_what_each_froze() {
    let (backbone, data, _dir) = small();
    let optimizer = Optimizer::adamw(1e-2).weight_decay(0.0);
    let phase = |freeze, batch_norm| Phase::new(1, optimizer).freeze(freeze).batch_norm(batch_norm);
    let phases = vec![
        phase(FreezePolicy::Nothing, BatchNormMode::Train),
        phase(FreezePolicy::Backbone, BatchNormMode::Train),
        phase(FreezePolicy::First(5), BatchNormMode::Train),
    ];
    let mut session = FineTuner::new(backbone.clone()).plan(plan(phases, 4)).session(&data).unwrap();
    let mut states: Vec<Bits> = vec![all_bits(&session.tensors().unwrap())];
    while let Some(batch) = next(&mut session).unwrap() {
        session.step(&batch).unwrap();
        states.push(all_bits(&session.tensors().unwrap()));
    }
    let counts: Vec<usize> = states.windows(2).map(|pair| differing(&pair[0], &pair[1]).len()).collect();
    assert_eq!(counts[0], states[0].len());
    assert_eq!(differing(&states[1], &states[2]), ["linear.bias", "linear.weight"]);
    let third = differing(&states[2], &states[3]);
    assert!(third.iter().all(|n| ["layer2.1", "layer2.2", "layer3", "linear"].iter().any(|p| n.starts_with(p))));
    assert!(third.contains(&"layer2.1.bn1.running_var".to_string()));
    assert_eq!(differing(&states[0], &with_head(&all_bits(backbone.tensors()), &states[0])), [""; 0]);
}

/// A backbone's tensors and the head's from a session, to compare with the session's.
fn with_head(backbone: &Bits, state: &Bits) -> Bits {
    let mut all = state.clone();
    all.extend(backbone.clone());
    all
}
