//! Cross-validation: the accuracy of a fine-tuning, with every sample judged by a training that did not see it.

mod result;
mod text;

pub use result::{CrossValidation, Fold};

use super::event::Event;
use super::fine_tuner::FineTuner;
use super::refit::stops;
use super::run_dir::Keeper;
use crate::data::{Dataset, Subset, k_fold, split};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use std::sync::Arc;
use std::time::Instant;

/// The fraction of a fold's training samples that chooses its best epoch.
const INNER: f64 = 0.15;

/// How often a dataset is split into how many folds. A number `k` is one split into `k` folds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Folds {
    /// The number of folds.
    pub k: usize,
    /// How often the data is split into folds, each time another way.
    pub repeats: usize,
}

impl Folds {
    /// One split into `k` folds.
    pub fn new(k: usize) -> Self {
        Self { k, repeats: 1 }
    }

    /// Sets how often the data is split.
    pub fn repeats(mut self, repeats: usize) -> Self {
        self.repeats = repeats;
        self
    }
}

impl From<usize> for Folds {
    fn from(k: usize) -> Self {
        Self::new(k)
    }
}

impl FineTuner {
    /// Cross-validates this fine-tuning: trains once per fold without it, and predicts the fold.
    ///
    /// Folds are stratified by class and keep groups together ([`k_fold`]). Nothing passes from one fold to another: each
    /// has a new head, optimizer and best epoch, which 15 % of its own training samples choose. Without strategy and plan,
    /// each fold also asks the advisor, about its own training samples alone. Only the features of frozen blocks are
    /// shared, which depend on no other sample: each image passes the frozen blocks once.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// use candle_finetune::{FineTuner, Folds, Strategy};
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 36864.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((12, 3, 32, 32))?;
    /// # let labels = (0..12).map(|i| i % 2).collect();
    /// # let data = TensorDataset::new(images, labels, vec!["a".into(), "b".into()])?;
    /// let tuner = FineTuner::new(backbone).strategy(Strategy::SmallSimilar);
    /// # let tuner = tuner.plan(Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(4));
    /// let validation = tuner.cross_validate(&data, 3)?; // or Folds::new(3).repeats(2)
    /// println!("{validation}"); // accuracy with its interval, and each fold
    /// assert_eq!(validation.evaluation.total, 12);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// If `repeats` is 0, for a tuner that resumes a run or has a run directory, as [`k_fold`] for the number of folds,
    /// as [`split`] for folds too small to hold out 15 % of their training samples, [`Error::Cancelled`], and those of
    /// [`FineTuner::fit`].
    pub fn cross_validate<D: Dataset + Clone + 'static>(
        self,
        data: &D,
        folds: impl Into<Folds>,
    ) -> Result<CrossValidation> {
        self.validate(&(Arc::new(data.clone()) as Arc<dyn Dataset>), folds.into())
    }

    /// As [`FineTuner::cross_validate`], compiled once for all kinds of datasets.
    fn validate(self, data: &Arc<dyn Dataset>, folds: Folds) -> Result<CrossValidation> {
        let begun = Instant::now();
        if folds.repeats == 0 {
            return Err(Error::invalid("repeats", "0; use at least 1"));
        }
        if self.state.is_some() {
            let problem = "of one training cannot continue a cross-validation, which trains once per fold; \
                           call cross_validate on a tuner without resume";
            return Err(Error::invalid("run state", problem));
        }
        if self.run_dir.is_some() {
            let problem = "holds one training, and a cross-validation trains once per fold; call cross_validate on \
                           a tuner without run_dir";
            return Err(Error::invalid("run directory", problem));
        }
        let (computed, reused) = (self.cache.computed(), self.cache.reused());
        let (mut runs, mut outcomes) = (vec![], vec![(0usize, 0usize); data.len()]);
        for repeat in 0..folds.repeats {
            let seed = of_repeat(self.seed, repeat);
            for (number, (train, valid)) in k_fold(data, folds.k, seed)?.into_iter().enumerate() {
                let fold = self.clone().seed(seed).fold(train, &valid, (repeat, number))?;
                for (&i, &correct) in valid.indices().iter().zip(fold.evaluation.outcomes()) {
                    outcomes[i] = (outcomes[i].0 + usize::from(correct), outcomes[i].1 + 1);
                }
                let (number, top1) = (runs.len() + 1, fold.top1);
                self.listener.tell(&Event::Fold { number, folds: folds.repeats * folds.k, top1 });
                runs.push(fold);
            }
        }
        let nested = self.chooses() && self.advice.is_none();
        let mut result = CrossValidation::new(runs, &outcomes, data, folds, nested);
        (result.computed, result.reused) = (self.cache.computed() - computed, self.cache.reused() - reused);
        result.seconds.total = begun.elapsed().as_secs_f64();
        Ok(result)
    }

    /// Trains on `train`, of which a part chooses the best epoch, and predicts `valid`.
    fn fold(self, train: Subset, valid: &Subset, (repeat, fold): (usize, usize)) -> Result<Fold> {
        let (inner, chooses) = split(&train, INNER, self.seed)?;
        let mut keeper = Keeper { dir: None, cancel: self.cancel.clone() };
        let (mut session, cancelled) =
            self.trained(Arc::new(inner), &(Arc::new(chooses) as Arc<dyn Dataset>), &mut keeper)?;
        if cancelled {
            return Err(Error::Cancelled { what: "the cross-validation", steps: session.steps() });
        }
        let evaluation = session.evaluate_restored(&(Arc::new(valid.clone()) as Arc<dyn Dataset>))?;
        let report = session.report().clone();
        let stops = stops(&report);
        Ok(Fold::new(repeat, fold, report, stops, evaluation))
    }
}

/// The seed of a repeat; of the first, the run's own.
fn of_repeat(seed: u64, repeat: usize) -> u64 {
    if repeat == 0 { seed } else { Fingerprint::new("repeat").number(seed).numbers(&[repeat]).finish() }
}

#[cfg(test)]
mod tests;
