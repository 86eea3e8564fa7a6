//! Counts of operations against those of papers, and against each other.

use super::*;
use crate::{Arch, Augment, BatchNormMode, FreezePolicy, Optimizer};
use candle_core::Device;

fn backbone(arch: Arch) -> Backbone {
    Backbone::random(arch, 1, &Device::Cpu).unwrap()
}

fn phase(freeze: FreezePolicy) -> Phase {
    let norms = if freeze == FreezePolicy::Nothing { BatchNormMode::Train } else { BatchNormMode::FrozenStats };
    Phase::new(1, Optimizer::adamw(1e-3)).freeze(freeze).batch_norm(norms)
}

/// With a linear head of 1000 classes.
fn image(backbone: &Backbone, freeze: FreezePolicy) -> ImageWork {
    ImageWork::of(&phase(freeze), backbone, Head::linear(), 1000).unwrap().unwrap()
}

/// In units of 10^9, at the network's own size. The figures are torchvision's (`_ops` of its weights), of VGG less its
/// three fully connected layers plus the head here. EfficientNet-Lite0 is B0 without squeeze and excitation, which takes
/// less than 1 %; the 407 M that its authors give count norms and activations as well. CIFAR's ResNet-20 takes 41 M,
/// as its layers add up to.
#[test]
fn forward_passes_take_the_published_multiply_adds() {
    let connected = f64::from(25_088 * 4_096 + 4_096 * 4_096 + 4_096 * 1_000 - 512 * 1_000) / 1e9;
    for (arch, expected) in [
        (Arch::RESNET18, 1.814),
        (Arch::RESNET34, 3.664),
        (Arch::RESNET50, 4.089),
        (Arch::RESNEXT50_32X4D, 4.230),
        (Arch::WIDE_RESNET50_2, 11.398),
        (Arch::VGG11_BN_FEATURES, 7.609 - connected),
        (Arch::VGG16_FEATURES, 15.470 - connected),
        (Arch::EFFICIENTNET_B0, 0.386),
        (Arch::TF_EFFICIENTNET_LITE0, 0.386),
        (Arch::CIFAR_RESNET20, 0.041),
    ] {
        let counted = image(&backbone(arch), FreezePolicy::Nothing).forward() as f64 / 1e9;
        assert!((counted / expected - 1.0).abs() < 0.02, "{arch}: {counted} is not {expected}");
    }
}

/// The first convolution, over `size` x `size` results: its input has no gradient.
fn stem(size: u64, kernel: u64, outputs: u64) -> u64 {
    size * size * kernel * kernel * 3 * outputs
}

#[test]
fn backward_passes_take_what_the_gradients_and_recomputed_layers_take() {
    let resnet = backbone(Arch::RESNET18);
    let all = image(&resnet, FreezePolicy::Nothing);
    assert_eq!((all.prefix, all.backward), (0, 2 * all.forward() - stem(112, 7, 64)));
    // Its first convolution has few terms, and is computed again for the norm and for the next convolution.
    let cifar = image(&backbone(Arch::CIFAR_RESNET20), FreezePolicy::Nothing);
    assert_eq!(cifar.backward, 2 * cifar.forward() + stem(32, 3, 16));
    for arch in [Arch::TF_EFFICIENTNET_LITE0, Arch::EFFICIENTNET_B0, Arch::VGG11_FEATURES] {
        let all = image(&backbone(arch).for_input_size(96, 96).unwrap(), FreezePolicy::Nothing);
        let ratio = all.backward as f64 / all.forward() as f64;
        assert!((1.9..2.4).contains(&ratio), "{arch}: {ratio}");
    }
}

#[test]
fn frozen_blocks_cost_their_forward_pass_alone() {
    for arch in [Arch::RESNET18, Arch::TF_EFFICIENTNET_LITE0] {
        let backbone = backbone(arch);
        let blocks = backbone.blocks().len();
        let counts: Vec<ImageWork> = (0..=blocks).map(|k| image(&backbone, FreezePolicy::First(k))).collect();
        let all = counts[0].forward();
        for pair in counts.windows(2) {
            assert_eq!(pair[1].forward(), all);
            assert!(pair[1].prefix > pair[0].prefix && pair[1].backward < pair[0].backward, "{pair:?}");
            // No gradient of the first trained block's input, and none of anything before it.
            let suffix = pair[1].suffix;
            assert!(pair[1].backward < 5 * suffix / 2, "{arch}: {pair:?}");
        }
        // The gradient of the head's matrix, and none of its input.
        let head = backbone.feature_dim() as u64 * 1000;
        assert_eq!((counts[blocks].suffix, counts[blocks].backward), (head, head));
        assert_eq!(counts[blocks].bytes, 4 * backbone.feature_dim());
    }
    let map = image(&backbone(Arch::RESNET18), FreezePolicy::UpTo("layer1".into()));
    assert_eq!((map.frozen_blocks, map.bytes), (3, 4 * 64 * 56 * 56));
}

