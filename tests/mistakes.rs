//! The most confident mistakes, against predictions image by image.

use crate::support::{CPU, class_names, numbers};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    Dataset, Error, Image, Predictor, Result, Sample, SampleInfo, Source, Subset, Target, TensorDataset, VecDataset,
};
use std::cmp::Reverse;

fn predictor() -> Predictor {
    Predictor::load(Source::embedded(), &CPU).unwrap()
}

/// Noise of 70 images, more than two batches; the last 20 are the first 20 once more, with the same labels.
fn data(predictor: &Predictor) -> VecDataset {
    let image = |i: usize| {
        let bytes = numbers(32 * 32 * 3, i as u64).iter().map(|v| (128.0 + 100.0 * v) as u8).collect();
        Image::new(32, 32, 3, bytes).unwrap()
    };
    let samples = (0..70).map(|i| (image(i % 50), (i % 50 % 10) as u32)).collect();
    VecDataset::new(samples, predictor.labels().to_vec()).unwrap()
}

fn class_of(data: &impl Dataset, i: usize) -> u32 {
    match data.info(i).target {
        Target::Class(class) => class,
        other => panic!("{other:?}"),
    }
}

#[test]
fn mistakes_are_the_wrong_predictions_by_probability_then_index() {
    let predictor = predictor();
    let data = data(&predictor);
    let mut expected = vec![];
    for i in 0..70 {
        let Sample::Image(image) = data.sample(i).unwrap() else { panic!("no image") };
        let prediction = predictor.predict(&image).unwrap();
        let truth = class_of(&data, i);
        if prediction.class != truth {
            expected.push((i, truth, prediction));
        }
    }
    let found = predictor.mistakes(&data, usize::MAX).unwrap();
    let evaluation = predictor.evaluate(&data).unwrap();
    assert!(found.len() > 40 && found.len() == evaluation.total - evaluation.correct);
    assert_eq!(found.len(), expected.len());
    assert!(found.is_sorted_by_key(|m| (Reverse(m.probability.to_bits()), m.index)), "ties by index");
    assert!(found.windows(2).any(|pair| pair[0].probability == pair[1].probability), "there are ties");
    for mistake in &found {
        let (_, truth, prediction) = expected.iter().find(|(i, ..)| *i == mistake.index).unwrap();
        assert_eq!((&mistake.truth, &mistake.predicted), (&vec![*truth], &prediction.classes));
        assert_eq!(mistake.wrong, prediction.class);
        assert_eq!(mistake.name, format!("sample {}", mistake.index));
        assert!((mistake.probability - prediction.probability).abs() < 1e-5);
        assert!((mistake.of_truth - prediction.probabilities[*truth as usize]).abs() < 1e-5);
    }
    // Fewer are the first ones.
    for most in [0, 1, 33] {
        assert_eq!(predictor.mistakes(&data, most).unwrap(), found[..most]);
    }
    let json = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(json["name"], found[0].name.as_str());
}

/// Of a part of a dataset the index is that in the part, and the name that of the whole.
#[test]
fn a_part_has_its_own_indices() {
    let predictor = predictor();
    let data = data(&predictor);
    let all = predictor.mistakes(&data, usize::MAX).unwrap();
    let part = predictor.mistakes(&Subset::new(&data, (30..50).collect()).unwrap(), usize::MAX).unwrap();
    assert!(!part.is_empty());
    for mistake in part {
        let whole = all.iter().find(|m| m.index == mistake.index + 30).unwrap();
        assert_eq!((&mistake.name, &mistake.predicted), (&whole.name, &whole.predicted));
    }
}

/// Three images of which one is NaN.
#[derive(Clone)]
struct Broken(Vec<String>);

impl Dataset for Broken {
    fn len(&self) -> usize {
        3
    }
    fn classes(&self) -> &[String] {
        &self.0
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, Target::Class(0)).name(format!("photo {i}"))
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        let value = if i == 1 { f32::NAN } else { 0.5 };
        Ok(Sample::Tensor(Tensor::full(value, (3, 32, 32), &CPU)?))
    }
}

#[test]
fn samples_without_a_prediction_are_an_error_with_their_name() {
    let predictor = predictor();
    let error = predictor.mistakes(&Broken(predictor.labels().to_vec()), 5).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }) && error.to_string().contains("photo 1"), "{error}");
}

#[test]
fn data_that_has_no_mistakes_to_find_is_refused() {
    let predictor = predictor();
    let images = Tensor::zeros((2, 3, 32, 32), candle_finetune::candle_core::DType::F32, &CPU).unwrap();
    let labels = vec![Target::Labels(vec![0, 3]), Target::Labels(vec![])];
    let many = TensorDataset::from_targets(images.clone(), labels, predictor.labels().to_vec()).unwrap();
    let error = predictor.mistakes(&many, 5).unwrap_err().to_string();
    assert!(error.contains("lists of labels") && error.contains("one class per sample"), "{error}");
    let other = TensorDataset::new(images, vec![0, 1], class_names(10)).unwrap();
    assert!(matches!(predictor.mistakes(&other, 5), Err(Error::Invalid { .. })));
}

/// A soft target's class is its most probable one.
#[test]
fn soft_targets_have_the_class_of_their_largest_probability() {
    let predictor = predictor();
    let images = Tensor::zeros((2, 3, 32, 32), candle_finetune::candle_core::DType::F32, &CPU).unwrap();
    let predicted = predictor.logits(&images).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap()[0];
    let soft = |class: u32| Target::Soft((0..10).map(|c| if c == class { 0.55 } else { 0.05 }).collect());
    let other = (predicted + 1) % 10;
    let data =
        TensorDataset::from_targets(images, vec![soft(predicted), soft(other)], predictor.labels().to_vec()).unwrap();
    let found = predictor.mistakes(&data, 5).unwrap();
    assert_eq!(
        found.iter().map(|m| (m.index, m.truth[0], m.predicted[0])).collect::<Vec<_>>(),
        [(1, other, predicted)]
    );
}
