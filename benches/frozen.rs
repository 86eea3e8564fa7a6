//! The forward pass of a frozen backbone: the cost of evaluation, prediction and frozen features.

use candle_finetune::candle_core::Device;
use candle_finetune::{Arch, Backbone, bench::wave};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Architecture and pixels.
const CASES: [(Arch, usize); 5] = [
    (Arch::CIFAR_RESNET20, 32),
    (Arch::RESNET18, 128),
    (Arch::RESNET50, 128),
    (Arch::TF_EFFICIENTNET_LITE0, 128),
    (Arch::VGG11_BN_FEATURES, 128),
];

fn forward(c: &mut Criterion) {
    for (arch, size) in CASES {
        let backbone = Backbone::random(arch, 1, &Device::Cpu).unwrap();
        let mut group = c.benchmark_group(format!("frozen forward, {arch} at {size}"));
        for batch in [1, 8] {
            let images = wave(&[batch, 3, size, size]).unwrap().as_detached_tensor();
            group.throughput(Throughput::Elements(batch as u64));
            let id = BenchmarkId::new("batch", batch);
            group.bench_with_input(id, &images, |b, images| b.iter(|| backbone.forward(images).unwrap()));
        }
        group.finish();
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = settings(); targets = forward }
criterion_main!(benches);
