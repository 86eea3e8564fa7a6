//! The loss by the learning rate, and the rates that it suggests.

use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt;

/// The learning rates that a search tries: rising by the same factor in each step.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LrRange {
    /// The first rate, of the head; the backbone's is scaled as in the phase.
    pub from: f64,
    /// The last rate.
    pub to: f64,
    /// Steps at most: the search ends before where the loss has risen to four times its lowest value, or is not finite.
    pub steps: usize,
}

/// From 1e-7 to 10 in 100 steps, the defaults of fastai's `lr_find`.
impl Default for LrRange {
    fn default() -> Self {
        Self { from: 1e-7, to: 10.0, steps: 100 }
    }
}

impl LrRange {
    /// Sets the first and the last rate.
    pub fn rates(mut self, from: f64, to: f64) -> Self {
        (self.from, self.to) = (from, to);
        self
    }

    /// Sets the steps.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let Self { from, to, steps } = *self;
        if !(from > 0.0 && from < to && to.is_finite()) {
            let problem = format!("rates from {from} to {to}; they must be more than 0, finite, and rise");
            return Err(Error::invalid("learning rate search", problem));
        }
        if steps < LEAST {
            return Err(Error::invalid("learning rate search", format!("{steps} steps; at least {LEAST} are needed")));
        }
        Ok(())
    }

    /// The rate of a step, from 0.
    pub(super) fn rate(&self, step: usize) -> f64 {
        self.from * (self.to / self.from).powf(step as f64 / (self.steps - 1) as f64)
    }
}

/// Fewer points suggest nothing.
const LEAST: usize = 20;

/// What a mean of the losses keeps of itself in each step.
const SMOOTHING: f64 = 0.98;

/// How often its lowest value the loss may reach.
const DIVERGED: f64 = 4.0;

/// A step of the search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LrPoint {
    /// The head's learning rate.
    pub lr: f64,
    /// The loss of the batch.
    pub loss: f64,
    /// The running mean of the losses, which the suggestions are made from: exponential, 0.98, corrected for its start.
    pub smooth: f64,
}

/// The loss of a model while its learning rate rises from step to step (Smith 2015, arXiv 1506.01186), and the rates that
/// the curve suggests, after fastai's `lr_find`: [`Session::find_lr`](crate::Session::find_lr),
/// [`FineTuner::find_lr`](crate::FineTuner::find_lr). It prints as a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LrCurve {
    /// The steps.
    pub points: Vec<LrPoint>,
    /// The middle of the longest fall of the loss: a rate to begin with. `None` where too few steps were made.
    pub valley: Option<f64>,
    /// Where the loss falls fastest.
    pub steep: Option<f64>,
    /// A tenth of the rate at the lowest loss.
    pub minimum: Option<f64>,
}

impl LrCurve {
    pub(super) fn new() -> Self {
        Self { points: vec![], valley: None, steep: None, minimum: None }
    }

    /// Adds a step. Returns whether the loss has diverged.
    pub(super) fn add(&mut self, lr: f64, loss: f64) -> bool {
        let steps = self.points.len() as i32;
        // The mean as it is before the correction.
        let raw = self.points.last().map_or(0.0, |last| last.smooth * (1.0 - SMOOTHING.powi(steps)));
        let smooth = (raw * SMOOTHING + loss * (1.0 - SMOOTHING)) / (1.0 - SMOOTHING.powi(steps + 1));
        self.points.push(LrPoint { lr, loss, smooth });
        let lowest = self.points.iter().map(|point| point.smooth).fold(f64::INFINITY, f64::min);
        smooth > DIVERGED * lowest
    }

    /// The same with the suggestions, for a search of so many steps: without its first tenth and its last five points.
    pub(super) fn suggested(mut self, steps: usize) -> Self {
        let kept = self.points.len().saturating_sub(5);
        let points = self.points.get(steps / 10..kept).unwrap_or_default();
        if points.len() < 3 {
            return self;
        }
        let losses: Vec<f64> = points.iter().map(|point| point.smooth).collect();
        let lowest = (0..losses.len()).fold(0, |best, i| if losses[i] < losses[best] { i } else { best });
        let fall = |i: usize| slope(&losses, i);
        let steepest = (0..losses.len()).fold(0, |best, i| if fall(i) < fall(best) { i } else { best });
        (self.valley, self.steep, self.minimum) =
            (Some(points[valley(&losses)].lr), Some(points[steepest].lr), Some(points[lowest].lr / 10.0));
        self
    }
}

