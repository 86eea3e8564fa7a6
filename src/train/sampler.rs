//! The order in which an epoch takes the samples.

use crate::data::{Dataset, Target, batch_end, largest};
use crate::error::{Error, Result};
use crate::plan::Sampling;
use crate::rng::Seed;
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// What each sample of a dataset weighs in the draws of an epoch.
pub(super) struct Weights {
    /// The weight of each sample, and the class that it has it from.
    samples: Vec<(f64, u32)>,
}

impl Weights {
    /// `None` where each sample is drawn once.
    ///
    /// # Errors
    /// For another number of weights than classes, and if all samples have weight 0.
    pub fn of(sampling: &Sampling, data: &dyn Dataset) -> Result<Option<Self>> {
        let classes = data.classes().len();
        let labels = |i: usize| -> Vec<u32> {
            match data.info(i).target {
                Target::Class(class) => vec![class],
                Target::Soft(p) => vec![largest(&p) as u32],
                Target::Labels(labels) => labels,
            }
        };
        let mut unlabelled = 0.0;
        let weights: Vec<f64> = match sampling {
            Sampling::Shuffled => return Ok(None),
            Sampling::Weighted(weights) if weights.len() != classes => {
                let problem = format!("{} weights for {classes} classes; give one per class", weights.len());
                return Err(Error::invalid("plan: sampling", problem));
            }
            Sampling::Weighted(weights) => weights.clone(),
            Sampling::Balanced => {
                let mut counts = vec![0.0; classes];
                for i in 0..data.len() {
                    let labels = labels(i);
                    unlabelled += f64::from(u8::from(labels.is_empty()));
                    // A label out of range is an error when its batch is made.
                    let known = labels.into_iter().filter(|&label| (label as usize) < classes);
                    known.for_each(|label| counts[label as usize] += 1.0);
                }
                counts.into_iter().map(|count: f64| 1.0 / count.max(1.0)).collect()
            }
        };
        let of_none = match sampling {
            // Samples without labels are as often drawn as those of a class.
            Sampling::Balanced => 1.0 / unlabelled.max(1.0),
            // Such a sample weighs what one of an average class does.
            _ => weights.iter().sum::<f64>() / weights.len().max(1) as f64,
        };
        let weight = |label: u32| weights.get(label as usize).copied().unwrap_or(0.0);
        let heaviest = |i: usize| {
            let all = labels(i).into_iter().map(|label| (weight(label), label));
            all.reduce(|a, b| if b.0 > a.0 { b } else { a }).unwrap_or((of_none, u32::MAX))
        };
        let samples: Vec<(f64, u32)> = (0..data.len()).map(heaviest).collect();
        if samples.iter().all(|(weight, _)| *weight == 0.0) {
            let problem = "all samples are of classes of weight 0; give one of their classes a weight";
            return Err(Error::invalid("plan: sampling", problem));
        }
        Ok(Some(Self { samples }))
    }

    /// As many draws as there are samples: systematic resampling, class by class, so that each sample is drawn as often as
    /// its share of the weight says, rounded down or up, and each class too.
    fn draw(&self, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let n = self.samples.len();
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(rng);
        order.sort_by_key(|&i| self.samples[i].1);
        let step = self.samples.iter().map(|(weight, _)| weight).sum::<f64>() / n as f64;
        let mut next = rng.random::<f64>() * step;
        let (mut sum, mut drawn) = (0.0, Vec::with_capacity(n));
        for &i in &order {
            sum += self.samples[i].0;
            while next < sum && drawn.len() < n {
                drawn.push(i);
                next += step;
            }
        }
        // Rounding may leave the last draw out.
        while drawn.len() < n {
            drawn.extend(order.iter().rev().find(|&&i| self.samples[i].0 > 0.0));
        }
        drawn.shuffle(rng);
        drawn
    }
}

/// A random order of all samples, and how many of them were taken.
pub(super) struct Sampler {
    order: Vec<usize>,
    /// For each place in the order, how often its sample was drawn before; empty where each is drawn once.
    repeats: Vec<u32>,
    taken: usize,
    batch_size: usize,
}

impl Sampler {
    /// The order of epoch number `epoch` of the run, from 0.
    pub fn new(seed: u64, epoch: usize, samples: usize, batch_size: usize) -> Self {
        let mut order: Vec<usize> = (0..samples).collect();
        order.shuffle(&mut Seed(seed).stream("shuffle", &[epoch as u64]));
        Self { order, repeats: vec![], taken: 0, batch_size }
    }

    /// The draws of that epoch by the samples' weights.
    pub fn weighted(seed: u64, epoch: usize, weights: &Weights, batch_size: usize) -> Self {
        let order = weights.draw(&mut Seed(seed).stream("weighted", &[epoch as u64]));
        let mut counts = vec![0u32; weights.samples.len()];
        let count = |&i: &usize| {
            counts[i] += 1;
            counts[i] - 1
        };
        let repeats = order.iter().map(count).collect();
        Self { order, repeats, taken: 0, batch_size }
    }

    /// The same order after `taken` samples.
    pub fn after(mut self, taken: usize) -> Result<Self> {
        if taken > self.order.len() {
            let problem = format!("took {taken} samples of an epoch of {}", self.order.len());
            return Err(Error::invalid("run state", problem));
        }
        self.taken = taken;
        Ok(self)
    }

    /// The samples of the next batch; none at the end.
    pub fn upcoming(&self) -> &[usize] {
        &self.order[self.taken..batch_end(self.taken, self.order.len(), self.batch_size)]
    }

