//! The advice: a strategy and a plan, with what was measured and why.

use super::cost::{StrategyCost, table};
use super::evidence::{CurvePoint, Evidence, ViewProbe};
use crate::error::{Error, Result, wrapped};
use crate::forecast::Forecast;
use crate::metrics::Task;
use crate::plan::Plan;
use crate::strategy::{DataSize, Similarity, Strategy};
use serde::Serialize;
use std::fmt::{self, Write as _};

/// A strategy and its plan for a dataset, with the measurements and reasons behind them. It prints as a page.
///
/// Give it to [`FineTuner::plan`](crate::FineTuner::plan) as it is (`advice.plan`), or after edits.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Advice {
    /// Whether there is enough data.
    pub size: DataSize,
    /// Whether the data resembles what the backbone was trained on.
    pub similarity: Similarity,
    /// The strategy of this size and similarity. With little data and better features in earlier stages, a head over all
    /// stages or, of a narrow network, [`Strategy::SmallDifferent`]; where it exceeds a limit or the network does not
    /// support it, a smaller one. The reasons say so.
    pub strategy: Strategy,
    /// The strategy to try if this one disappoints, the first of the rivals; `None` if each of them exceeds a limit or is
    /// not supported.
    pub runner_up: Option<Strategy>,
    /// The strategies that [`Advisor::trial`](crate::Advisor::trial) compares with this one, the likeliest first.
    pub rivals: Vec<Strategy>,
    /// Why, as sentences.
    pub reasons: Vec<String>,
    /// Circumstances under which fine-tuning may not be the answer.
    pub warnings: Vec<String>,
    /// What was measured.
    pub evidence: Evidence,
    /// The short trainings that chose the strategy, if there were any, in order.
    pub trials: Vec<Trial>,
    /// What each strategy takes, in the order of [`Strategy::ALL`].
    pub costs: Vec<StrategyCost>,
    /// The recipe.
    pub plan: Plan,
    /// The memory of a step of the plan.
    pub forecast: Forecast,
}

/// A short training by one strategy's plan ([`Advisor::trial`](crate::Advisor::trial)).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Trial {
    /// The round, from 1.
    pub round: usize,
    /// The strategy.
    pub strategy: Strategy,
    /// Epochs of all phases together; 0 for a plan that trains no phase.
    pub epochs: usize,
    /// Accuracy on the validation data, in [0, 1]; 0 if the training failed.
    pub top1: f64,
    /// Whether it went on to the next round or, in the last one, was chosen.
    pub kept: bool,
    /// Seconds that it took.
    pub seconds: f64,
    /// Why the training failed, if it did.
    pub problem: Option<String>,
}

impl Advice {
    pub(super) fn new(
        (size, similarity): (DataSize, Similarity),
        strategy: Strategy,
        (reasons, warnings): (Vec<String>, Vec<String>),
        evidence: Evidence,
        costs: Vec<StrategyCost>,
        rivals: Vec<Strategy>,
    ) -> Result<Self> {
        let planned = costs.iter().find(|cost| cost.strategy == strategy).and_then(|cost| cost.plan.clone());
        let Some((mut plan, forecast)) = planned else {
            return Err(Error::invalid("advice", format!("there is no plan for {strategy}")));
        };
        plan.reasons.splice(0..0, reasons.iter().cloned());
        let (runner_up, trials) = (rivals.first().copied(), vec![]);
        Ok(Self {
            size,
            similarity,
            strategy,
            runner_up,
            rivals,
            reasons,
            warnings,
            evidence,
            trials,
            costs,
            plan,
            forecast,
        })
    }

    /// The plan of another strategy, made with what was seen of the data; `None` if the network does not support it.
    pub fn plan_of(&self, strategy: Strategy) -> Option<&Plan> {
        let cost = self.costs.iter().find(|cost| cost.strategy == strategy)?;
        cost.plan.as_ref().map(|(plan, _)| plan)
    }

