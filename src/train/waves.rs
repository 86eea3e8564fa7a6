//! Images for tests of training.

use crate::TensorDataset;
use candle_core::{Device, Tensor};

/// Images of 32 pixels in turn of each class, which is told by the frequency of a wave: 0.2, 0.5, 0.8 ... per pixel.
pub(super) fn waves(samples: usize, classes: usize) -> TensorDataset {
    let value = |i: usize| {
        let (sample, pixel) = (i / 3072, i % 3072);
        ((pixel % 32) as f32 * (0.2 + 0.3 * (sample % classes) as f32) + (sample * 37 % 41) as f32).sin()
    };
    let values: Vec<f32> = (0..samples * 3072).map(value).collect();
    let images = Tensor::from_vec(values, (samples, 3, 32, 32), &Device::Cpu).unwrap();
    let labels = (0..samples).map(|i| (i % classes) as u32).collect();
    TensorDataset::new(images, labels, (0..classes).map(|class| format!("class {class}")).collect()).unwrap()
}
