use super::*;
use crate::ops::no_grad;
use crate::{Arch, Backbone, Sample, SampleInfo, TensorDataset};
use std::sync::atomic::{AtomicUsize, Ordering};

const CUTS: [Cut; 4] = [Cut::Boundary(3), Cut::Stages { pooled: 1 }, Cut::Boundary(10), Cut::Stages { pooled: 4 }];

/// Counts how often samples are asked for.
struct Counted {
    data: TensorDataset,
    asked: AtomicUsize,
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
        self.data.fingerprint(i)
    }
}

fn images(n: usize) -> Tensor {
    let values: Vec<f32> = (0..n * 3 * 32 * 32).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (n, 3, 32, 32), &Device::Cpu).unwrap()
}

struct Scene {
    backbone: Backbone,
    counted: Arc<Counted>,
    data: Arc<dyn Dataset>,
    all: Vec<usize>,
}

impl Scene {
    /// 35 samples: a batch of 32 and one of 3.
    fn new() -> Self {
        let labels = (0..35).map(|i| i % 2).collect();
        let data = TensorDataset::new(images(35), labels, vec!["a".into(), "b".into()]).unwrap();
        let counted = Arc::new(Counted { data, asked: AtomicUsize::new(0) });
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &Device::Cpu).unwrap();
        Self { backbone, data: counted.clone(), counted, all: (0..35).collect() }
    }

    fn gather(&self, indices: &[usize], cuts: &[Cut], cache: &FeatureCache) -> Option<FeatureSet> {
        let extractor = FeatureExtractor::new(&self.backbone).unwrap().workers(0);
        FeatureSet::gather(&self.data, indices, 1, &extractor, cuts, cache).unwrap()
    }

    /// Samples that were asked for since the last call.
    fn asked(&self) -> usize {
        self.counted.asked.swap(0, Ordering::SeqCst)
    }
}

fn bits(t: &Tensor) -> (Vec<usize>, Vec<u32>) {
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    (t.dims().to_vec(), values.iter().map(|v| v.to_bits()).collect())
}

type Bits = Vec<(String, (Vec<usize>, Vec<u32>))>;

/// Names and bits of all outputs.
fn outputs(set: &FeatureSet) -> Bits {
    let all: Vec<usize> = (0..set.len()).collect();
    set.outputs().enumerate().map(|(o, name)| (name.to_string(), bits(&set.features(o, &all, 0).unwrap()))).collect()
}

#[test]
fn several_cuts_in_one_pass_are_those_of_single_passes() {
    let scene = Scene::new();
    let together = outputs(&scene.gather(&scene.all, &CUTS, &FeatureCache::new()).unwrap());
    assert_eq!(scene.asked(), 35, "each sample is read once");
    let names: Vec<&str> = together.iter().map(|(name, _)| name.as_str()).collect();
    let stages = ["stem", "layer1", "layer2", "layer3"];
    assert_eq!(names, [&["layer1.1"][..], &stages, &["layer3.2"], &stages].concat());
    let single = |cut: &Cut| outputs(&scene.gather(&scene.all, &[*cut], &FeatureCache::new()).unwrap());
    assert_eq!(together, CUTS.iter().flat_map(single).collect::<Bits>());

    // The network's own output for the first batch.
    let first: Vec<usize> = (0..32).collect();
    let batch = images(35).narrow(0, 0, 32).unwrap();
    let set = scene.gather(&scene.all, &CUTS, &FeatureCache::new()).unwrap();
    let of = |output: usize| bits(&set.features(output, &first, 0).unwrap());
    for (output, blocks) in [(0, 3), (5, 10)] {
        let prefix = no_grad(|| scene.backbone.inner.network.prefix(&batch, blocks)).unwrap();
        assert_eq!(of(output), bits(&prefix), "{blocks} blocks");
    }
    for (i, (name, features)) in scene.backbone.stage_features(&batch).unwrap().iter().enumerate() {
        assert_eq!(of(1 + i), bits(features), "{name}");
    }
    assert_eq!(of(4), bits(&scene.backbone.forward(&batch).unwrap()));
}

