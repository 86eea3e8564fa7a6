//! The advice: a strategy and a plan, with what was measured and why.

use super::evidence::Evidence;
use crate::error::{Error, Result, wrapped};
use crate::forecast::Forecast;
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
    /// The strategy of this size and similarity.
    pub strategy: Strategy,
    /// The strategy to try if this one disappoints.
    pub runner_up: Strategy,
    /// Why, as sentences.
    pub reasons: Vec<String>,
    /// Circumstances under which fine-tuning may not be the answer.
    pub warnings: Vec<String>,
    /// What was measured.
    pub evidence: Evidence,
    /// The recipe.
    pub plan: Plan,
    /// The memory of a step of the plan.
    pub forecast: Forecast,
}

impl Advice {
    /// The advice as indented JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Error::invalid("advice", format!("cannot be written as JSON: {error}")))
    }

    fn describe(&self, f: &mut String) -> fmt::Result {
        let Evidence { size, samples, stages, seconds } = &self.evidence;
        writeln!(f, "{} images of {} classes, {} to {} of a class", size.samples, size.classes, size.least, size.most)?;
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
        let size = if self.size == DataSize::Small { "little" } else { "much" };
        let similarity = if self.similarity == Similarity::Similar { "similar" } else { "different" };
        writeln!(f, "\n{size} data, {similarity}: {}", self.strategy)?;
        for reason in &self.reasons {
            writeln!(f, "  because {reason}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        writeln!(f, "  next to try: {}", self.runner_up)?;
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
