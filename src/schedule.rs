//! The learning rate over the steps of a phase.

use crate::error::{Error, Result, by_name};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// The learning rate over the steps of a phase, relative to the optimizer's rate.
///
/// ```
/// use candle_finetune::Schedule;
/// let schedule = Schedule::cosine().warmup(0.1).least(0.01);
/// assert!(schedule.factor(0, 100) < 0.2);
/// assert!((schedule.factor(10, 100) - 1.0).abs() < 0.01);
/// assert!((schedule.factor(99, 100) - 0.01).abs() < 0.001);
/// assert_eq!("cosine".parse::<Schedule>().unwrap(), Schedule::cosine());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Schedule {
    /// The shape after the warmup.
    pub shape: ScheduleShape,
    /// The fraction of the phase's steps during which the rate rises to its full value, in [0, 1): linearly, and of
    /// [`ScheduleShape::OneCycle`] as a cosine.
    pub warmup: f64,
    /// The smallest factor on the rate after the warmup, in [0, 1]: where a cosine or a line ends, and below which steps
    /// and plateaus do not go.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub least: f64,
}

/// Whether a setting is 0, as is usual; then it is not written.
#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
pub(crate) fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// The shape of a schedule after its warmup.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum ScheduleShape {
    /// The full rate in every step.
    Constant,
    /// Half a cosine period down to the least rate (Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts).
    Cosine,
    /// A straight line down to the least rate.
    Linear,
    /// The rate is multiplied by `factor` at regular intervals (PyTorch's `StepLR`).
    Step {
        /// The interval, as a fraction of the steps after the warmup, in (0, 1].
        every: f64,
        /// In (0, 1].
        factor: f64,
    },
    /// The rate rises as half a cosine period during the warmup and falls as another one to the least rate, while the
    /// momentum falls and rises (the 1cycle policy, Smith and Topin 2017, arXiv 1708.07120; PyTorch's `OneCycleLR`).
    OneCycle {
        /// The factor on the rate at the first step, in (0, 1].
        start: f64,
        /// The lowest and the highest momentum, of SGD, or first beta, of AdamW; `None` leaves the optimizer's.
        momentum: Option<(f64, f64)>,
    },
    /// The rate is multiplied by `factor` when more than `patience` epochs have passed without a better value, by 0.01 % at
    /// least, of [`Plan::watch`](crate::Plan::watch) (PyTorch's `ReduceLROnPlateau`). Needs validations.
    Plateau {
        /// In (0, 1).
        factor: f64,
        /// Epochs.
        patience: usize,
    },
}

impl Schedule {
    fn new(shape: ScheduleShape) -> Self {
        Self { shape, warmup: 0.0, least: 0.0 }
    }

    /// The full rate in every step.
    pub fn constant() -> Self {
        Self::new(ScheduleShape::Constant)
    }

    /// Half a cosine period down to zero.
    pub fn cosine() -> Self {
        Self::new(ScheduleShape::Cosine)
    }

    /// A straight line down to zero.
    pub fn linear() -> Self {
        Self::new(ScheduleShape::Linear)
    }

    /// A tenth of the rate after each third of the steps.
    pub fn step() -> Self {
        Self::new(ScheduleShape::Step { every: 1.0 / 3.0, factor: 0.1 })
    }

    /// From a twenty-fifth of the rate up to the full rate at 30 % of the steps and down to 4e-6 of it, with a momentum
    /// from 0.95 to 0.85 and back: the defaults of PyTorch's `OneCycleLR`.
    pub fn one_cycle() -> Self {
        let shape = ScheduleShape::OneCycle { start: 1.0 / 25.0, momentum: Some((0.85, 0.95)) };
        Self { warmup: 0.3, least: 4e-6, ..Self::new(shape) }
    }

    /// A tenth of the rate after more than `patience` epochs in which the watched metric
    /// ([`Plan::watch`](crate::Plan::watch), by default the validation loss) was no better.
    pub fn plateau(patience: usize) -> Self {
        Self::new(ScheduleShape::Plateau { factor: 0.1, patience })
    }

    /// Sets the fraction of the steps during which the rate rises to its full value, in [0, 1).
    pub fn warmup(mut self, share: f64) -> Self {
        self.warmup = share;
        self
    }

    /// Sets the smallest factor on the rate after the warmup, in [0, 1].
    pub fn least(mut self, factor: f64) -> Self {
        self.least = factor;
        self
    }