#[test]
fn a_grid_has_the_means_of_its_cells() {
    let scene = Scene::new();
    let set = scene.gather(&[0, 1], &[Cut::Stages { pooled: 4 }], &FeatureCache::new()).unwrap();
    let batch = images(2);
    for (output, blocks) in [(0, 1), (1, 4), (2, 7)] {
        let map = no_grad(|| scene.backbone.inner.network.prefix(&batch, blocks)).unwrap();
        let (n, c, h, w) = map.dims4().unwrap();
        let grid = set.features(output, &[0, 1], 0).unwrap();
        assert_eq!(grid.dims(), [n, c, 4, 4]);
        let cells = map.reshape((n, c, 4, h / 4, 4, w / 4)).unwrap().mean((3, 5)).unwrap();
        let apart = (cells - grid).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(apart < 1e-5, "{blocks} blocks: {apart}");
    }
    // A map of 2 x 2 pixels: every pixel is a quarter of the grid.
    let small = scene.backbone.for_input_size(8, 8).unwrap();
    let images = images(2).narrow(2, 0, 8).unwrap().narrow(3, 0, 8).unwrap().contiguous().unwrap();
    let data: Arc<dyn Dataset> =
        Arc::new(TensorDataset::new(images.clone(), vec![0, 1], vec!["a".into(), "b".into()]).unwrap());
    let extractor = FeatureExtractor::new(&small).unwrap();
    let cuts = [Cut::Stages { pooled: 4 }];
    let set = FeatureSet::gather(&data, &[0, 1], 1, &extractor, &cuts, &FeatureCache::new()).unwrap().unwrap();
    let grid = set.features(3, &[0, 1], 0).unwrap();
    let pixel = grid.narrow(2, 2, 1).unwrap().narrow(3, 1, 1).unwrap();
    let same = grid.narrow(2, 3, 1).unwrap().narrow(3, 0, 1).unwrap();
    assert_eq!(bits(&pixel), bits(&same));
    let mean = grid.mean((2, 3)).unwrap();
    let apart = (mean - small.forward(&images).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
    assert!(apart.to_scalar::<f32>().unwrap() < 1e-5);
}

#[test]
fn what_exceeds_the_memory_goes_to_a_file() {
    let scene = Scene::new();
    let free = outputs(&scene.gather(&scene.all, &CUTS, &FeatureCache::new()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let files = || std::fs::read_dir(dir.path()).unwrap().count();
    // The first cut's 35 maps of 16 x 32 x 32 take 2.3 MB; everything else fits into 1 MB.
    for (budget, expected) in [(1 << 20, 1), (0, 10), (1 << 22, 0)] {
        let cache = FeatureCache::new().budget(budget).dir(dir.path());
        let set = scene.gather(&scene.all, &CUTS, &cache).unwrap();
        assert_eq!(files(), expected, "{budget}");
        assert!(cache.memory_bytes() <= budget, "{} of {budget}", cache.memory_bytes());
        assert!(set.bytes() > 2_000_000);
        assert_eq!(outputs(&set), free, "{budget}");
        drop((set, cache));
        assert_eq!(files(), 0);
    }
    // Without a folder there is no room, and nothing stays behind.
    let cache = FeatureCache::new().budget(1 << 20);
    assert!(scene.gather(&scene.all, &CUTS, &cache).is_none());
    assert_eq!(cache.memory_bytes(), 0);
    assert!(scene.gather(&scene.all, &CUTS[1..], &cache).is_some(), "what was reserved is free again");
}

#[test]
fn clones_of_a_cache_share_rows() {
    let scene = Scene::new();
    let cache = FeatureCache::new();
    let first = scene.gather(&scene.all[..20], &CUTS[..2], &cache).unwrap();
    assert_eq!(scene.asked(), 20);
    let again = scene.gather(&scene.all[..20], &CUTS[..2], &cache.clone()).unwrap();
    assert_eq!((scene.asked(), cache.memory_bytes()), (0, first.bytes()), "found, and kept once");
    assert_eq!(outputs(&first), outputs(&again));
    // Only what is missing is computed: more samples, then more cuts; in another order it is the same.
    let backwards: Vec<usize> = scene.all.iter().rev().copied().collect();
    let more = scene.gather(&backwards, &CUTS[..2], &cache.clone()).unwrap();
    assert_eq!(scene.asked(), 15);
    let cuts = scene.gather(&scene.all, &CUTS, &cache).unwrap();
    assert_eq!(scene.asked(), 35);
    // The means after the last stage are the features after all blocks, and kept once.
    let own = 35 * 64 * size_of::<f32>();
    assert_eq!(cache.memory_bytes(), cuts.bytes() - own);
    let row = |set: &FeatureSet, at: usize| bits(&set.features(1, &[at], 0).unwrap());
    assert!((0..35).all(|i| row(&more, 34 - i) == row(&cuts, i)));
    assert_eq!(outputs(&cuts), outputs(&scene.gather(&scene.all, &CUTS, &FeatureCache::new()).unwrap()));
    // Other weights are other features.
    let other = Scene { backbone: Backbone::random(Arch::CIFAR_RESNET20, 4, &Device::Cpu).unwrap(), ..scene };
    other.asked();
    other.gather(&other.all, &CUTS[..1], &cache).unwrap();
    assert_eq!(other.asked(), 35);
}

#[test]
fn features_of_another_boundary_are_refused() {
    let scene = Scene::new();
    let (cache, extractor) = (FeatureCache::new(), FeatureExtractor::new(&scene.backbone).unwrap());
    let set = scene.gather(&scene.all, &[Cut::Boundary(3)], &cache).unwrap();
    let batch = set.batch(&[1, 4], |_| 0).unwrap();
    assert_eq!((batch.indices.as_slice(), batch.len()), (&[1, 4][..], 2));
    let at = |k: usize| extractor.made_by(Cut::Boundary(k), &cache).unwrap();
    assert_eq!(batch.features_of(Some(at(3))).unwrap().unwrap().dims(), [2, 16, 32, 32]);
    for wrong in [Some(at(4)), None] {
        let error = batch.features_of(wrong).unwrap_err().to_string();
        assert!(error.contains("another phase"), "{error}");
    }
    let other = Backbone::random(Arch::CIFAR_RESNET20, 4, &Device::Cpu).unwrap();
    let other = FeatureExtractor::new(&other).unwrap().made_by(Cut::Boundary(3), &cache).unwrap();
    assert!(batch.features_of(Some(other)).is_err(), "the same boundary, other weights");
}

#[test]
fn what_cannot_be_gathered_is_an_error() {
    let scene = Scene::new();
    let extractor = FeatureExtractor::new(&scene.backbone).unwrap();
    let gather = |indices: &[usize], cut: Cut| {
        let cuts = [cut];
        FeatureSet::gather(&scene.data, indices, 1, &extractor, &cuts, &FeatureCache::new()).err().unwrap().to_string()
    };
    for cut in [Cut::Boundary(0), Cut::Boundary(11), Cut::Stages { pooled: 3 }] {
        assert!(gather(&[0], cut).contains("cut"), "{cut:?}");
    }
    assert!(gather(&[0, 35], Cut::Boundary(1)).contains("35 of a dataset of 35"));
    let set = scene.gather(&[], &CUTS, &FeatureCache::new()).unwrap();
    assert!(set.is_empty() && set.outputs().count() == 10);
    let set = scene.gather(&[3], &CUTS[..1], &FeatureCache::new()).unwrap();
    assert!(set.features(0, &[1], 0).is_err() && set.features(1, &[0], 0).is_err());
}
