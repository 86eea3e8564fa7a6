//! The result of a cross-validation.

use super::Folds;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::metrics::{Evaluation, Scores, Task, interval_of_units};
use crate::plan::Plan;
use crate::report::{Report, Timings};
use crate::strategy::Strategy;
use crate::train::fine_tuner::FineTuner;
use crate::train::fitted::Fitted;
use crate::train::position::Stop;
use crate::train::refit;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The result of [`FineTuner::cross_validate`]. It prints as a table; [`CrossValidation::to_json`] has everything.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CrossValidation {
    /// The number of folds.
    pub k: usize,
    /// How often the data was split into folds.
    pub repeats: usize,
    /// The mean accuracy of the folds, in [0, 1].
    pub top1: f64,
    /// The standard deviation of the folds' accuracies. It says how much a training varies, not how certain `top1` is:
    /// the folds share most of their training samples.
    pub deviation: f64,
    /// The 95 % confidence interval of the accuracy, over the predictions of all samples (Wilson 1927); where samples
    /// have groups, over groups, since samples of a group are alike.
    pub interval: (f64, f64),
    /// How many groups there are, if samples have groups.
    pub groups: Option<usize>,
    /// All predictions together, each by a training without that sample's fold. With repeats, each sample counts once per
    /// repeat; its own interval takes all predictions for independent, so prefer [`CrossValidation::interval`].
    pub evaluation: Evaluation,
    /// Whether each fold chose its plan, from its own training samples: then the accuracy is that of choosing and
    /// training. Otherwise it is that of a plan which was given.
    pub nested: bool,
    /// The classes.
    pub classes: Vec<String>,
    /// Each fold.
    pub folds: Vec<Fold>,
    /// Rows of features that were computed: an image at a cut of the network.
    pub computed: usize,
    /// Rows of features that were found in the cache.
    pub reused: usize,
    /// Seconds of all folds together.
    pub seconds: Timings,
}

/// One fold of a cross-validation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Fold {
    /// The split into folds, from 1.
    pub repeat: usize,
    /// The fold, from 1.
    pub fold: usize,
    /// Samples of the fold, which were predicted.
    pub samples: usize,
    /// The accuracy on them, in [0, 1].
    pub top1: f64,
    /// The cross entropy on them, in nats.
    pub loss: f64,
    /// The strategy that was followed; `None` for a custom plan.
    pub strategy: Option<Strategy>,
    /// The plan that was followed.
    pub plan: Plan,
    /// The epoch that was best on the fold's own validation samples, from 1.
    pub best_epoch: Option<usize>,
    /// Steps until the best epoch, in each phase.
    pub steps: Vec<usize>,
    /// Seconds of the fold's training.
    pub seconds: f64,
    #[serde(skip)]
    pub(super) evaluation: Evaluation,
    #[serde(skip)]
    pub(super) report: Report,
    #[serde(skip)]
    stops: Vec<Stop>,
}

impl Fold {
    pub(super) fn new(repeat: usize, fold: usize, report: Report, stops: Vec<Stop>, evaluation: Evaluation) -> Self {
        Self {
            repeat: repeat + 1,
            fold: fold + 1,
            samples: evaluation.total,
            top1: evaluation.top1(),
            loss: evaluation.loss,
            strategy: report.strategy,
            plan: report.plan.clone(),
            best_epoch: report.best_epoch,
            steps: stops.iter().map(|stop| stop.made).collect(),
            seconds: report.seconds.advice + report.seconds.features + report.seconds.train + report.seconds.valid,
            evaluation,
            report,
            stops,
        }
    }
}