    /// The factor on the learning rate at step `step` of `total`, counted from 0: in [0, 1]. Of a plateau schedule that
    /// without any plateau.
    pub fn factor(&self, step: usize, total: usize) -> f64 {
        let total = total.max(1) as f64;
        let at = step as f64;
        if let ScheduleShape::OneCycle { start, .. } = self.shape {
            return self.cycle(at, total, (start, 1.0, self.least));
        }
        let rise = (self.warmup * total).floor();
        if at < rise {
            return (at + 1.0) / (rise + 1.0);
        }
        let rest = ((at - rise) / (total - rise).max(1.0)).min(1.0);
        let falling = |factor: f64| self.least + (1.0 - self.least) * factor;
        match self.shape {
            ScheduleShape::Constant | ScheduleShape::Plateau { .. } | ScheduleShape::OneCycle { .. } => 1.0,
            ScheduleShape::Cosine => falling(0.5 * (1.0 + (PI * rest).cos())),
            ScheduleShape::Linear => falling(1.0 - rest),
            // The small addition keeps the third of three steps from falling short of one by rounding.
            ScheduleShape::Step { every, factor } => factor.powf((rest / every + 1e-9).floor()).max(self.least),
        }
    }

    /// The momentum at step `step` of `total`, where the schedule moves it.
    pub fn momentum(&self, step: usize, total: usize) -> Option<f64> {
        match self.shape {
            ScheduleShape::OneCycle { momentum: Some((low, high)), .. } => {
                Some(self.cycle(step as f64, total.max(1) as f64, (high, low, high)))
            }
            _ => None,
        }
    }

    /// From the first value to the second during the warmup and then to the third, at the last step, as cosines.
    fn cycle(&self, at: f64, total: f64, (first, second, third): (f64, f64, f64)) -> f64 {
        let cosine =
            |from: f64, to: f64, share: f64| to + (from - to) * 0.5 * (1.0 + (PI * share.clamp(0.0, 1.0)).cos());
        let peak = (self.warmup * total - 1.0).max(0.0);
        if at <= peak && peak > 0.0 {
            return cosine(first, second, at / peak);
        }
        // A cycle of one step is its peak.
        cosine(second, third, (at - peak) / (total - 1.0 - peak).max(f64::MIN_POSITIVE))
    }

    /// What is wrong with it, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { shape, warmup, least } = self;
        if !(0.0..1.0).contains(warmup) {
            return Some(format!("warmup {warmup} is not in [0, 1)"));
        }
        if !(0.0..=1.0).contains(least) {
            return Some(format!("least {least} is not in [0, 1]"));
        }
        let share = |name: &str, value: f64| {
            (!(value > 0.0 && value <= 1.0)).then(|| format!("{name} {value} is not in (0, 1]"))
        };
        match *shape {
            ScheduleShape::Constant | ScheduleShape::Cosine | ScheduleShape::Linear => None,
            ScheduleShape::Step { every, factor } => share("every", every).or_else(|| share("factor", factor)),
            ScheduleShape::OneCycle { start, momentum } => share("start", start).or_else(|| {
                let (low, high) = momentum?;
                let sound = 0.0 < low && low <= high && high < 1.0;
                (!sound).then(|| format!("momentum from {low} to {high}; it must rise within (0, 1)"))
            }),
            ScheduleShape::Plateau { factor, .. } => {
                (!(factor > 0.0 && factor < 1.0)).then(|| format!("factor {factor} is not in (0, 1)"))
            }
        }
    }

    /// Whether plans before version 4 had it.
    pub(crate) fn is_of_old(&self) -> bool {
        let shape = matches!(self.shape, ScheduleShape::Constant | ScheduleShape::Cosine | ScheduleShape::Linear);
        shape && self.least == 0.0
    }
}

/// The reductions of a rate by [`ScheduleShape::Plateau`] so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plateau {
    best: Option<f64>,
    since: usize,
    /// The factor on the rate.
    pub scale: f64,
}

impl Default for Plateau {
    fn default() -> Self {
        Self { best: None, since: 0, scale: 1.0 }
    }
}

