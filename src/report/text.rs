//! Reports as text, at most 80 columns wide.

use super::{Averaged, EpochReport, FeatureCounts, HeadFit, Refit, Report, Timings};
use crate::error::wrapped;
use crate::metrics::{Evaluation, Metric, Task};
use crate::strategy::Strategy;
use std::fmt::{self, Write as _};

impl Report {
    /// The settings before training: the data, the plan with its reasons, settings made by hand, warnings.
    pub fn header(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "{} on {} samples of {} classes, {} x {} pixels: {}",
            self.arch,
            self.samples.train,
            self.classes.len(),
            self.input_size.0,
            self.input_size.1,
            self.strategy.map_or("custom plan", Strategy::name)
        );
        let _ = write!(text, "{}", self.plan);
        for setting in &self.overrides {
            let _ = writeln!(text, "  set by hand: {setting}");
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "  warning: {warning}");
        }
        wrapped(&text)
    }

    /// A row per epoch, with the best marked, then the parameters of each stage.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let open = !matches!(self.metric, Metric::Top1 | Metric::Loss);
        if open {
            let _ = writeln!(text, "  metric: {} of the validation data", self.metric);
        }
        let column = if open { "metric" } else { "top1" };
        let _ = writeln!(text, "  phase epoch       lr   train loss   top1   valid loss {column:>6}   seconds");
        if let Some(fit) = &self.head_fit {
            let best = if self.best_epoch == Some(0) { "  best" } else { "" };
            let loss = optional(fit.valid_loss);
            let metric = if open { "-".to_string() } else { optional(fit.valid_top1) };
            let _ = writeln!(text, "  {:>14}   {:>23}   {loss:>10} {metric:>6}   {:>7}{best}", "head fitted", "", "");
        }
        for (i, epoch) in self.epochs.iter().enumerate() {
            let best = if self.best_epoch == Some(i + 1) { "  best" } else { "" };
            let _ = writeln!(
                text,
                "  {:>5} {:>5} {:>8.1e}   {:>10.4} {:>6}   {:>10} {:>6}   {:>7.2}{best}",
                epoch.phase,
                epoch.epoch,
                epoch.lr,
                epoch.train_loss,
                optional(epoch.train_top1),
                optional(epoch.valid_loss),
                optional(if open { epoch.valid_metric } else { epoch.valid_top1 }),
                epoch.seconds,
            );
        }
        let _ = writeln!(text, "\n  {:<14} {:>12} {:>12}", "stage", "trainable", "frozen");
        for stage in &self.parameters.stages {
            let _ = writeln!(text, "  {:<14} {:>12} {:>12}", stage.name, stage.learning, stage.frozen);
        }
        let _ = writeln!(text, "  {:<14} {:>12} {:>12}", "all", self.parameters.learning, self.parameters.frozen);
        text
    }

    fn task(&self) -> Task {
        self.valid.as_ref().or(self.test.as_ref()).map_or(Task::Classes, Evaluation::task)
    }

    /// Which epoch was kept, and why.
    pub(crate) fn kept(&self) -> String {
        let count = self.epochs.len();
        if self.best_epoch == Some(0) && count == 0 {
            return "the fitted head".into();
        }
        let epoch = |best: usize| best.checked_sub(1).and_then(|at| self.epochs.get(at));
        let fitted = self.head_fit.as_ref().and_then(|fit| fit.valid_top1);
        let Some((best, top1)) = self.best_epoch.and_then(|best| match best {
            0 => Some((best, fitted)),
            _ if self.averaged => Some((best, epoch(best)?.averaged.map(|averaged| averaged.top1))),
            _ => Some((best, epoch(best)?.valid_top1)),
        }) else {
            let weights = if self.averaged { "the averaged weights" } else { "the weights" };
            let whole = if self.stopped.is_some() { " and what was trained after them" } else { "" };
            return format!("{weights} at the end of {count} epochs{whole}");
        };
        let averaged = self.epochs.iter().filter_map(|e| e.averaged).map(|averaged| averaged.top1);
        let most = self.epochs.iter().filter_map(|e| e.valid_top1).chain(averaged).chain(fitted).fold(0.0, f64::max);
        let weights = if self.averaged { "the averaged weights of " } else { "" };
        let reason = if self.metric != Metric::Top1 {
            format!("the best validation {}", self.metric.name().replace('_', " "))
        } else if top1 == Some(most) {
            "the best validation accuracy".to_string()
        } else {
            format!("lowest loss within one standard error of the best accuracy, {most:.4}")
        };
        match epoch(best).filter(|_| self.plan.phases.len() > 1) {
            Some(epoch) => {
                format!("{weights}epoch {} of phase {} ({best} of {count} in all): {reason}", epoch.epoch, epoch.phase)
            }
            None if best == 0 => format!("the fitted head, before {count} epochs of training: {reason}"),
            None => format!("{weights}epoch {best} of {count}: {reason}"),
        }
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |v| format!("{v:.4}"))
}