#[test]
fn a_forecast_has_the_multiply_adds_of_an_image() {
    let backbone = backbone(Arch::CIFAR_RESNET20);
    let of = |freeze, batch| {
        let plan = Plan::new(vec![phase(freeze)]).batch_size(batch);
        plan.forecast(&backbone, Head::linear(), 1000).unwrap().multiply_adds.unwrap()
    };
    for freeze in [FreezePolicy::Nothing, FreezePolicy::First(4), FreezePolicy::Backbone] {
        let image = image(&backbone, freeze.clone());
        let expected = MultiplyAdds { forward: image.forward(), backward: image.backward };
        assert_eq!((of(freeze.clone(), 2), of(freeze, 24)), (expected, expected));
    }
}

/// 100 training and 15 validation samples, in batches of 32, of which the last single one joins another.
fn work(plan: Plan, cache: usize) -> Work {
    let load = Workload { train: 97, valid: 15, cache };
    plan.batch_size(32).work(&backbone(Arch::CIFAR_RESNET20), Head::linear(), 1000, &load).unwrap().unwrap()
}

#[test]
fn frozen_blocks_run_once_per_sample_if_their_features_are_cached() {
    let backbone = backbone(Arch::CIFAR_RESNET20);
    let plan = |freeze| Plan::new(vec![phase(freeze).epochs(5)]);
    let random = |freeze| plan(freeze).augment(Augment::none().pad_crop(2));
    let half = || FreezePolicy::First(4);
    let one = image(&backbone, half());
    let room = usize::MAX;
    // How often the frozen blocks see an image.
    let passes = |work: &Work| {
        let rest = work.inference - 5 * 15 * one.suffix;
        assert_eq!(rest % one.prefix, 0);
        assert_eq!((work.training, work.steps), (5 * 97 * one.training(), 5 * 3));
        assert_eq!(work.updates, 5 * 3 * one.learning as u64);
        (rest / one.prefix, work.images)
    };
    for (plan, cache, expected) in [
        (plan(half()), room, 97 + 15),
        // A new view in each epoch; validation images stay the same.
        (random(half()), room, 5 * 97 + 15),
        (random(half()).views(2), room, 2 * 97 + 15),
        (plan(half()), 0, 5 * (97 + 15)),
        // Room for the validation images alone, for the training images alone, and for both.
        (plan(half()), 97 * one.bytes - 1, 5 * 97 + 15),
        (plan(half()), 97 * one.bytes, 97 + 5 * 15),
        (plan(half()), 112 * one.bytes, 97 + 15),
    ] {
        assert_eq!(passes(&work(plan, cache)), (expected, expected));
    }
    let mut phases = random(half());
    phases.phases[0].augmented = false;
    assert_eq!(passes(&work(phases, room)).0, 97 + 15);
    // Nothing is frozen: every epoch is a whole one.
    let all = image(&backbone, FreezePolicy::Nothing);
    let whole = work(plan(FreezePolicy::Nothing), room);
    assert_eq!((whole.inference, whole.images), (5 * 15 * all.forward(), 5 * 112));
    assert_eq!(whole.training, 5 * 97 * all.training());
    // Phases add up.
    let both = Plan::new(vec![phase(half()).epochs(5), phase(FreezePolicy::Nothing).epochs(5)]);
    let added = work(both, room);
    assert_eq!(added, work(plan(half()), room).plus(&whole));
    assert_eq!(added.multiply_adds(), Some(added.inference + added.training));
}

#[test]
fn endless_plans_do_not_wrap_around() {
    let plan = Plan::new(vec![phase(FreezePolicy::Nothing).epochs(usize::MAX)]);
    assert_eq!(work(plan, 0).multiply_adds(), Some(u64::MAX));
}