impl Plateau {
    /// Notes the watched value of an epoch.
    pub fn note(&mut self, value: f64, higher_is_better: bool, schedule: &Schedule) {
        let ScheduleShape::Plateau { factor, patience } = schedule.shape else { return };
        let gains = |best: f64| {
            if higher_is_better { value > best * (1.0 + 1e-4) } else { value < best * (1.0 - 1e-4) }
        };
        if self.best.is_none_or(gains) && value.is_finite() {
            (self.best, self.since) = (Some(value), 0);
            return;
        }
        self.since += 1;
        if self.since > patience {
            (self.scale, self.since) = ((self.scale * factor).max(schedule.least), 0);
        }
    }
}

/// `cosine after 10 % warmup`
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shape {
            ScheduleShape::Constant => f.write_str("constant")?,
            ScheduleShape::Cosine => f.write_str("cosine")?,
            ScheduleShape::Linear => f.write_str("linear")?,
            ScheduleShape::Step { every, factor } => write!(f, "times {factor} every {:.0} %", 100.0 * every)?,
            ScheduleShape::OneCycle { .. } => write!(f, "one cycle, peak at {:.0} %", 100.0 * self.warmup)?,
            ScheduleShape::Plateau { factor, patience } => {
                write!(f, "times {factor} after more than {patience} epochs without gain")?;
            }
        }
        if self.warmup > 0.0 && !matches!(self.shape, ScheduleShape::OneCycle { .. }) {
            write!(f, " after {:.0} % warmup", 100.0 * self.warmup)?;
        }
        if self.least > 0.0 && self.shape != ScheduleShape::Constant {
            write!(f, ", down to {:e}", self.least)
        } else {
            Ok(())
        }
    }
}