/// `validation  0.9444    34/36  0.8186 - 0.9846           0.5556  0.1234`
fn row(part: &str, e: &Evaluation) -> String {
    let (low, high) = e.interval();
    let count = format!("{}/{}", e.correct, e.total);
    // With lists of labels the largest class is no baseline.
    let largest = match e.task() {
        Task::Labels => String::new(),
        Task::Classes => format!("{:>13.4}  ", e.largest_class()),
    };
    format!("  {part:<10}  {:.4}  {count:>11}  {low:.4} - {high:.4}  {largest}{:.4}", e.top1(), e.loss)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strategy = self.strategy.map_or("custom plan", Strategy::name);
        let (train, classes) = (self.samples.train, self.classes.len());
        writeln!(f, "{} on {train} samples of {classes} classes: {strategy}", self.arch)?;
        for setting in &self.overrides {
            f.write_str(&wrapped(&format!("  set by hand: {setting}")))?;
        }
        if let Some(stopped) = &self.stopped {
            f.write_str(&wrapped(&format!("  {stopped}")))?;
        }
        if let Some(skipped) = self.skipped.filter(|&skipped| skipped > 0) {
            writeln!(f, "  {skipped} broken samples were skipped")?;
        }
        if let Some(fit) = &self.head_fit {
            f.write_str(&wrapped(&format!("  {fit}")))?;
        }
        let all = self.parameters.learning + self.parameters.frozen;
        let percent = 100.0 * self.parameters.learning as f64 / all.max(1) as f64;
        writeln!(f, "  trained {} of {all} parameters ({percent:.1} %)", self.parameters.learning)?;
        f.write_str(&wrapped(&format!("  kept {}", self.kept())))?;
        let parts = [("validation", &self.valid), ("test", &self.test)];
        if parts.iter().any(|(_, e)| e.is_some()) {
            let (share, baseline) = match self.task() {
                Task::Labels => ("exact", ""),
                Task::Classes => ("top1 ", "  largest class"),
            };
            writeln!(f, "  part        {share}       correct    95 % interval{baseline}  loss")?;
        }
        for (part, evaluation) in parts {
            if let Some(evaluation) = evaluation {
                writeln!(f, "{}", row(part, evaluation))?;
            }
        }
        for (part, evaluation) in parts {
            if let Some(e) = evaluation.as_ref().filter(|e| e.task() == Task::Labels) {
                let precision = optional(e.average_precision());
                writeln!(f, "  {part:<10}  macro F1 {:.4}, average precision {precision}", e.macro_f1())?;
            }
        }
        if let Some(thresholds) = &self.thresholds {
            let (low, high) = thresholds.iter().fold((1f32, 0f32), |(low, high), &t| (low.min(t), high.max(t)));
            let text = format!(
                "  a threshold for each label, {low:.2} to {high:.2}, by the highest F1 on the validation data"
            );
            f.write_str(&wrapped(&text))?;
        }
        if let Some(refit) = &self.refit {
            f.write_str(&wrapped(&format!("  {refit}")))?;
        }
        let FeatureCounts { computed, reused } = self.features;
        if computed + reused > 0 {
            writeln!(f, "  features of frozen blocks: {computed} rows computed, {reused} reused")?;
        }
        write!(f, "  {}", self.seconds)?;
        if let Some(peak) = self.peak_rss_mb {
            write!(f, "; peak memory {peak:.0} MB")?;
        }
        writeln!(f)
    }
}

/// `4.2 s: advice 1.9, features 2.0, training 0.2, validation 0.1`
impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s: ", self.total)?;
        if self.advice > 0.0 {
            write!(f, "advice {:.1}, ", self.advice)?;
        }
        write!(f, "features {:.1}, training {:.1}, validation {:.1}", self.features, self.train, self.valid)?;
        if self.checkpoints > 0.0 { write!(f, ", checkpoints {:.1}", self.checkpoints) } else { Ok(()) }
    }
}

/// One sentence.
impl fmt::Display for Refit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, validation, .. } = self;
        match self.steps.iter().sum::<usize>() {
            0 => write!(f, "fitted once more to all {samples} samples")?,
            steps => write!(f, "trained once more on all {samples} samples, for {steps} steps")?,
        }
        write!(f, "; the validation accuracy is {validation}")
    }
}

/// `head fitted to 1884 samples, 3563 of 35632 columns, left-out top1 0.9889, valid loss 0.0512 top1 0.9861`
impl fmt::Display for HeadFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, kept, columns, top1, .. } = self;
        write!(f, "head fitted to {samples} samples, {kept} of {columns} columns, left-out top1 {top1:.4}")?;
        match (self.valid_loss, self.valid_top1) {
            (Some(loss), Some(top1)) => write!(f, ", valid loss {loss:.4} top1 {top1:.4}"),
            _ => Ok(()),
        }
    }
}

/// `phase 1 epoch   3  loss 0.1234 top1 0.9500  valid loss 0.2345 top1 0.9444  best`
impl fmt::Display for EpochReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "phase {} epoch {:>3}  loss {:.4}", self.phase, self.epoch, self.train_loss)?;
        if let Some(top1) = self.train_top1 {
            write!(f, " top1 {top1:.4}")?;
        }
        if let (Some(loss), Some(top1)) = (self.valid_loss, self.valid_top1) {
            write!(f, "  valid loss {loss:.4} top1 {top1:.4}")?;
        }
        if let Some(Averaged { loss, top1, .. }) = self.averaged {
            write!(f, "  averaged loss {loss:.4} top1 {top1:.4}")?;
        }
        if self.best { write!(f, "  best") } else { Ok(()) }
    }
}
