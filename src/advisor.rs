//! Measures a dataset against a backbone, and advises a strategy.

mod advice;
mod candidate;
mod cost;
mod evidence;
mod limits;
mod measure;
mod policy;
mod speed;
mod views;

pub use advice::{Advice, Trial};
pub use cost::StrategyCost;
pub use evidence::{CurvePoint, Evidence, Probe, SizeFigures, StageProbe, ViewProbe};

use crate::backbone::Backbone;
use crate::data::Dataset;
use crate::error::Result;
use crate::features::FeatureCache;
use crate::forecast::Workload;
use crate::head::Head;
use crate::strategy::{Seen, Strategy, is_narrow};
use candidate::Candidate;
use cost::choose;
use limits::Limits;
use policy::Policy;
use speed::Speed;
use std::sync::Arc;
use std::time::Instant;

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
/// Only training data should be shown to it. The strategy depends on the seed alone, through the sample that is taken of
/// more than 800 images, unless a budget is set: the advisor also forecasts the minutes and the memory of each strategy
/// ([`Advice::costs`]), and a strategy beyond [`Advisor::budget`] or [`Advisor::memory`] gives way to a smaller one.
pub struct Advisor {
    pub(crate) backbone: Backbone,
    pub(crate) head: Head,
    pub(crate) cache: FeatureCache,
    pub(crate) workers: Option<usize>,
    pub(crate) seed: u64,
    valid: Option<usize>,
    limits: Limits,
}

/// The share of validation samples that is assumed, of the training samples.
const VALID: f64 = 0.15;

impl Advisor {
    /// An advisor for this backbone, with seed 0.
    pub fn new(backbone: &Backbone) -> Self {
        let (backbone, head) = (backbone.clone(), Head::linear());
        let (cache, limits) = (FeatureCache::new(), Limits::default());
        Self { backbone, head, cache, workers: None, seed: 0, valid: None, limits }
    }

    /// Sets the head that will be trained, for the forecasts of time and memory.
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

    /// Sets the number of validation samples, for the forecast of time. By default 15 % of the training samples are
    /// assumed.
    pub fn valid(mut self, samples: usize) -> Self {
        self.valid = Some(samples);
        self
    }

