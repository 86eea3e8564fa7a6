use super::*;
use crate::{Augment, Image, InputSpec, SampleInfo, TensorDataset, VecDataset};
use candle_core::{DType, Tensor};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn images(n: usize) -> VecDataset {
    let image = |i: usize| {
        let (height, width) = (20 + i % 7, 20 + i % 5);
        Image::new(height, width, 3, (0..height * width * 3).map(|k| (k * 31 + i * 7) as u8).collect()).unwrap()
    };
    VecDataset::new((0..n).map(|i| (image(i), (i % 3) as u32)).collect(), ["a", "b", "c"].map(String::from).to_vec())
        .unwrap()
}

fn strong() -> Transform {
    Transform::train(&InputSpec::new(16), &Augment::strong()).unwrap()
}

/// All values, classes and indices of an epoch.
fn epoch(loader: &Loader, order: Vec<usize>, epoch: u64) -> (Vec<f32>, Vec<u32>, Vec<usize>) {
    let (mut values, mut classes, mut indices) = (Vec::new(), Vec::new(), Vec::new());
    for batch in loader.batches(order, epoch, &Device::Cpu).unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch.images().unwrap().dims(), [batch.len(), 3, 16, 16]);
        values.extend(batch.images().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap());
        classes.extend(batch.targets.classes().unwrap());
        indices.extend(batch.indices);
    }
    (values, classes, indices)
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let data = images(23);
    let order: Vec<usize> = (0..23).rev().collect();
    let run = |workers, batch_size| {
        epoch(&Loader::new(&data, strong()).workers(workers).batch_size(batch_size).seed(3), order.clone(), 1)
    };
    let expected = run(0, 4);
    assert_eq!(expected.2, order);
    assert_eq!(expected.1, order.iter().map(|i| (i % 3) as u32).collect::<Vec<_>>());
    for (workers, batch_size) in [(1, 4), (2, 4), (5, 4), (40, 4), (2, 7), (3, 100)] {
        assert!(run(workers, batch_size) == expected, "{workers} threads, batches of {batch_size}");
    }
}

#[test]
fn epochs_and_seeds_differ_and_places_do_not_matter() {
    let data = images(6);
    let loader = Loader::new(&data, strong()).batch_size(2);
    let first = epoch(&loader, (0..6).collect(), 0);
    assert_ne!(first.0, epoch(&loader, (0..6).collect(), 1).0);
    assert_ne!(first.0, epoch(&loader.clone().seed(1), (0..6).collect(), 0).0);
    // The same sample looks the same wherever it stands in the epoch, so an epoch can be taken up in the middle.
    assert_eq!(first.0[4 * 768..], epoch(&loader, vec![4, 5], 0).0);
}

#[test]
fn the_last_batch() {
    let loader = Loader::new(&images(7), strong()).batch_size(3).workers(2);
    let sizes = |loader: &Loader| -> Vec<usize> {
        loader.batches((0..7).collect(), 0, &Device::Cpu).unwrap().map(|batch| batch.unwrap().len()).collect()
    };
    // The one left over joins those before it.
    assert_eq!(sizes(&loader), [3, 4]);
    assert_eq!((loader.batch_count(7), loader.batch_count(8)), (2, 3));
    let loader = loader.drop_last(true);
    assert_eq!(sizes(&loader), [3, 3]);
    assert_eq!(loader.batch_count(7), 2);
    assert_eq!(loader.batches(vec![], 0, &Device::Cpu).unwrap().count(), 0);
}

#[test]
fn bad_requests_are_refused() {
    let loader = Loader::new(&images(3), strong());
    assert!(matches!(loader.batches(vec![3], 0, &Device::Cpu), Err(Error::Invalid { .. })));
    assert!(matches!(loader.batch_size(0).batches(vec![0], 0, &Device::Cpu), Err(Error::Invalid { .. })));
}

/// Counts the requests, and fails at a given sample.
#[derive(Clone)]
struct Odd {
    classes: Vec<String>,
    asked: Arc<AtomicUsize>,
    fails_at: Option<usize>,
    panics_at: Option<usize>,
    label: u32,
}

