//! Helpers of several tests.

use candle_finetune::candle_core::{DType, Device, Tensor, safetensors};
use candle_finetune::{
    Backbone, Batch, Dataset, Error, Image, Phase, Plan, Result, Session, TensorDataset, VecDataset,
};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

pub const CPU: Device = Device::Cpu;

/// Pseudo-random numbers in [-1, 1) from a linear congruential generator: the same on every platform.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// Noise of shape (n, channels, size, size).
pub fn images(n: usize, channels: usize, size: usize, seed: u64) -> Tensor {
    Tensor::from_vec(numbers(n * channels * size * size, seed), (n, channels, size, size), &CPU).unwrap()
}

pub fn class_names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("class {i}")).collect()
}

/// Noise whose brightness depends on the class.
pub fn tensors(n: usize, size: usize, classes: usize, seed: u64) -> TensorDataset {
    let labels: Vec<u32> = (0..n).map(|i| (i % classes) as u32).collect();
    let shift = Tensor::from_vec(labels.iter().map(|&l| l as f32 * 0.2).collect(), (n, 1, 1, 1), &CPU).unwrap();
    let images = images(n, 3, size, seed).broadcast_add(&shift).unwrap();
    TensorDataset::new(images, labels, class_names(classes)).unwrap()
}

/// The same as images that are larger than the network's input, for augmentation.
pub fn pictures(n: usize, size: usize, classes: usize, seed: u64) -> VecDataset {
    let one = |i: usize| {
        let class = i % classes;
        let values = numbers(size * size * 3, seed + i as u64);
        let bytes = values.iter().map(|v| (100.0 + v * 60.0 + class as f32 * 30.0) as u8).collect();
        (Image::new(size, size, 3, bytes).unwrap(), class as u32)
    };
    VecDataset::new((0..n).map(one).collect(), class_names(classes)).unwrap()
}

/// The bits of every element of a tensor, in order.
pub fn bits(t: &Tensor) -> Vec<u64> {
    let t = t.flatten_all().unwrap();
    match t.dtype() {
        DType::F32 => t.to_vec1::<f32>().unwrap().iter().map(|v| u64::from(v.to_bits())).collect(),
        DType::F64 => t.to_vec1::<f64>().unwrap().iter().map(|v| v.to_bits()).collect(),
        DType::I64 => t.to_vec1::<i64>().unwrap().iter().map(|&v| v as u64).collect(),
        other => panic!("{other:?}"),
    }
}

/// The bits of every tensor.
pub fn all_bits<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> BTreeMap<String, Vec<u64>> {
    tensors.into_iter().map(|(name, t)| (name.clone(), bits(t))).collect()
}

/// A checksum of each tensor that differs if one bit does: for networks that are too large to keep twice.
pub fn all_sums<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> BTreeMap<String, u64> {
    let mix = |h: u64, v: &f32| (h ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01B3);
    // Four independent sums are faster than one.
    let sum = |t: &Tensor| {
        let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (fours, rest) = values.as_chunks::<4>();
        let mut sums = [1, 2, 3, 4u64];
        for four in fours {
            sums.iter_mut().zip(four).for_each(|(sum, v)| *sum = mix(*sum, v));
        }
        rest.iter().fold(sums[0] ^ sums[1].rotate_left(16) ^ sums[2].rotate_left(32) ^ sums[3].rotate_left(48), mix)
    };
    tensors.into_iter().map(|(name, t)| (name.clone(), sum(t))).collect()
}

/// The names of tensors that differ or that one side lacks.
pub fn differing<T: PartialEq>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>) -> Vec<String> {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    a.iter().filter(|(name, bits)| b[*name] != **bits).map(|(name, _)| name.clone()).collect()
}

/// The tensors of a safetensors file, read by Candle.
pub fn read(path: &Path) -> BTreeMap<String, Tensor> {
    safetensors::load(path, &CPU).unwrap().into_iter().collect()
}

/// Writes a safetensors file, by Candle.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) {
    let tensors: HashMap<String, Tensor> = tensors.clone().into_iter().collect();
    safetensors::save(&tensors, path).unwrap();
}

/// A backbone whose norms and running statistics are not the initial ones.
pub fn worn(backbone: &Backbone, dir: &Path) -> Backbone {
    let path = dir.join(format!("{}.worn.safetensors", backbone.name()));
    let tensors: BTreeMap<String, Tensor> = backbone
        .tensors()
        .iter()
        .enumerate()
        .map(|(i, (name, t))| {
            let noise = Tensor::from_vec(numbers(t.elem_count(), i as u64), t.shape(), &CPU).unwrap();
            let t = if t.rank() == 1 { (t + (noise * 0.2).unwrap()).unwrap() } else { t.clone() };
            (name.clone(), t)
        })
        .collect();
    write(&path, &tensors);
    Backbone::from_file(backbone.arch().unwrap(), path, &CPU).unwrap()
}

/// A plan of these phases with small batches.
pub fn plan(phases: Vec<Phase>, batch_size: usize) -> Plan {
    let mut plan = Plan::new(phases);
    plan.batch_size = batch_size;
    plan
}

/// The classes' names of a dataset.
pub fn names_of(data: &impl Dataset) -> Vec<String> {
    data.classes().to_vec()
}

/// The next batch of the whole plan: where an epoch or a phase has ended, the first of the next one.
pub fn next(session: &mut Session) -> Result<Option<Batch>> {
    loop {
        match session.next_batch() {
            Ok(Some(batch)) => return Ok(Some(batch)),
            Ok(None) => {}
            // No phase or epoch has begun.
            Err(Error::Invalid { what, .. }) if what == "session" => {}
            Err(error) => return Err(error),
        }
        let begun = session.phase().is_some() && session.next_epoch()?;
        if !begun && !session.next_phase()? {
            return Ok(None);
        }
    }
}