impl CrossValidation {
    /// `outcomes`: how often each sample was right, and how often it was predicted.
    pub(super) fn new(
        runs: Vec<Fold>,
        outcomes: &[(usize, usize)],
        data: &dyn Dataset,
        folds: Folds,
        nested: bool,
    ) -> Self {
        let n = runs.len().max(1) as f64;
        let mean = runs.iter().map(|fold| fold.top1).sum::<f64>() / n;
        let squares: f64 = runs.iter().map(|fold| (fold.top1 - mean).powi(2)).sum();
        // A sample of several repeats is one sample, right in a fraction of them.
        let mut units: BTreeMap<(Option<u32>, usize), (f64, f64)> = BTreeMap::new();
        for (i, &(correct, times)) in outcomes.iter().enumerate() {
            let group = data.info(i).group;
            let unit = units.entry((group, if group.is_some() { 0 } else { i })).or_default();
            *unit = (unit.0 + correct as f64 / times.max(1) as f64, unit.1 + 1.0);
        }
        let groups = units.keys().filter(|(group, _)| group.is_some()).count();
        let units: Vec<(f64, f64)> = units.into_values().collect();
        let sum = |part: fn(&Timings) -> f64| runs.iter().map(|fold| part(&fold.report.seconds)).sum();
        let seconds = Timings {
            advice: sum(|s| s.advice),
            features: sum(|s| s.features),
            train: sum(|s| s.train),
            valid: sum(|s| s.valid),
            ..Timings::default()
        };
        Self {
            k: folds.k,
            repeats: folds.repeats,
            top1: mean,
            deviation: (squares / (n - 1.0).max(1.0)).sqrt(),
            interval: interval_of_units(&units),
            groups: (groups > 0).then_some(groups),
            evaluation: pooled(runs.iter()),
            nested,
            classes: data.classes().to_vec(),
            folds: runs,
            computed: 0,
            reused: 0,
            seconds,
        }
    }

    /// Trains on all the data, for as many steps as were best: with the plan and the steps of the fold in the middle,
    /// among those of the strategy that most folds followed. `tuner` and `data` are those that were cross-validated.
    ///
    /// The report's validation is the cross-validation's, over all samples; with repeats, that of the first.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 36864.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((12, 3, 32, 32))?;
    /// # let labels = (0..12).map(|i| i % 2).collect();
    /// # let data = TensorDataset::new(images, labels, vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(4);
    /// let tuner = FineTuner::new(backbone).plan(plan);
    /// let validation = tuner.clone().cross_validate(&data, 3)?;
    /// let tuned = validation.refit(tuner, &data)?;
    /// assert_eq!(tuned.report.refit.unwrap().samples, 12);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`FineTuner::fit`], and [`Error::Cancelled`].
    pub fn refit<D: Dataset + Clone + 'static>(&self, tuner: FineTuner, data: &D) -> Result<Fitted> {
        let mut counts: BTreeMap<Option<&str>, usize> = BTreeMap::new();
        let name = |fold: &Fold| fold.strategy.map(Strategy::name);
        self.folds.iter().for_each(|fold| *counts.entry(name(fold)).or_default() += 1);
        let most = counts.iter().max_by_key(|(_, count)| **count).map(|(name, _)| *name);
        let mut folds: Vec<&Fold> = self.folds.iter().filter(|fold| Some(name(fold)) == most).collect();
        folds.sort_by_key(|fold| fold.steps.iter().sum::<usize>());
        let Some(fold) = folds.get(folds.len() / 2) else {
            return Err(Error::invalid("cross-validation", "has no folds"));
        };
        let data: Arc<dyn Dataset> = Arc::new(data.clone());
        let mut report = fold.report.clone();
        // Each sample once: the interval of several predictions of a sample would be too narrow.
        let evaluation = pooled(self.folds.iter().filter(|fold| fold.repeat == 1));
        report.thresholds = evaluation.best_thresholds();
        let (session, mut keeper) = tuner.again(&report, &fold.stops, Arc::clone(&data))?;
        let all = refit::train(session, &report, &mut keeper)?;
        (report.samples.train, report.samples.valid) = (data.len(), Some(evaluation.total));
        (report.valid_top1, report.valid) = (Some(evaluation.top1()), Some(evaluation));
        report.seconds = self.seconds;
        let chosen = if self.nested { "its plan and its number of steps" } else { "its number of steps" };
        let validation = format!("that of the cross-validation, in which each fold chose {chosen}");
        refit::with_report(all, report, validation)
    }

    /// The result as indented JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Error::invalid("cross-validation", format!("cannot be written as JSON: {error}")))
    }
}

/// The predictions of these folds together.
fn pooled<'a>(mut folds: impl Iterator<Item = &'a Fold>) -> Evaluation {
    let none = || Scores::new(Task::Classes).evaluation();
    let first = folds.next().map_or_else(none, |fold| fold.evaluation.clone());
    folds.fold(first, |all, fold| all.join(&fold.evaluation)).summary()
}