/// The slope at a point: the central difference, and one-sided at the ends.
fn slope(values: &[f64], i: usize) -> f64 {
    let (before, after) = (i.saturating_sub(1), (i + 1).min(values.len() - 1));
    (values[after] - values[before]) / (after - before).max(1) as f64
}

/// The middle of the longest falling subsequence, which is taken to lie right before its end.
fn valley(losses: &[f64]) -> usize {
    let mut lengths = vec![1usize; losses.len()];
    for i in 1..losses.len() {
        for j in 0..i {
            if losses[i] < losses[j] {
                lengths[i] = lengths[i].max(lengths[j] + 1);
            }
        }
    }
    let end = (0..lengths.len()).fold(0, |best, i| if lengths[i] > lengths[best] { i } else { best });
    let start = end.saturating_sub(lengths[end]);
    let third = (end - start) / 3;
    start + third + third / 2
}

/// At most 80 columns wide.
impl fmt::Display for LrCurve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:>10} {:>10} {:>10}", "lr", "loss", "smooth")?;
        for point in self.points.iter().step_by(self.points.len().div_ceil(25).max(1)) {
            writeln!(f, "  {:>10.2e} {:>10.4} {:>10.4}", point.lr, point.loss, point.smooth)?;
        }
        let rate = |rate: Option<f64>| rate.map_or("none, too few steps".to_string(), |rate| format!("{rate:.2e}"));
        writeln!(f, "  valley  {}, the middle of the longest fall: begin with it", rate(self.valley))?;
        writeln!(f, "  steep   {}, the fastest fall", rate(self.steep))?;
        writeln!(f, "  minimum {}, a tenth of the rate at the lowest loss", rate(self.minimum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A search whose smoothed losses are these.
    fn curve(smooth: &[f64]) -> LrCurve {
        let range = LrRange::default().rates(1e-6, 1.0).steps(smooth.len());
        let point = |(i, &smooth): (usize, &f64)| LrPoint { lr: range.rate(i), loss: smooth, smooth };
        LrCurve { points: smooth.iter().enumerate().map(point).collect(), ..LrCurve::new() }.suggested(smooth.len())
    }

    #[test]
    fn suggestions_are_where_the_loss_falls() {
        // Flat for 20 steps, a line down for 30, flat for 10, then a rise.
        let smooth: Vec<f64> = (0..100)
            .map(|i| match i {
                0..20 => 2.0,
                20..50 => 2.0 - 0.05 * f64::from(i - 20) - if i > 35 { 0.2 } else { 0.0 },
                50..60 => 0.31,
                _ => 0.31 + 0.05 * f64::from(i - 59),
            })
            .collect();
        let found = curve(&smooth);
        let step = |lr: f64| (lr / 1e-6).ln() / 1e6f64.ln() * 99.0;
        // The fall ends at step 50: 31 falling points and one before, of which the middle.
        let valley = step(found.valley.unwrap());
        assert!((32.0..36.0).contains(&valley), "{valley}");
        let steep = step(found.steep.unwrap());
        assert!((34.9..36.1).contains(&steep), "{steep}");
        let lowest = step(found.minimum.unwrap() * 10.0);
        assert!((lowest - 50.0).abs() < 0.1 || (lowest - 49.0).abs() < 0.1, "{lowest}");
        let text = found.to_string();
        assert!(text.contains("valley") && text.lines().all(|line| line.len() <= 80), "{text}");
        assert_eq!((curve(&smooth[..7]).valley, LrCurve::new().suggested(100).valley), (None, None));
    }

    /// fastai's smoothing in numpy: m = 0.98 m + 0.02 x, divided by 1 - 0.98^n.
    #[test]
    fn losses_are_smoothed_and_a_rise_ends_the_search() {
        let mut curve = LrCurve::new();
        for (loss, smooth) in [(2.0, 2.0), (1.0, 1.494_949_494_949), (3.0, 2.006_801_795_674)] {
            assert!(!curve.add(1e-3, loss));
            let got = curve.points.last().unwrap().smooth;
            assert!((got - smooth).abs() < 1e-9, "{got}");
        }
        assert!(curve.add(1e-3, 100.0));
        assert!(LrRange::default().rates(1.0, 0.1).check().is_err() && LrRange::default().steps(5).check().is_err());
        let range = LrRange::default();
        assert!((range.rate(0) - 1e-7).abs() < 1e-20 && (range.rate(99) - 10.0).abs() < 1e-9);
    }
}
