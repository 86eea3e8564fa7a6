//! The order in which an epoch takes the samples.

use crate::data::batch_end;
use crate::error::{Error, Result};
use crate::rng::Seed;
use rand::seq::SliceRandom;

/// A random order of all samples, and how many of them were taken.
pub(super) struct Sampler {
    order: Vec<usize>,
    taken: usize,
    batch_size: usize,
}

impl Sampler {
    /// The order of epoch number `epoch` of the run, from 0.
    pub fn new(seed: u64, epoch: usize, samples: usize, batch_size: usize) -> Self {
        let mut order: Vec<usize> = (0..samples).collect();
        order.shuffle(&mut Seed(seed).stream("shuffle", &[epoch as u64]));
        Self { order, taken: 0, batch_size }
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
}
