//! Measures a dataset against a backbone, and advises a strategy.

mod advice;
mod evidence;
mod measure;
mod policy;

pub use advice::Advice;
pub use evidence::{Evidence, Probe, SizeFigures, StageProbe};

use crate::backbone::Backbone;
use crate::data::Dataset;
use crate::error::Result;
use crate::features::FeatureCache;
use crate::head::Head;
use crate::strategy::Strategy;
use policy::{Policy, runner_up};
use std::sync::Arc;

/// Chooses a [`Strategy`] for a dataset by measuring it.
///
/// A sample of the images passes the frozen network once, and linear classifiers on the features after each stage tell
/// where the network separates their classes best. Similar data peaks at the end of the network, different data
/// earlier. With the number of images, that gives the quadrant.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{Device, Tensor}};
/// use candle_finetune::{Advisor, FineTuner};
///
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// let advice = Advisor::new(&backbone).advise(&train)?;
/// println!("{advice}"); // what was measured, the strategy, why, and the plan
/// let tuner = FineTuner::new(backbone).plan(advice.plan);
/// # let _ = tuner;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// Only training data should be shown to it. The result depends on the seed alone, through the sample that is taken of
/// more than 800 images.
pub struct Advisor {
    backbone: Backbone,
    head: Head,
    cache: FeatureCache,
    workers: Option<usize>,
    seed: u64,
}

impl Advisor {
    /// An advisor for this backbone, with seed 0.
    pub fn new(backbone: &Backbone) -> Self {
        let (backbone, head) = (backbone.clone(), Head::linear());
        Self { backbone, head, cache: FeatureCache::new(), workers: None, seed: 0 }
    }

    /// Sets the head that will be trained, for the forecast of memory.
    pub fn head(mut self, head: Head) -> Self {
        self.head = head;
        self
    }

    /// Sets the cache that keeps the features. Share it with [`FineTuner::cache`](crate::FineTuner::cache), and the
    /// training of a head finds them there.
    pub fn cache(mut self, cache: &FeatureCache) -> Self {
        self.cache = cache.clone();
        self
    }

    /// Sets the number of threads that decode images. The advice does not depend on it.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the seed by which a sample is taken of large data.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Measures the training data and advises a strategy and a plan. The features that are looked at take 256 MB at
    /// most.
    ///
    /// # Errors
    /// For data without samples or with one class, for label sets, and if a sample cannot be read.
    pub fn advise<D: Dataset + Clone + 'static>(&self, data: &D) -> Result<Advice> {
        self.advise_on(&(Arc::new(data.clone()) as Arc<dyn Dataset>))
    }

    /// As [`Advisor::advise`], compiled once for all kinds of datasets.
    pub(crate) fn advise_on(&self, data: &Arc<dyn Dataset>) -> Result<Advice> {
        let (policy, backbone) = (Policy::DEFAULT, &self.backbone);
        let evidence = measure::measure(backbone, data, &policy, &self.cache, self.workers, self.seed)?;
        let (similarity, fits) = policy.similarity(&evidence);
        let (size, enough) = policy.size(&evidence, similarity);
        let strategy = Strategy::new(size, similarity);
        // Stages after the one that separates the classes best are worth training.
        let peak = Policy::worth_freezing(&evidence).map(|stage| stage.stage.as_str());
        let most =
            backbone.blocks().iter().rposition(|block| Some(block.stage.as_str()) == peak).map_or(1, |at| at + 1);
        let mut plan = strategy.plan_freezing(backbone, data.len(), most);
        let reasons = vec![fits, enough];
        plan.reasons.splice(0..0, reasons.iter().cloned());
        let forecast = plan.forecast(backbone, self.head, data.classes().len())?;
        let warnings = warnings(&policy, &evidence);
        Ok(Advice {
            size,
            similarity,
            strategy,
            runner_up: runner_up(strategy),
            reasons,
            warnings,
            evidence,
            plan,
            forecast,
        })
    }
}

/// Circumstances under which fine-tuning may not be the answer.
fn warnings(policy: &Policy, evidence: &Evidence) -> Vec<String> {
    let mut warnings = vec![];
    let size = &evidence.size;
    if size.least < policy.few {
        let least = size.least;
        warnings.push(format!("the smallest class has {least} images, too few to tell how well it will be recognised"));
    }
    let guess = size.most as f64 / size.samples.max(1) as f64;
    if let Some((stage, grid)) = evidence.best() {
        let top1 = if grid { stage.grid.ridge } else { stage.mean.ridge };
        if top1 <= guess + 2.0 * evidence.error(guess) {
            warnings.push(format!(
                "no stage's features separate the classes: {top1:.3} at best, and always naming the largest class is \
                 right for {guess:.3}; check the labels, or take more images or another backbone"
            ));
        }
    }
    warnings
}
