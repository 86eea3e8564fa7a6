//! The advisor: what it advises, on what it looks, and that the training reuses it.

use crate::support::CPU;
use candle_finetune::{
    Advisor, Backbone, DataSize, Dataset, Error, FeatureCache, FineTuner, Head, Plan, Result, Sample, SampleInfo,
    Similarity, Strategy, StrategyCost, Target, TensorDataset,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

mod limits;
mod size;

/// A dataset that counts how often its samples are read, and puts each pair of samples into a group if asked to.
#[derive(Clone)]
struct Counted {
    inner: TensorDataset,
    reads: Arc<AtomicUsize>,
    grouped: bool,
}

impl Dataset for Counted {
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn classes(&self) -> &[String] {
        self.inner.classes()
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        let info = self.inner.info(i);
        if self.grouped { info.group(i as u32 / 2) } else { info }
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.sample(i)
    }
    fn fingerprint(&self, i: usize) -> Option<u64> {
        self.inner.fingerprint(i)
    }
}

fn counted(grouped: bool) -> Counted {
    Counted { inner: crate::support::tensors(24, 32, 3, 1), reads: Arc::default(), grouped }
}

fn backbone() -> Backbone {
    Backbone::embedded(&CPU).unwrap()
}

#[test]
fn the_crates_own_images_are_few_and_different() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion/train");
    let train = candle_finetune::ImageFolder::open(folder).unwrap();
    let advice = Advisor::new(&backbone()).advise(&train).unwrap();
    assert_eq!((advice.size, advice.similarity), (DataSize::Small, Similarity::Different));
    assert_eq!((advice.strategy, advice.plan.strategy), (Strategy::SmallDifferent, Some(Strategy::SmallDifferent)));
    let evidence = &advice.evidence;
    assert_eq!((evidence.samples, evidence.size.samples, evidence.size.least), (100, 100, 10));
    assert_eq!(
        evidence.stages.iter().map(|s| s.stage.as_str()).collect::<Vec<_>>(),
        ["stem", "layer1", "layer2", "layer3"]
    );
    // Well above guessing, and below what a trained network reaches.
    let last = evidence.stages[3].mean.ridge;
    assert!((0.3..0.8).contains(&last), "{last}");
    let (text, json) = (advice.to_string(), advice.to_json().unwrap());
    for words in ["100 images of 10 classes", "little data, different: small-different", "layer2", "next to try"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["size"], &json["similarity"]), (&"small".into(), &"different".into()));
    assert_eq!(serde_json::from_value::<Plan>(json["plan"].clone()).unwrap(), advice.plan);
    // The same again, by other threads.
    let again = Advisor::new(&backbone()).workers(1).advise(&train).unwrap();
    assert_eq!((&again.evidence.stages, &again.plan), (&evidence.stages, &advice.plan));
}

#[test]
fn a_head_is_trained_on_the_features_of_the_advice() {
    let (train, cache) = (counted(false), FeatureCache::new());
    Advisor::new(&backbone()).cache(&cache).advise(&train).unwrap();
    // One more for the size of a sample's features, one to see whether there are images that can be mirrored, and eight
    // to time the reading.
    assert_eq!(train.reads.swap(0, Ordering::SeqCst), 24 + 1 + 1 + 8);
    let plan = Strategy::SmallSimilar.plan(&backbone(), 24);
    let fit = |cache: &FeatureCache| {
        FineTuner::new(backbone()).plan(plan.clone()).cache(cache).fit(&train, &train.inner.clone()).unwrap()
    };
    let shared = fit(&cache);
    assert_eq!(train.reads.load(Ordering::SeqCst), 0, "the features of the advice are the head's");
    assert_eq!(shared.report.epochs, fit_without_times(&shared, &fit(&FeatureCache::new())));
}

/// The epochs of the second with the times of the first.
fn fit_without_times(
    first: &candle_finetune::Fitted,
    second: &candle_finetune::Fitted,
) -> Vec<candle_finetune::EpochReport> {
    let times = first.report.epochs.iter().zip(&second.report.epochs);
    times
        .map(|(a, b)| {
            let mut b = b.clone();
            (b.seconds, b.images_per_second) = (a.seconds, a.images_per_second);
            b
        })
        .collect()
}