    /// The same measurements with what trials chose, and why.
    pub(crate) fn chosen_by(mut self, trials: Vec<Trial>, strategy: Strategy, reason: String) -> Result<Self> {
        let mut others: Vec<Strategy> = std::iter::once(self.strategy).chain(self.rivals.clone()).collect();
        others.retain(|other| *other != strategy);
        self.reasons.push(reason);
        let quadrant = (self.size, self.similarity);
        let said = (self.reasons, self.warnings);
        let advice = Self::new(quadrant, strategy, said, self.evidence, self.costs, others)?;
        Ok(Self { trials, ..advice })
    }

    /// The advice as indented JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Error::invalid("advice", format!("cannot be written as JSON: {error}")))
    }

    fn describe(&self, f: &mut String) -> fmt::Result {
        let Evidence { task, size, samples, stages, together, learning_curve, views, seconds } = &self.evidence;
        writeln!(f, "{} images of {} classes, {} to {} of a class", size.samples, size.classes, size.least, size.most)?;
        if *task == Task::Labels {
            writeln!(f, "  each is counted under its rarest label; those without labels form a class of their own")?;
        }
        writeln!(f, "  {samples} of them went through the frozen network and its probes, in {seconds:.1} s\n")?;
        writeln!(f, "  accuracy of classifiers on the features after each stage, each image judged by the others:")?;
        writeln!(f, "  {:<16} {:>8} {:>11} {:>8} {:>11}", "", "mean", "", "4 x 4", "")?;
        writeln!(f, "  {:<16} {:>8} {:>11} {:>8} {:>11}", "stage", "linear", "neighbours", "linear", "neighbours")?;
        for stage in stages {
            let (mean, grid) = (&stage.mean, &stage.grid);
            writeln!(
                f,
                "  {:<16} {:>8.3} {:>11.3} {:>8.3} {:>11.3}",
                stage.stage, mean.ridge, mean.neighbours, grid.ridge, grid.neighbours
            )?;
        }
        if let Some(together) = together {
            writeln!(f, "  {:<16} {:>28.3} {:>11.3}", "all together", together.ridge, together.neighbours)?;
        }
        if let [less @ .., _] = &learning_curve[..]
            && !less.is_empty()
        {
            let of = |point: &CurvePoint| format!("{:.3} with {}", point.top1, point.samples);
            let points: Vec<String> = learning_curve.iter().map(of).collect();
            writeln!(f, "\n  all together, by the number of images: {}", points.join(", "))?;
        }
        if let Some(views) = views {
            let ViewProbe { samples, top1, mirrored, cropped } = views;
            writeln!(
                f,
                "\n  of {samples} images: as they are {top1:.3}, mirrored {mirrored:.3}, cropped {cropped:.3}"
            )?;
        }
        let size = if self.size == DataSize::Small { "little" } else { "much" };
        let similarity = if self.similarity == Similarity::Similar { "similar" } else { "different" };
        writeln!(f, "\n{size} data, {similarity}: {}", self.strategy)?;
        for reason in &self.reasons {
            writeln!(f, "  because {reason}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        if let Some(runner_up) = self.runner_up {
            writeln!(f, "  next to try: {runner_up}")?;
        }
        if !self.trials.is_empty() {
            writeln!(f, "\ntrials, by the accuracy on the validation data:")?;
        }
        for Trial { round, strategy, epochs, top1, kept, seconds, problem } in &self.trials {
            let end = if *kept { "" } else { ", dropped" };
            let name = strategy.name();
            writeln!(f, "  round {round}  {name:<16} {epochs:>3} epochs {top1:>8.3} {seconds:>8.1} s{end}")?;
            if let Some(problem) = problem {
                writeln!(f, "    {problem}")?;
            }
        }
        writeln!(f, "\nminutes of training on this machine, and memory of a step:")?;
        table(&self.costs, f)?;
        writeln!(f, "\nthe plan, whose steps take {}", self.forecast)?;
        write!(f, "{}", self.plan)
    }
}

/// At most 80 columns wide.
impl fmt::Display for Advice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.describe(&mut text)?;
        out.write_str(&wrapped(&text))
    }
}