    /// Sets how many minutes the training may take on this machine, as forecast in [`StrategyCost::minutes`]. A
    /// strategy that would take longer, or whose minutes are unknown, gives way to one that takes less:
    /// [`Strategy::LargeSimilar`] and [`Strategy::LargeDifferent`] to [`Strategy::SmallDifferent`], and that one to
    /// [`Strategy::SmallSimilar`]. The reasons say so.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{Device, Tensor}};
    /// use candle_finetune::{Advisor, Error};
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// let advice = Advisor::new(&backbone).budget(600.0).memory(4 << 30).advise(&train)?;
    /// for cost in &advice.costs {
    ///     println!("{}: {:?} minutes, {:?} bytes", cost.strategy, cost.minutes, cost.memory);
    /// }
    /// let none = Advisor::new(&backbone).budget(0.0).advise(&train);
    /// assert!(matches!(none, Err(Error::NoStrategyFits { .. })));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn budget(mut self, minutes: f64) -> Self {
        self.limits.minutes = Some(minutes);
        self
    }

    /// Sets how many bytes a training step may take, as [`Plan::forecast`](crate::Plan::forecast) knows them. A
    /// strategy that would take more, or whose memory is unknown, gives way as for [`Advisor::budget`].
    pub fn memory(mut self, bytes: usize) -> Self {
        self.limits.memory = Some(bytes);
        self
    }

    /// Measures the training data and advises a strategy and a plan. The features that are looked at take 256 MB at
    /// most.
    ///
    /// An image with a list of labels is measured under its rarest label ([`Evidence::task`]).
    ///
    /// A strategy that the network does not support, since it cannot be trained, gives way as for [`Advisor::budget`].
    ///
    /// # Errors
    /// For data without samples or with one class, and if a sample cannot be read;
    /// [`Error::NoStrategyFits`](crate::Error::NoStrategyFits) if no strategy fits the limits, and
    /// [`Error::Invalid`](crate::Error::Invalid) for a budget that is no number of minutes.
    pub fn advise<D: Dataset + Clone + 'static>(&self, data: &D) -> Result<Advice> {
        self.advise_on(&(Arc::new(data.clone()) as Arc<dyn Dataset>))
    }

    /// As [`Advisor::advise`], compiled once for all kinds of datasets.
    pub(crate) fn advise_on(&self, data: &Arc<dyn Dataset>) -> Result<Advice> {
        self.limits.check()?;
        let begun = Instant::now();
        let (policy, backbone) = (Policy::DEFAULT, &self.backbone);
        let mut evidence = measure::measure(backbone, data, &policy, &self.cache, self.workers, self.seed)?;
        let (similarity, fits) = policy.similarity(&evidence);
        let (size, enough) = policy.size(&evidence, similarity);
        // Stages after the one that separates the classes best are worth training.
        let peak = Policy::worth_freezing(&evidence).map(|stage| stage.stage.as_str());
        let most =
            backbone.blocks().iter().rposition(|block| Some(block.stage.as_str()) == peak).map_or(1, |at| at + 1);
        let mut reasons = vec![fits, enough];
        let quadrant = Strategy::new(size, similarity);
        let (mut wanted, better) = policy.way(quadrant, &evidence, is_narrow(backbone));
        if wanted.plan(backbone, data.len()).head(self.head).is_ok() {
            reasons.extend(better);
        } else {
            // The user's head cannot see all stages.
            wanted = quadrant;
        }
        let mut seen = Seen { most_frozen: most, views: None };
        // A head is trained on the features of images as they are.
        if !matches!(wanted, Strategy::SmallSimilar | Strategy::Intermediate) {
            evidence.views = views::measure_views(backbone, data, policy.views, &self.cache, self.workers, self.seed)?;
            let views = evidence.views.as_ref().and_then(|probe| policy.views(probe, evidence.size.classes));
            reasons.extend(views.as_ref().map(|(_, reason)| reason.clone()));
            seen.views = views.map(|(views, _)| views);
        }
        let plan = |strategy: Strategy| strategy.plan_seen(backbone, data.len(), &seen);
        let mut warnings = warnings(&policy, &evidence);

        let load = Workload {
            train: data.len(),
            valid: self.valid.unwrap_or((data.len() as f64 * VALID).round() as usize),
            cache: self.cache.room_bytes(backbone.inner.profile.dtype),
        };
        let head = (self.head, data.classes().len());
        let candidates = Candidate::all(backbone, head, &load, &self.limits, plan)?;
        let speed = Speed::measure(backbone, head, &candidates, (data, self.workers)).unwrap_or_else(|error| {
            warnings.push(format!("the minutes are unknown, since a training step failed: {error}"));
            Speed::default()
        });
        let costs: Vec<StrategyCost> =
            candidates.into_iter().map(|candidate| StrategyCost::new(candidate, &speed, &self.limits)).collect();
        let (strategy, beyond) = choose(wanted, &costs, &self.limits)?;
        reasons.extend(beyond);
        let rivals = policy.rivals(strategy, &evidence).into_iter();
        let rivals = rivals.filter(|rival| costs.iter().any(|cost| cost.strategy == *rival && cost.fits())).collect();
        evidence.seconds = begun.elapsed().as_secs_f64();
        Advice::new((size, similarity), strategy, (reasons, warnings), evidence, costs, rivals)
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
    if size.most as f64 > policy.unbalanced * size.least.max(1) as f64 {
        warnings.push(format!(
            "the classes are unbalanced, {} to {} images: top-1 hides how the small ones do; look at the recall of each class",
            size.least, size.most
        ));
    }
    let curve = &evidence.learning_curve;
    // Where all images were looked at: otherwise there are more already.
    if let (Some(gain), [.., half, all]) = (evidence.gain(), &curve[..])
        && all.samples == size.samples
        && gain > policy.gain.max(2.0 * evidence.error(all.top1))
    {
        warnings.push(format!(
            "more images would help: with {} of them the features are right for {:.3}, with {} for {:.3}",
            half.samples, half.top1, all.samples, all.top1
        ));
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
