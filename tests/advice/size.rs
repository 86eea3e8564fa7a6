//! What the advisor says of the number of images: the learning curve, and classes of unequal size.

use super::backbone;
use candle_finetune::candle_core::{Device, Tensor};
use candle_finetune::{Advisor, CurvePoint, TensorDataset};

/// As many images of each class: a wave of the class's own frequency and noise, which more images average out.
fn noisy(sizes: &[usize]) -> TensorDataset {
    let labels: Vec<u32> = sizes.iter().zip(0..).flat_map(|(&size, class)| vec![class; size]).collect();
    let pixel = |sample: usize, class: u32, i: usize| {
        let noise = (((sample * 3072 + i) * 7_919 % 10_007) as f32 / 5_000.0 - 1.0) * 3.0;
        ((i % 32) as f32 * (0.3 + 0.12 * class as f32)).sin() + noise
    };
    let values: Vec<f32> = labels
        .iter()
        .enumerate()
        .flat_map(|(sample, &class)| (0..3072).map(move |i| pixel(sample, class, i)))
        .collect();
    let images = Tensor::from_vec(values, (labels.len(), 3, 32, 32), &Device::Cpu).unwrap();
    TensorDataset::new(images, labels, (0..sizes.len()).map(|class| format!("class {class}")).collect()).unwrap()
}

#[test]
fn the_learning_curve_has_a_quarter_half_and_all_of_the_images() {
    let advice = Advisor::new(&backbone()).advise(&noisy(&[40, 40, 40])).unwrap();
    let curve = &advice.evidence.learning_curve;
    assert_eq!(curve.iter().map(|point: &CurvePoint| point.samples).collect::<Vec<_>>(), [30, 60, 120]);
    assert_eq!(curve[2].top1, advice.evidence.together.as_ref().unwrap().ridge);
    assert_eq!(advice.evidence.gain(), Some(curve[2].top1 - curve[1].top1));
    let text = advice.to_string();
    assert!(text.contains("by the number of images") && text.contains("with 60"), "{text}");
    // A quarter of 20 has five of each class, of 12 three: too few to tell.
    let samples = |sizes: &[usize]| -> Vec<usize> {
        let advice = Advisor::new(&backbone()).advise(&noisy(sizes)).unwrap();
        advice.evidence.learning_curve.iter().map(|point| point.samples).collect()
    };
    assert_eq!(samples(&[20, 20]), [10, 20, 40]);
    assert_eq!(samples(&[12, 12]), [12, 24]);
    assert_eq!(samples(&[4, 4]), [8]);
}

#[test]
fn unbalanced_classes_are_said() {
    let warned = |sizes: &[usize]| {
        let advice = Advisor::new(&backbone()).advise(&noisy(sizes)).unwrap();
        advice.warnings.iter().any(|warning| warning.contains("unbalanced"))
    };
    assert!(warned(&[60, 5]) && !warned(&[40, 5]));
}
