//! A cross-validation as text, at most 80 columns wide.

use super::CrossValidation;
use crate::strategy::Strategy;
use std::fmt;

impl fmt::Display for CrossValidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} folds", self.k)?;
        if self.repeats > 1 {
            write!(f, ", {} times", self.repeats)?;
        }
        let chosen = if self.nested { "each fold chose its plan" } else { "the plan was given" };
        writeln!(f, "; {chosen}")?;
        if self.repeats > 1 {
            write!(f, "  repeat")?;
        }
        writeln!(f, "  fold  samples    top1    loss  best epoch  seconds  strategy")?;
        for fold in &self.folds {
            if self.repeats > 1 {
                write!(f, "  {:>6}", fold.repeat)?;
            }
            let best = fold.best_epoch.map_or("-".into(), |epoch| format!("{epoch}/{}", fold.plan.total_epochs()));
            writeln!(
                f,
                "  {:>4}  {:>7}  {:.4}  {:>6.4}  {best:>10}  {:>7.1}  {}",
                fold.fold,
                fold.samples,
                fold.top1,
                fold.loss,
                fold.seconds,
                fold.strategy.map_or("custom plan", Strategy::name)
            )?;
        }
        let (low, high) = self.interval;
        writeln!(f, "  mean of the folds {:.4}, deviation {:.4}", self.top1, self.deviation)?;
        write!(f, "  95 % interval {low:.4} - {high:.4}, over all predictions")?;
        if let Some(groups) = self.groups {
            write!(f, " by {groups} groups")?;
        }
        writeln!(f, "\n  features: {} rows computed, {} reused", self.computed, self.reused)?;
        writeln!(f, "  {}", self.seconds)?;
        write!(f, "{}", self.evaluation)
    }
}