#[test]
fn without_a_strategy_the_run_follows_the_advice() {
    let train = counted(false);
    let advice = Advisor::new(&backbone()).advise(&train).unwrap();
    let session = FineTuner::new(backbone()).session(&train).unwrap();
    let report = session.report();
    assert_eq!((report.strategy, &report.plan), (Some(advice.strategy), &advice.plan));
    assert!(report.overrides.is_empty() && report.seconds.advice > 0.0, "{:?}", report.overrides);
    // The advice that a user got before counts as well, and an edit of its plan is seen.
    let mut plan = advice.plan.clone();
    plan.batch_size = 3;
    let session = FineTuner::new(backbone()).advice(&advice).plan(plan).session(&train).unwrap();
    assert_eq!(session.report().overrides.len(), 1, "{:?}", session.report().overrides);
    assert_eq!(session.report().seconds.advice, advice.evidence.seconds);
    // A strategy that is named is followed without advice.
    train.reads.store(0, Ordering::SeqCst);
    let session = FineTuner::new(backbone()).strategy(Strategy::LargeSimilar).session(&train).unwrap();
    assert_eq!((session.report().strategy, session.report().seconds.advice), (Some(Strategy::LargeSimilar), 0.0));
}

/// Two equal images per group: judged by its twin, each is right; judged by the others, it is not.
#[test]
fn the_samples_of_a_group_do_not_judge_each_other() {
    let one = crate::support::images(12, 3, 32, 5);
    let twins =
        candle_finetune::candle_core::Tensor::stack(&[&one, &one], 1).unwrap().reshape((24, 3, 32, 32)).unwrap();
    let labels = (0..24).map(|i| (i / 2 * 7 % 5) as u32 % 2).collect();
    let inner = TensorDataset::new(twins, labels, vec!["a".into(), "b".into()]).unwrap();
    let top1 = |grouped| {
        let data = Counted { inner: inner.clone(), reads: Arc::default(), grouped };
        Advisor::new(&backbone()).advise(&data).unwrap().evidence.stages.last().unwrap().grid.ridge
    };
    assert!(top1(false) > 0.95 && top1(true) < 0.9, "{} {}", top1(false), top1(true));
}

#[test]
fn data_that_cannot_be_judged_is_refused() {
    let advise = |data: &TensorDataset| Advisor::new(&backbone()).advise(data).map(drop).unwrap_err();
    let one = TensorDataset::new(crate::support::images(2, 3, 32, 1), vec![0, 0], vec!["only".into()]).unwrap();
    assert!(advise(&one).to_string().contains("1 class"));
    #[derive(Clone)]
    struct Labelled(TensorDataset);
    impl Dataset for Labelled {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn info(&self, i: usize) -> SampleInfo<'_> {
            SampleInfo::new(i, Target::Labels(vec![0, 1]))
        }
        fn sample(&self, i: usize) -> Result<Sample> {
            self.0.sample(i)
        }
    }
    let sets = Labelled(crate::support::tensors(4, 32, 2, 1));
    let error = Advisor::new(&backbone()).advise(&sets).map(drop).unwrap_err();
    assert!(matches!(&error, Error::Invalid { problem, .. } if problem.contains("one rarest label")), "{error}");
    // A class of one sample is advised on, and said.
    let images = crate::support::images(7, 3, 32, 1);
    let few = TensorDataset::new(images, vec![0, 0, 0, 1, 1, 1, 2], vec!["a".into(), "b".into(), "c".into()]).unwrap();
    let advice = Advisor::new(&backbone()).advise(&few).unwrap();
    assert!(advice.warnings.iter().any(|warning| warning.contains("1 images")), "{:?}", advice.warnings);
}

/// Some strategies fit the head in closed form, which takes one linear layer.
#[test]
fn a_head_of_several_layers_is_advised_what_trains_it() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion/train");
    let train = candle_finetune::ImageFolder::open(folder).unwrap();
    for head in [Head::mlp(16), Head::linear().dropout(0.5)] {
        let advice = Advisor::new(&backbone()).head(head).advise(&train).unwrap();
        assert_eq!(advice.strategy, Strategy::SmallDifferent);
        let cost = advice.costs.iter().find(|cost| cost.strategy == Strategy::Intermediate).unwrap();
        assert!(!cost.fits() && cost.problems[0].contains("intermediate is not possible: head"), "{cost:?}");
        assert!(advice.costs[..4].iter().all(StrategyCost::fits));
        FineTuner::new(backbone()).head(head).advice(&advice).session(&train).unwrap();
    }
}