    /// All samples that were not taken yet, in order.
    pub fn rest(&self) -> &[usize] {
        &self.order[self.taken..]
    }

    /// For each of these, how often its sample was drawn before in this epoch; empty where each is drawn once.
    pub fn rest_repeats(&self) -> &[u32] {
        self.repeats.get(self.taken..).unwrap_or_default()
    }

    /// Takes the samples of the next batch.
    pub fn advance(&mut self) {
        self.taken = batch_end(self.taken, self.order.len(), self.batch_size);
    }

    pub fn taken(&self) -> usize {
        self.taken
    }

    pub fn is_done(&self) -> bool {
        self.taken >= self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(mut sampler: Sampler) -> Vec<Vec<usize>> {
        let mut all = vec![];
        while !sampler.is_done() {
            all.push(sampler.upcoming().to_vec());
            sampler.advance();
        }
        assert!(sampler.upcoming().is_empty());
        all
    }

    #[test]
    fn the_rest_of_an_epoch_is_cut_into_the_same_batches() {
        for samples in [8, 9, 21, 25] {
            let whole = batches(Sampler::new(3, 1, samples, 4));
            let mut seen: Vec<usize> = whole.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..samples).collect::<Vec<_>>());
            assert_ne!(whole, batches(Sampler::new(3, 2, samples, 4)), "each epoch has its own order");
            for at in 0..whole.len() {
                let sampler = Sampler::new(3, 1, samples, 4).after(4 * at).unwrap();
                assert_eq!(sampler.rest(), whole[at..].concat());
                assert_eq!(batches(sampler), whole[at..]);
            }
        }
        assert!(Sampler::new(3, 1, 8, 4).after(9).is_err());
    }

    fn data(counts: [usize; 3]) -> crate::TensorDataset {
        let classes: Vec<u32> = (0..3u32).zip(counts).flat_map(|(class, n)| vec![class; n]).collect();
        let images =
            candle_core::Tensor::zeros((classes.len(), 1, 1, 1), candle_core::DType::F32, &candle_core::Device::Cpu);
        crate::TensorDataset::new(images.unwrap(), classes, ["a", "b", "c"].map(String::from).to_vec()).unwrap()
    }

    #[test]
    fn classes_are_drawn_by_their_weights() {
        let data = data([70, 20, 10]);
        for (sampling, expected) in [
            (Sampling::Balanced, [100.0 / 3.0; 3]),
            (Sampling::Weighted(vec![1.0, 1.0, 1.0]), [70.0, 20.0, 10.0]),
            (Sampling::Weighted(vec![1.0, 0.0, 7.0]), [50.0, 0.0, 50.0]),
        ] {
            let weights = Weights::of(&sampling, &data).unwrap().unwrap();
            let mut often = vec![0; 100];
            for epoch in 0..30 {
                let sampler = Sampler::weighted(1, epoch, &weights, 8);
                let mut counts = [0.0; 3];
                let mut seen = std::collections::BTreeMap::new();
                for (&i, &repeat) in sampler.rest().iter().zip(sampler.rest_repeats()) {
                    counts[weights.samples[i].1 as usize] += 1.0;
                    assert_eq!(*seen.entry(i).and_modify(|n| *n += 1).or_insert(0), repeat);
                    often[i] += 1;
                }
                assert_eq!(sampler.rest().len(), 100);
                let near =
                    counts.iter().zip(expected).all(|(found, expected): (&f64, f64)| (found - expected).abs() <= 1.0);
                assert!(near, "{sampling:?}: {counts:?}");
                assert_ne!(sampler.order, Sampler::weighted(1, epoch + 1, &weights, 8).order);
            }
            // Within a class all samples have their turn.
            for (i, n) in often.iter().enumerate() {
                let of_class = [70.0, 20.0, 10.0][weights.samples[i].1 as usize];
                let mean = 30.0 * expected[weights.samples[i].1 as usize] / of_class;
                assert!(
                    (f64::from(*n) - mean).abs() <= 6.0 * mean.sqrt().max(1.0),
                    "{sampling:?} {i}: {n}, not {mean}"
                );
            }
        }
        assert!(Weights::of(&Sampling::Shuffled, &data).unwrap().is_none());
        for (weights, part) in [(vec![1.0], "1 weights for 3"), (vec![0.0; 3], "weight 0")] {
            let error = Weights::of(&Sampling::Weighted(weights), &data).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_sample_with_several_labels_is_drawn_for_the_rarest() {
        let images = candle_core::Tensor::zeros((5, 1, 1, 1), candle_core::DType::F32, &candle_core::Device::Cpu);
        let labels = [vec![0], vec![0], vec![0, 1], vec![], vec![]].map(Target::Labels).to_vec();
        // No sample has the last one.
        let names = ["a", "b", "c"].map(String::from).to_vec();
        let data = crate::TensorDataset::from_targets(images.unwrap(), labels, names).unwrap();
        let of = |sampling: Sampling| Weights::of(&sampling, &data).unwrap().unwrap().samples;
        let (third, half, none) = (1.0 / 3.0, 0.5, u32::MAX);
        assert_eq!(of(Sampling::Balanced), [(third, 0), (third, 0), (1.0, 1), (half, none), (half, none)]);
        let weights = Sampling::Weighted(vec![1.0, 2.0, 6.0]);
        assert_eq!(of(weights), [(1.0, 0), (1.0, 0), (2.0, 1), (3.0, none), (3.0, none)]);
    }
}
