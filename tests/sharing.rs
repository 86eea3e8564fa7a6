//! One feature cache for several runs: hits, misses, and results that do not change.

use crate::support::{CPU, differing, pictures, plan, tensors, worn};
use crate::training::{Bits, backbone, phase, saved};
use candle_finetune::candle_core::DType;
use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, Dataset, FeatureCache, FineTuner, FreezePolicy, InputSpec, Optimizer, Plan,
    Result, Sample, SampleInfo, Source, Strategy, Subset, VecDataset, k_fold,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A dataset that counts how often samples are read.
#[derive(Clone)]
struct Counted {
    data: VecDataset,
    asked: Arc<AtomicUsize>,
    /// Whether samples have fingerprints.
    prints: bool,
}

impl Counted {
    fn new(n: usize, seed: u64) -> Self {
        Self { data: pictures(n, 40, 2, seed), asked: Arc::default(), prints: true }
    }

    fn count(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

impl Dataset for Counted {
    fn len(&self) -> usize {
        self.data.len()
    }
    fn classes(&self) -> &[String] {
        self.data.classes()
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        self.data.info(i)
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.data.sample(i)
    }
    fn fingerprint(&self, i: usize) -> Option<u64> {
        self.data.fingerprint(i).filter(|_| self.prints)
    }
}

fn head_only(epochs: usize) -> Plan {
    plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, epochs)], 6)
}

/// Trains, and returns how many samples were read. One more is read to see whether samples are tensors.
fn run(backbone: &Backbone, plan: &Plan, cache: &FeatureCache, seed: u64, data: &Counted) -> (Bits, usize) {
    let tuner = FineTuner::new(backbone.clone()).plan(plan.clone()).seed(seed).cache(cache).workers(1);
    let fitted = tuner.fit(data, data).unwrap();
    (saved(&fitted), data.count() - usize::from(plan.augment.is_random()))
}

#[test]
fn what_one_run_computed_the_next_finds() {
    let (data, backbone) = (Counted::new(14, 1), backbone());
    let cache = FeatureCache::new();
    let alone = run(&backbone, &head_only(2), &FeatureCache::off(), 5, &data).0;
    // Training and validation have the same samples here, so each is read once.
    let first = run(&backbone, &head_only(2), &cache, 5, &data);
    let second = run(&backbone, &head_only(2), &cache, 5, &data);
    assert_eq!((first.1, second.1), (14, 0));
    assert_eq!(differing(&alone, &first.0), [""; 0]);
    assert_eq!(differing(&alone, &second.0), [""; 0]);
    // Another seed changes the head's initialisation, not the features.
    assert_eq!(run(&backbone, &head_only(1), &cache, 6, &data).1, 0);
    // A copy of the weights counts as the same weights, and a second dataset object as the same images.
    let again = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    assert_eq!(run(&again, &head_only(1), &cache, 5, &Counted::new(14, 1)).1, 0);
    assert!(cache.memory_bytes() > 0);
}

#[test]
fn what_is_not_the_same_is_computed_anew() {
    let (data, backbone) = (Counted::new(14, 1), backbone());
    let cache = FeatureCache::new();
    run(&backbone, &head_only(1), &cache, 5, &data);
    let mut cut = head_only(1);
    cut.phases[0].freeze = FreezePolicy::First(8);
    assert_eq!(run(&backbone, &cut, &cache, 5, &data).1, 14, "another cut");
    let dir = tempfile::tempdir().unwrap();
    let worn = worn(&backbone, dir.path());
    assert_eq!(run(&worn, &head_only(1), &cache, 5, &data).1, 14, "other running statistics");
    let other = Backbone::random(Arch::CIFAR_RESNET20, 4, &CPU).unwrap();
    assert_eq!(run(&other, &head_only(1), &cache, 5, &data).1, 14, "other weights");
    let loaded = |spec: InputSpec| {
        let source = Source::file(dir.path().join("cifar_resnet20.worn.safetensors"))
            .arch(Arch::CIFAR_RESNET20)
            .input_spec(spec);
        Backbone::load(source, &CPU).unwrap()
    };
    let spec = backbone.input_spec().clone();
    assert_eq!(run(&loaded(spec.clone()), &head_only(1), &cache, 5, &data).1, 0, "the same from the file");
    assert_eq!(
        run(&loaded(spec.clone().normalize(&[0.1; 3], &spec.std)), &head_only(1), &cache, 5, &data).1,
        14,
        "another input"
    );
    assert_eq!(run(&backbone, &head_only(1), &cache.clone().dtype(DType::F16), 5, &data).1, 14, "another type");
    assert_eq!(run(&backbone, &head_only(1), &cache, 5, &Counted::new(14, 2)).1, 14, "other images");
    assert_eq!(run(&backbone, &head_only(1), &cache, 5, &data).1, 0, "all of them lie side by side");
}

