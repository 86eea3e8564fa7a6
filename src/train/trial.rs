//! Short trainings of the plans that could be best.

use super::fine_tuner::FineTuner;
use super::run_dir::Keeper;
use crate::advisor::{Advice, Advisor, Trial};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::metrics::Evaluation;
use crate::plan::Plan;
use crate::strategy::Strategy;
use std::sync::Arc;
use std::time::Instant;

/// The share of its plan that each candidate is trained for, round by round: one is dropped in each but the last.
const ROUNDS: [f64; 2] = [0.125, 0.5];

impl Advisor {
    /// Advises as [`Advisor::advise`] does, and compares the strategy with its rivals ([`Advice::rivals`]) in short
    /// trainings, by successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): with two rivals all are trained
    /// for an eighth of their plans and the worst is dropped; the two that remain are trained for half of their plans.
    ///
    /// A rival must be right for more of the validation samples, by more than the standard error of the comparison:
    /// otherwise the advice stands. The features of frozen blocks are computed once for all ([`Advisor::cache`]). It
    /// takes about as long as one to one and a half trainings. The validation data has chosen the strategy then, so that
    /// the accuracy on it flatters; another part, for a test, does not.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{Device, Tensor}};
    /// use candle_finetune::{Advisor, FineTuner};
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let data = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// let (train, valid) = candle_finetune::split(&data, 0.25, 0)?;
    /// let advice = Advisor::new(&backbone).trial(&train, &valid)?;
    /// for trial in &advice.trials {
    ///     println!("round {}: {} {:.3}", trial.round, trial.strategy, trial.top1);
    /// }
    /// let tuner = FineTuner::new(backbone).advice(&advice);
    /// # let _ = tuner;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Advisor::advise`] and [`FineTuner::fit`]. A rival whose training diverges is dropped.
    pub fn trial<D, V>(&self, train: &D, valid: &V) -> Result<Advice>
    where
        D: Dataset + Clone + 'static,
        V: Dataset + Clone + 'static,
    {
        self.trial_on(&(Arc::new(train.clone()) as Arc<dyn Dataset>), &(Arc::new(valid.clone()) as Arc<dyn Dataset>))
    }

    /// As [`Advisor::trial`], compiled once for all kinds of datasets.
    fn trial_on(&self, train: &Arc<dyn Dataset>, valid: &Arc<dyn Dataset>) -> Result<Advice> {
        let begun = Instant::now();
        let mut advice = self.advise_on(train)?;
        let advised = advice.strategy;
        let mut left: Vec<Strategy> = std::iter::once(advised).chain(advice.rivals.iter().copied()).collect();
        let (mut trials, mut last) = (vec![], vec![]);
        // With one rival there is nobody to drop before the last round.
        let rounds = &ROUNDS[ROUNDS.len().saturating_sub(left.len() - 1)..];
        for (round, &share) in rounds.iter().enumerate() {
            let mut entries = vec![];
            for &strategy in &left {
                let plan = advice.plan_of(strategy).cloned();
                let plan = plan.ok_or_else(|| Error::invalid("trial", format!("there is no plan for {strategy}")))?;
                entries.push(self.entry(round + 1, strategy, shortened(plan, share), (train, valid))?);
            }
            let keep = if round + 1 < rounds.len() { left.len() - 1 } else { 1 };
            left = ranked(&entries, advised);
            left.truncate(keep);
            for (trial, _) in &mut entries {
                trial.kept = left.contains(&trial.strategy);
                tracing::info!("trial: {} {:.3} after {} epochs", trial.strategy, trial.top1, trial.epochs);
            }
            trials.extend(entries.iter().map(|(trial, _)| trial.clone()));
            last = entries;
        }
        if last.is_empty() {
            return Ok(advice);
        }
        let chosen = left.first().copied().unwrap_or(advised);
        let of = |(trial, evaluation): &(Trial, Option<Evaluation>)| {
            let images = evaluation.as_ref().map_or(String::new(), |e| format!(" of {} images", e.total));
            format!("{} was right for {:.3}{images}", trial.strategy, trial.top1)
        };
        let figures: Vec<String> = last.iter().map(of).collect();
        let figures = figures.join(", ");
        let reason = if chosen == advised {
            format!("in short trainings no rival was better by more than the error of the comparison: {figures}")
        } else {
            format!("in short trainings {chosen} was the best: {figures}")
        };
        advice = advice.chosen_by(trials, chosen, reason)?;
        advice.evidence.seconds = begun.elapsed().as_secs_f64();
        Ok(advice)
    }

    /// A short training, and its evaluation unless it failed.
    fn entry(
        &self,
        round: usize,
        strategy: Strategy,
        plan: Plan,
        (train, valid): (&Arc<dyn Dataset>, &Arc<dyn Dataset>),
    ) -> Result<(Trial, Option<Evaluation>)> {
        let begun = Instant::now();
        let epochs = plan.total_epochs();
        let tuner = FineTuner::new(self.backbone.clone()).plan(plan).head(self.head).seed(self.seed).cache(&self.cache);
        let tuner = self.workers.into_iter().fold(tuner, FineTuner::workers);
        let evaluated = tuner
            .trained(Arc::clone(train), valid, &mut Keeper::default())
            .and_then(|(mut session, _)| session.evaluate_restored(valid));
        let (evaluation, problem) = match evaluated {
            Ok(evaluation) => (Some(evaluation), None),
            Err(error @ (Error::Diverged(_) | Error::NotFinite { .. } | Error::Audit { .. })) => {
                (None, Some(error.to_string()))
            }
            Err(error) => return Err(error),
        };
        let top1 = evaluation.as_ref().map_or(0.0, Evaluation::top1);
        let seconds = begun.elapsed().as_secs_f64();
        Ok((Trial { round, strategy, epochs, top1, kept: false, seconds, problem }, evaluation))
    }
}

/// A share of a plan: of the epochs of each phase, but at least one.
fn shortened(mut plan: Plan, share: f64) -> Plan {
    for phase in &mut plan.phases {
        phase.epochs = ((phase.epochs as f64 * share).round() as usize).clamp(1, phase.epochs.max(1));
    }
    plan
}

/// The strategies, the best first: rivals that are right for more samples than the advised one by more than the standard
/// error of the difference, the advised one, the others; among themselves by their right answers.
fn ranked(entries: &[(Trial, Option<Evaluation>)], advised: Strategy) -> Vec<Strategy> {
    let known = entries.iter().find(|(trial, _)| trial.strategy == advised).and_then(|(_, of)| of.as_ref());
    let rank = |(trial, evaluation): &(Trial, Option<Evaluation>)| {
        let Some(evaluation) = evaluation else { return (0, 0) };
        let group = match known {
            _ if trial.strategy == advised => 2,
            None => 1,
            Some(known) => {
                let pairs = evaluation.outcomes().iter().zip(known.outcomes());
                let differ = pairs.filter(|(a, b)| a != b).count();
                let gain = evaluation.correct.saturating_sub(known.correct);
                // The error of a difference of pairs is the root of their number.
                if gain * gain > differ { 3 } else { 1 }
            }
        };
        (group, evaluation.correct)
    };
    let mut order: Vec<_> = entries.iter().map(|entry| (rank(entry), entry.0.strategy)).collect();
    order.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    order.into_iter().map(|(_, strategy)| strategy).collect()
}

#[cfg(test)]
mod tests;