/// The names of the constructors: `constant`, `cosine`, `linear`, `step`, `one-cycle` and `plateau`, which has a patience
/// of 10 epochs.
impl FromStr for Schedule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = [
            ("constant", Self::constant()),
            ("cosine", Self::cosine()),
            ("linear", Self::linear()),
            ("step", Self::step()),
            ("one-cycle", Self::one_cycle()),
            ("plateau", Self::plateau(10)),
        ];
        by_name("schedule", name, &all, |(name, _)| name).map(|(_, schedule)| schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by hand: a warmup of w steps rises by 1 / (w + 1) a step; the shape covers the remaining steps.
    #[test]
    fn values_at_given_steps() {
        let cosine = Schedule::cosine().warmup(0.1);
        let linear = Schedule::linear();
        let cases = [
            (cosine, 0, 1.0 / 11.0),
            (cosine, 4, 5.0 / 11.0),
            (cosine, 9, 10.0 / 11.0),
            (cosine, 10, 1.0), // the first step after the warmup has the full rate
            (cosine, 55, 0.5),
            (cosine, 99, 0.000_304_586_490_5),
            (Schedule::cosine(), 25, 0.853_553_390_593),
            (linear, 0, 1.0),
            (linear, 50, 0.5),
            (linear, 99, 0.01),
            (linear.warmup(0.5), 49, 50.0 / 51.0),
            (linear.warmup(0.5), 50, 1.0),
            (linear.warmup(0.5), 75, 0.5),
            (Schedule::constant(), 99, 1.0),
            (Schedule::constant().warmup(0.25), 24, 25.0 / 26.0),
            (Schedule::constant().warmup(0.25), 25, 1.0),
        ];
        for (schedule, step, expected) in cases {
            let factor = schedule.factor(step, 100);
            assert!((factor - expected).abs() < 1e-9, "{schedule} at {step}: {factor}, not {expected}");
        }
        // A warmup shorter than one step is none, and an empty phase does not divide by zero.
        assert_eq!(Schedule::cosine().warmup(0.5).factor(0, 1), 1.0);
        assert_eq!(Schedule::linear().factor(0, 0), 1.0);
    }

    /// PyTorch 2.15: OneCycleLR(max_lr=1, total_steps=100), StepLR(30, 0.1) over 90 steps, CosineAnnealingLR(100, 0.05).
    #[test]
    fn the_values_are_pytorchs() {
        let cycle = Schedule::one_cycle();
        for (step, rate, momentum) in [
            (0, 0.04, 0.95),
            (10, 0.295_163_948_464, 0.923_420_422_035),
            (28, 0.997_186_219_434, 0.850_293_102_142),
            (29, 1.0, 0.85),
            (30, 0.999_496_535_285, 0.850_050_346_673),
            (64, 0.500_002, 0.9),
            (99, 4e-6, 0.95),
        ] {
            assert!((cycle.factor(step, 100) - rate).abs() < 1e-9, "{step}: {}", cycle.factor(step, 100));
            let moved = cycle.momentum(step, 100).unwrap();
            assert!((moved - momentum).abs() < 1e-9, "{step}: {moved}");
        }
        // Another one: start 1/10, end 1/1000, peak at a quarter of 40 steps.
        let shape = ScheduleShape::OneCycle { start: 0.1, momentum: None };
        let other = Schedule { warmup: 0.25, least: 1e-3, ..Schedule::new(shape) };
        for (step, rate) in [(0, 0.1), (5, 0.628_141_679_950), (9, 1.0), (20, 0.703_664_953_216), (39, 1e-3)] {
            assert!((other.factor(step, 40) - rate).abs() < 1e-9, "{step}: {}", other.factor(step, 40));
        }
        assert_eq!((other.momentum(3, 40), Schedule::cosine().momentum(3, 40)), (None, None));
        let cosine = Schedule::cosine().least(0.05);
        for (step, rate) in [(0, 1.0), (25, 0.860_875_721_064), (50, 0.525), (99, 0.050_234_383_826)] {
            assert!((cosine.factor(step, 100) - rate).abs() < 1e-9, "{step}");
        }
        for (step, rate) in [(0, 1.0), (29, 1.0), (30, 0.1), (59, 0.1), (60, 0.01), (89, 0.01)] {
            assert!((Schedule::step().factor(step, 90) - rate).abs() < 1e-12, "{step}");
        }
        assert_eq!(Schedule::step().least(0.05).factor(89, 90), 0.05);
        // A fall shorter than a step ends at the last step all the same (OneCycleLR, pct_start=0.99, 50 steps).
        let late = Schedule::one_cycle().warmup(0.99);
        assert!(
            (late.factor(48, 50) - 0.999_745_3).abs() < 1e-3 && late.factor(49, 50) < 1e-5,
            "{}",
            late.factor(48, 50)
        );
        // The shortest phases.
        assert!([0, 1].iter().all(|&total| Schedule::one_cycle().factor(0, total) <= 1.0));
    }

    /// PyTorch 2.15: ReduceLROnPlateau(factor=0.5, patience=1, min_lr=0.2), lr 1.
    #[test]
    fn plateaus_are_pytorchs() {
        let schedule = Schedule { shape: ScheduleShape::Plateau { factor: 0.5, patience: 1 }, ..Schedule::plateau(1) };
        let schedule = schedule.least(0.2);
        let mut plateau = Plateau::default();
        let losses = [1.0, 0.9, 0.900_000_01, 0.95, 0.89, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, f64::NAN, 0.1];
        let rates = losses.map(|loss| {
            plateau.note(loss, false, &schedule);
            plateau.scale
        });
        assert_eq!(rates, [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]);
        // Other shapes do not react.
        let mut none = Plateau::default();
        (0..9).for_each(|_| none.note(1.0, false, &Schedule::cosine()));
        assert_eq!(none, Plateau::default());
    }

    #[test]
    fn values_that_cannot_work_are_named() {
        let with = |shape| Schedule::new(shape);
        for (schedule, words) in [
            (Schedule::cosine().warmup(1.0), "warmup 1"),
            (Schedule::cosine().least(-0.1), "least -0.1"),
            (with(ScheduleShape::Step { every: 0.0, factor: 0.1 }), "every 0"),
            (with(ScheduleShape::Step { every: 0.5, factor: 2.0 }), "factor 2"),
            (with(ScheduleShape::OneCycle { start: f64::NAN, momentum: None }), "start NaN"),
            (with(ScheduleShape::OneCycle { start: 0.1, momentum: Some((0.9, 0.8)) }), "momentum from 0.9 to 0.8"),
            (with(ScheduleShape::Plateau { factor: 1.0, patience: 3 }), "factor 1"),
        ] {
            let problem = schedule.problem().unwrap();
            assert!(problem.contains(words), "{problem}");
        }
        for name in ["constant", "cosine", "linear", "step", "one-cycle", "plateau"] {
            let schedule: Schedule = name.parse().unwrap();
            assert!(schedule.problem().is_none() && !schedule.to_string().is_empty());
            let text = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule, "{text}");
            assert_eq!(schedule.is_of_old(), text.starts_with("{\"shape\":\"") && !text.contains("least"), "{text}");
        }
        assert!("cyclic".parse::<Schedule>().unwrap_err().to_string().contains("one-cycle"));
    }
}
