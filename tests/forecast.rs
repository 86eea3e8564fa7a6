//! A step's memory: the forecast against the measurement.

use candle_finetune::candle_core::{DType, Device, Tensor};
use candle_finetune::{
    Arch, Backbone, BatchNormMode, FeatureCache, FineTuner, FreezePolicy, Head, Optimizer, Phase, Plan, TensorDataset,
};

/// Tells a child process what to measure.
const CASE: &str = "CANDLE_FINETUNE_FORECAST_CASE";

fn plan(freeze: FreezePolicy, optimizer: Optimizer, batch_size: usize) -> Plan {
    let norms = if freeze == FreezePolicy::Nothing { BatchNormMode::Train } else { BatchNormMode::FrozenStats };
    Plan::new(vec![Phase::new(1, optimizer).freeze(freeze).batch_norm(norms)]).batch_size(batch_size)
}

#[test]
fn a_forecast_follows_what_learns() {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
    let sgd = Optimizer::sgd(0.1);
    let of = |plan: Plan| plan.forecast(&backbone, Head::linear(), 10).unwrap();
    let all = of(plan(FreezePolicy::Nothing, sgd, 16));
    let half = of(plan(FreezePolicy::First(5), sgd, 16));
    let head = of(plan(FreezePolicy::Backbone, sgd, 16));
    assert!(all.step > half.step && half.step > head.step, "{all:?} {half:?} {head:?}");
    assert_eq!((all.weights, all.moments), (head.weights, 0));
    let numbers: usize = backbone.tensors().values().map(Tensor::elem_count).sum::<usize>() + 64 * 10 + 10;
    assert_eq!(all.weights, 4 * numbers);
    let learning = backbone.blocks().iter().map(|b| b.parameters).sum::<usize>() + 64 * 10 + 10;
    let (momentum, adamw) = (sgd.momentum(0.9), Optimizer::adamw(1e-3));
    assert_eq!(of(plan(FreezePolicy::Nothing, momentum, 16)).moments, 4 * learning);
    assert_eq!(of(plan(FreezePolicy::Backbone, adamw, 16)).moments, 8 * (64 * 10 + 10));
    let phase = |freeze| plan(freeze, sgd, 16).phases.remove(0);
    let two = Plan::new(vec![phase(FreezePolicy::Backbone), phase(FreezePolicy::Nothing)]);
    assert_eq!(of(two.batch_size(16)), all, "the phase that needs most");
    assert!(plan(FreezePolicy::First(99), sgd, 16).forecast(&backbone, Head::linear(), 10).is_err());
    for head in [Head::original(), Head::mlp(0), Head::linear().dropout(1.5)] {
        let error = plan(FreezePolicy::Nothing, sgd, 16).forecast(&backbone, head, 10).unwrap_err().to_string();
        assert!(error.contains("head"), "{error}");
    }
    for huge in [1 << 24, usize::MAX / 2] {
        let error = plan(FreezePolicy::Nothing, sgd, huge).forecast(&backbone, Head::linear(), 10).unwrap_err();
        assert!(error.to_string().contains("batch_size"), "{error}");
    }
    assert!(all.to_string().contains(" MB: weights "), "{all}");
}

/// One architecture of each family: the dry run covers their layers.
#[test]
fn every_family_has_a_forecast() {
    for arch in
        [Arch::RESNET18, Arch::CIFAR_RESNET20, Arch::VGG11_FEATURES, Arch::EFFICIENTNET_B0, Arch::TF_EFFICIENTNET_LITE0]
    {
        let backbone = Backbone::random(arch, 1, &Device::Cpu).unwrap().for_input_size(64, 64).unwrap();
        for head in [Head::linear(), Head::mlp(32)] {
            let forecast = plan(FreezePolicy::Nothing, Optimizer::sgd(0.1), 2).forecast(&backbone, head, 5).unwrap();
            assert!(forecast.step.unwrap() > 2 * 3 * 64 * 64 * 4, "{arch}: {forecast}");
        }
    }
}

/// Runs in a separate process, where nothing else allocates: prints the memory of two steps and the forecast.
#[test]
fn child() {
    let Ok(case) = std::env::var(CASE) else { return };
    let [arch, freeze, batch, size] = case.split(' ').collect::<Vec<_>>()[..] else { panic!("{case}") };
    let (batch, size): (usize, usize) = (batch.parse().unwrap(), size.parse().unwrap());
    let freeze = if freeze == "0" { FreezePolicy::Nothing } else { FreezePolicy::First(freeze.parse().unwrap()) };
    let before = memory("VmRSS:");
    let mut backbone = Backbone::random(arch.parse::<Arch>().unwrap(), 1, &Device::Cpu).unwrap();
    backbone = backbone.for_input_size(size, size).unwrap();
    let plan = plan(freeze, Optimizer::sgd(1e-3).momentum(0.9), batch);
    let forecast = plan.forecast(&backbone, Head::linear(), 10).unwrap();
    let images = Tensor::zeros((batch, 3, size, size), DType::F32, &Device::Cpu).unwrap();
    let images = (images + 0.5).unwrap();
    let labels = (0..batch as u32).map(|i| i % 10).collect();
    let data = TensorDataset::new(images, labels, (0..10).map(|i| i.to_string()).collect()).unwrap();
    let mut session =
        FineTuner::new(backbone).plan(plan).cache(&FeatureCache::off()).workers(0).session(&data).unwrap();
    let batch = crate::support::next(&mut session).unwrap().unwrap();
    for _ in 0..2 {
        session.step(&batch).unwrap();
    }
    println!("\ntook {} forecast {}", memory("VmHWM:") - before, forecast.total().unwrap());
}

/// Bytes of this process, from Linux.
fn memory(what: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn a_step_takes_what_was_forecast() {
    for case in [
        "resnet18 0 8 128",
        "resnet18 5 16 128",
        "tf_efficientnet_lite0 0 8 160",
        "efficientnet_b0 0 8 128",
        "vgg11_bn_features 0 4 96",
        "cifar_resnet20 0 128 32",
        "resnet50 12 4 96",
    ] {
        let exe = std::env::current_exe().unwrap();
        let arguments = ["--exact", "forecast::child", "--nocapture", "--test-threads", "1"];
        let output = std::process::Command::new(exe).args(arguments).env(CASE, case).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|line| line.strip_prefix("took ")).expect(&text);
        let (took, forecast) = line.split_once(" forecast ").unwrap();
        let (took, forecast): (f64, f64) = (took.parse().unwrap(), forecast.parse().unwrap());
        let ratio = forecast / took;
        println!("{case}: forecast {:.0} MB, {ratio:.3} of what it took", forecast / 1e6);
        assert!((0.85..1.15).contains(&ratio), "{case}: took {took:e}, forecast {forecast:e}");
    }
}