impl Odd {
    fn new() -> Self {
        let (classes, asked) = (vec!["only".to_string()], Arc::default());
        Self { classes, asked, fails_at: None, panics_at: None, label: 0 }
    }
}

impl Dataset for Odd {
    fn len(&self) -> usize {
        1000
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, Target::Class(self.label)).name(format!("odd {i}"))
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.fails_at == Some(i) {
            return Err(Error::bad_sample(self.info(i).to_string(), "told to fail"));
        }
        assert!(self.panics_at != Some(i), "told to panic");
        Ok(Sample::Image(Image::new(4, 4, 3, vec![i as u8; 48]).unwrap()))
    }
}

#[test]
fn what_is_held_is_bounded_and_dropping_stops_the_threads() {
    let data = Odd::new();
    let eval = Transform::eval(&InputSpec::new(8)).unwrap();
    let mut batches =
        Loader::new(&data, eval).workers(3).batch_size(5).batches((0..1000).collect(), 0, &Device::Cpu).unwrap();
    batches.next().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let asked = data.asked.load(Ordering::SeqCst);
    assert!((5..=5 + 2 * 5 + 3).contains(&asked), "{asked} samples were made for one batch of five");
    drop(batches);
    let asked = data.asked.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(asked, data.asked.load(Ordering::SeqCst));
    assert_eq!(Arc::strong_count(&data.asked), 1, "a thread still holds the dataset");
}

#[test]
fn errors_and_panics_arrive_in_order() {
    for workers in [0, 1, 4] {
        let eval = Transform::eval(&InputSpec::new(8)).unwrap();
        let run = |data: &Odd| -> Vec<Result<Batch>> {
            let loader = Loader::new(data, eval.clone()).workers(workers).batch_size(10);
            loader.batches((0..100).collect(), 0, &Device::Cpu).unwrap().collect()
        };
        let failed = run(&Odd { fails_at: Some(25), ..Odd::new() });
        assert_eq!(failed.len(), 3, "two good batches, then the error, then nothing");
        assert_eq!(failed[2].as_ref().unwrap_err().to_string(), "odd 25: told to fail");
        assert!(failed[..2].iter().all(Result::is_ok));

        let panicked = run(&Odd { panics_at: Some(12), ..Odd::new() });
        let Err(Error::DatasetPanicked { sample, message }) = &panicked[1] else { panic!("{panicked:?}") };
        assert_eq!((sample.as_str(), message.as_str(), panicked.len()), ("odd 12", "told to panic", 2));

        let mislabelled = run(&Odd { label: 1, ..Odd::new() });
        assert!(matches!(&mislabelled[..], [Err(Error::LabelOutOfRange { label: 1, classes: 1, .. })]));
    }
}

#[test]
fn tensors_pass_as_they_are() {
    let images = Tensor::arange(0f32, 240.0, &Device::Cpu).unwrap().sin().unwrap().reshape((5, 2, 4, 6)).unwrap();
    let data = TensorDataset::new(images.clone(), vec![0, 1, 0, 1, 0], vec!["a".into(), "b".into()]).unwrap();
    let loader = Loader::new(&data, strong()).batch_size(2);
    let all: Vec<Tensor> = loader
        .batches((0..5).collect(), 0, &Device::Cpu)
        .unwrap()
        .map(|batch| batch.unwrap().images().unwrap().clone())
        .collect();
    let all = Tensor::cat(&all, 0).unwrap();
    assert_eq!(all.dtype(), DType::F32);
    assert_eq!(
        all.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        images.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    );
}

#[test]
fn an_image_of_wrong_channels_is_named() {
    let image = Image::new(4, 4, 5, vec![0; 80]).unwrap();
    let data = VecDataset::new(vec![(image, 0)], vec!["a".into()]).unwrap();
    let error = Loader::new(&data, strong()).batches(vec![0], 0, &Device::Cpu).unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().starts_with("sample 0: "), "{error}");
}

#[test]
fn the_dataset_may_be_any_pointer() {
    let shared: Arc<dyn Dataset> = Arc::new(images(3));
    let loader = Loader::new(&shared, strong()).batch_size(3);
    assert_eq!(loader.batches(vec![0, 1, 2], 0, &Device::Cpu).unwrap().next().unwrap().unwrap().len(), 3);
}