#[test]
fn samples_without_a_fingerprint_are_no_ones_else() {
    let data = Counted { prints: false, ..Counted::new(14, 1) };
    let cache = FeatureCache::new();
    for _ in 0..2 {
        // Once for training, once for validation, and not again in the second epoch.
        assert_eq!(run(&backbone(), &head_only(2), &cache, 5, &data).1, 28);
        assert_eq!(cache.memory_bytes(), 0);
    }
}

#[test]
fn views_are_shared_by_seed() {
    let (data, backbone) = (Counted::new(14, 1), backbone());
    let cache = FeatureCache::new();
    let mut plan = head_only(3);
    plan.phases[0].augmented = true;
    (plan.augment, plan.views) = (Augment::light(), Some(2));
    let alone = run(&backbone, &plan, &FeatureCache::off(), 5, &data).0;
    let first = run(&backbone, &plan, &cache, 5, &data);
    assert_eq!((first.1, run(&backbone, &plan, &cache, 5, &data).1), (14 * 3, 0));
    assert_eq!(differing(&alone, &first.0), [""; 0]);
    assert_eq!(run(&backbone, &plan, &cache, 6, &data).1, 14 * 2, "another seed, other views");
    plan.views = Some(3);
    assert_eq!(run(&backbone, &plan, &cache, 5, &data).1, 14, "one view more");
    plan.augment = Augment::standard();
    assert_eq!(run(&backbone, &plan, &cache, 5, &data).1, 14 * 3, "other augmentation");
}

#[test]
fn folds_share_features_and_views() {
    let (data, backbone) = (Counted::new(15, 1), backbone());
    for views in [None, Some(2)] {
        let cache = FeatureCache::new();
        let mut plan = head_only(2);
        plan.views = views;
        if views.is_some() {
            (plan.augment, plan.phases[0].augmented) = (Augment::light(), true);
        }
        for (fold, (train, valid)) in k_fold(&data, 3, 1).unwrap().into_iter().enumerate() {
            let fit = |cache: &FeatureCache| {
                let tuner = FineTuner::new(backbone.clone()).plan(plan.clone()).seed(5).cache(cache).workers(1);
                saved(&tuner.fit(&train, &valid).unwrap())
            };
            data.count();
            let shared = fit(&cache);
            let asked = data.count() - views.map_or(0, |_| 1);
            // Two views of ten samples and one of five without augmentation; then two views of the five that were for
            // validation before.
            let expected = match (views, fold) {
                (None, 0) | (Some(_), 1) => 15,
                (None, _) => 0,
                (Some(_), 0) => 25,
                (Some(_), _) => 5,
            };
            assert_eq!(asked, expected, "fold {fold}, views {views:?}");
            assert_eq!(differing(&shared, &fit(&FeatureCache::off())), [""; 0]);
        }
    }
}

#[test]
fn strategies_share_features() {
    let (data, backbone) = (Counted::new(14, 1), backbone());
    let cache = FeatureCache::new();
    let mut plans = [Strategy::SmallSimilar, Strategy::LargeSimilar].map(|s| s.plan(&backbone, 14));
    for plan in &mut plans {
        plan.augment = Augment::none();
        plan.phases.iter_mut().for_each(|p| p.epochs = 1);
    }
    run(&backbone, &plans[0], &cache, 5, &data);
    let heads = plans[1].phases[0].freeze == FreezePolicy::Backbone;
    let together = run(&backbone, &plans[1], &cache, 5, &data);
    let alone = run(&backbone, &plans[1], &FeatureCache::off(), 5, &data);
    assert_eq!(differing(&together.0, &alone.0), [""; 0]);
    assert!(together.1 <= alone.1 - if heads { 14 } else { 0 });
}

/// Phases that freeze the same blocks share the run's cache, and rows that no phase needs are dropped.
#[test]
fn a_run_of_its_own_keeps_what_its_next_phase_needs() {
    let data = Counted::new(14, 1);
    let mut two = head_only(1);
    two.phases.push(two.phases[0].clone());
    two.phases[1].optimizer = Optimizer::sgd(1e-3);
    let tuner = FineTuner::new(backbone()).plan(two).workers(1);
    tuner.fit(&data, &data).unwrap();
    assert_eq!(data.count(), 14);
}

#[test]
fn a_sample_that_is_in_a_part_twice_is_varied_twice() {
    let data = tensors(5, 32, 2, 1);
    let part = Subset::new(&data, vec![3, 1, 3, 3]).unwrap();
    assert_eq!((0..4).map(|i| part.info(i).augment_index).collect::<Vec<_>>(), [3, 1, 8, 13]);
    let within = Subset::new(&part, vec![2, 0]).unwrap();
    assert_eq!([within.info(0).augment_index, within.info(1).augment_index], [8, 3]);
    assert_eq!(part.fingerprint(0), part.fingerprint(2));
    assert!(part.fingerprint(0).is_some() && part.fingerprint(0) != part.fingerprint(1));
}
