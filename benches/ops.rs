//! Single operations: frozen and learning convolutions and the loss, compared with Candle's own, and the max-pool.
//!
//! The shapes are those of a ResNet and of an EfficientNet with a small batch. Candle computes the convolution alone;
//! ours includes the norm and ReLU.

use candle_finetune::bench::{ConvCase, max_pool, wave};
use candle_finetune::candle_core::{Device, Tensor};
use candle_finetune::{Loss, Result, Targets};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Name, pixels, channels in and out, and kernel, stride, groups.
type Shape = (&'static str, usize, (usize, usize), (usize, usize, usize));

const BATCH: usize = 2;
const SHAPES: [Shape; 5] = [
    ("3x3 64-64 at 56", 56, (64, 64), (3, 1, 1)),
    ("3x3 256-256 at 14", 14, (256, 256), (3, 1, 1)),
    ("1x1 64-256 at 56", 56, (64, 256), (1, 1, 1)),
    ("7x7/2 3-64 at 224", 224, (3, 64), (7, 2, 1)),
    ("depthwise 3x3 144 at 56", 56, (144, 144), (3, 1, 144)),
];

/// Candle's convolution of the same images and weights.
fn candle(case: &ConvCase, learning: bool) -> Result<()> {
    let (images, weight, padding, stride, groups) = case.parts();
    if !learning {
        images.as_detached_tensor().conv2d(&weight.as_detached_tensor(), padding, stride, 1, groups)?;
        return Ok(());
    }
    images.conv2d(weight, padding, stride, 1, groups)?.mean_all()?.backward()?;
    Ok(())
}

fn convolutions(c: &mut Criterion) {
    for (name, size, channels, geometry) in SHAPES {
        let case = ConvCase::new(BATCH, size, channels, geometry).unwrap();
        let frozen = case.frozen().unwrap();
        let depthwise = geometry.2 > 1;

        let mut group = c.benchmark_group(format!("conv frozen, {name}"));
        group.throughput(Throughput::Elements(case.flops()));
        group.bench_function("ours", |b| b.iter(|| frozen.forward().unwrap()));
        if !depthwise {
            group.bench_function("candle", |b| b.iter(|| candle(&case, false).unwrap()));
        }
        group.finish();

        let mut group = c.benchmark_group(format!("conv learning, {name}"));
        group.throughput(Throughput::Elements(3 * case.flops()));
        group.bench_function("ours", |b| b.iter(|| case.learning().unwrap()));
        if !depthwise {
            group.bench_function("candle", |b| b.iter(|| candle(&case, true).unwrap()));
        }
        group.finish();
    }
}

fn pools(c: &mut Criterion) {
    let images = wave(&[BATCH, 64, 112, 112]).unwrap();
    let mut group = c.benchmark_group("max-pool 3x3/2, 64 at 112, forward and backward");
    group.throughput(Throughput::Elements(images.elem_count() as u64));
    group.bench_function("ours", |b| b.iter(|| max_pool(&images).unwrap()));
    group.finish();
}

fn losses(c: &mut Criterion) {
    const CLASSES: usize = 1000;
    let labels: Vec<u32> = (0..256).map(|i| i * 3 % CLASSES as u32).collect();
    let logits = wave(&[labels.len(), CLASSES]).unwrap();
    let targets = Targets::Classes(labels.clone());
    let labels = Tensor::new(labels, &Device::Cpu).unwrap();
    let mut group = c.benchmark_group("cross entropy of 256 x 1000, forward and backward");
    group.throughput(Throughput::Elements(logits.elem_count() as u64));
    group.bench_function("ours", |b| {
        b.iter(|| Loss::cross_entropy().forward(&logits, &targets).unwrap().backward().unwrap());
    });
    group.bench_function("candle", |b| {
        b.iter(|| candle_nn::loss::cross_entropy(&logits, &labels).unwrap().backward().unwrap());
    });
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = settings(); targets = convolutions, pools, losses }
criterion_main!(benches);
