//! One training step (forward, backward and update) with an increasing part of the backbone frozen.
//!
//! "kept" starts from cached features of the frozen blocks; "anew" computes the features in the step.

use candle_finetune::candle_core::Device;
use candle_finetune::{
    Arch, Backbone, Batch, FeatureCache, FineTuner, FreezePolicy, Optimizer, Phase, Plan, Result, Session,
    TensorDataset, bench::wave,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Architecture, pixels, batch.
const CASES: [(Arch, usize, usize); 3] =
    [(Arch::CIFAR_RESNET20, 32, 32), (Arch::RESNET18, 96, 8), (Arch::TF_EFFICIENTNET_LITE0, 96, 8)];

/// A session, and a batch for repeated steps.
fn start(backbone: &Backbone, size: usize, batch: usize, freeze: FreezePolicy, kept: bool) -> Result<(Session, Batch)> {
    let images = wave(&[batch, 3, size, size])?.as_detached_tensor();
    let labels = (0..batch as u32).map(|i| i % 10).collect();
    let data = TensorDataset::new(images, labels, (0..10).map(|i| i.to_string()).collect())?;
    let mut phase = Phase::new(1, Optimizer::adamw(1e-4));
    phase.freeze = freeze;
    let mut plan = Plan::new(vec![phase]);
    plan.batch_size = batch;
    let mut tuner = FineTuner::new(backbone.clone()).plan(plan).workers(0);
    if !kept {
        tuner = tuner.cache(&FeatureCache::off());
    }
    let mut session = tuner.session(&data)?;
    session.next_phase()?;
    session.next_epoch()?;
    let batch = session.next_batch()?.ok_or_else(|| candle_finetune::candle_core::Error::msg("no batch"))?;
    session.step(&batch)?; // the first step includes the audit
    Ok((session, batch))
}

fn steps(c: &mut Criterion) {
    for (arch, size, batch) in CASES {
        let backbone = Backbone::random(arch, 1, &Device::Cpu).unwrap();
        let half = FreezePolicy::First(backbone.blocks().len() / 2);
        let modes = [
            ("everything learns", FreezePolicy::Nothing, false),
            ("half frozen, anew", half.clone(), false),
            ("half frozen, kept", half, true),
            ("head only, anew", FreezePolicy::Backbone, false),
            ("head only, kept", FreezePolicy::Backbone, true),
        ];
        let mut group = c.benchmark_group(format!("step, {arch} at {size}, batch {batch}"));
        group.throughput(Throughput::Elements(batch as u64));
        for (name, freeze, kept) in modes {
            let (mut session, batch) = start(&backbone, size, batch, freeze, kept).unwrap();
            group.bench_function(name, |b| b.iter(|| session.step(&batch).unwrap()));
        }
        group.finish();
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = settings(); targets = steps }
criterion_main!(benches);
