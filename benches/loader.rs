//! From images in memory to batches: resizing, augmentation, normalisation, on an increasing number of threads.
//!
//! Decoding is not included, so that the times are this crate's own. The images have the usual size of photos in
//! datasets for classification.

use candle_finetune::candle_core::Device;
use candle_finetune::{Augment, Dataset, Image, InputSpec, Loader, Result, Transform, VecDataset};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

const COUNT: usize = 16;
const HEIGHT: usize = 375;
const WIDTH: usize = 500;

fn photos() -> Result<VecDataset> {
    let photo = |k: usize| {
        let bytes = (0..HEIGHT * WIDTH * 3).map(|i| ((i * 31 + i / 1500 * 17 + k * 97) % 251) as u8).collect();
        Ok((Image::from_rgb8(WIDTH, HEIGHT, bytes)?, 0))
    };
    VecDataset::new((0..COUNT).map(photo).collect::<Result<_>>()?, vec!["photo".into()])
}

/// Takes all batches of an epoch and returns the number of samples.
fn drain(loader: &Loader, epoch: u64) -> Result<usize> {
    let mut samples = 0;
    for batch in loader.batches((0..COUNT).collect(), epoch, &Device::Cpu)? {
        samples += batch?.len();
    }
    Ok(samples)
}

fn batches(c: &mut Criterion) {
    let data = photos().unwrap();
    assert_eq!(data.len(), COUNT);
    let spec = InputSpec::new(224);
    let augments = [
        ("none", Augment::none()),
        ("light", Augment::light()),
        ("standard", Augment::standard()),
        ("strong", Augment::strong()),
    ];
    for (name, augment) in augments {
        let transform = Transform::train(&spec, &augment).unwrap();
        let mut group = c.benchmark_group(format!("loader, {WIDTH} x {HEIGHT} to 224, augment {name}"));
        group.throughput(Throughput::Elements(COUNT as u64));
        for workers in [0, 1, 2, 4] {
            let loader = Loader::new(&data, transform.clone()).batch_size(8).workers(workers);
            let mut epoch = 0;
            group.bench_function(BenchmarkId::new("threads", workers), |b| {
                b.iter(|| {
                    epoch += 1;
                    drain(&loader, epoch).unwrap()
                });
            });
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

criterion_group! { name = benches; config = settings(); targets = batches }
criterion_main!(benches);
