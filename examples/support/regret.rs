//! How much accuracy a rule that chooses a strategy gives away against the best strategy of each task.

use crate::rows::{Advised, Row, Rows, Task};
use candle_finetune::Strategy;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// What is known of a task whose rows are complete.
pub struct Figures<'a> {
    pub task: &'a Task,
    /// Test accuracy by strategy, the mean over the seeds.
    pub top1: BTreeMap<&'a str, f64>,
    /// The best of the four.
    pub best: Strategy,
    /// The rows of auto, by seed.
    pub auto: Vec<&'a Row>,
    /// The regret of auto, with its paired 95 % interval over the test images.
    pub regret: f64,
    pub interval: (f64, f64),
}

impl<'a> Figures<'a> {
    /// `None` until every strategy of the table and auto have all seeds.
    pub fn new(task: &'a Task, rows: &'a Rows) -> Option<Self> {
        let of = |strategy: &str| -> Option<Vec<&'a Row>> {
            (0..task.seeds).map(|seed| rows.get(&(task.name.clone(), strategy.to_string(), seed))).collect()
        };
        let mean = |rows: &[&Row]| rows.iter().map(|row| row.top1).sum::<f64>() / rows.len().max(1) as f64;
        let mut top1 = BTreeMap::new();
        for strategy in Strategy::ALL {
            if let Some(rows) = of(strategy.name()) {
                top1.insert(strategy.name(), mean(&rows));
            }
        }
        if Strategy::QUADRANTS.iter().any(|strategy| !top1.contains_key(strategy.name())) {
            return None;
        }
        let best = Strategy::QUADRANTS.into_iter().max_by(|a, b| top1[a.name()].total_cmp(&top1[b.name()]))?;
        let auto = of("auto")?;
        top1.insert("auto", mean(&auto));
        let regret = top1[best.name()] - top1["auto"];
        let interval = paired(&of(best.name())?, &auto);
        Some(Self { task, top1, best, auto, regret, interval })
    }

    /// The regret of always taking this strategy.
    pub fn regret_of(&self, strategy: &str) -> f64 {
        self.top1[self.best.name()] - self.top1[strategy]
    }

    pub fn counts(&self) -> bool {
        self.task.shown.is_none()
    }

    /// The training images, and those of each class.
    pub fn images(&self) -> (usize, f64) {
        let row = self.auto[0];
        (row.train, row.train as f64 / row.classes as f64)
    }

    /// The probe's accuracy after the last stage, the mean over the seeds, and that of the best stage.
    pub fn probe(&self) -> (f64, f64) {
        (self.advised(|advised| advised.last), self.advised(|advised| advised.best))
    }

    /// A figure of the advice, the mean over the seeds.
    pub fn advised(&self, figure: fn(&Advised) -> f64) -> f64 {
        let figures: Vec<f64> = self.auto.iter().filter_map(|row| row.advice.as_ref()).map(figure).collect();
        figures.iter().sum::<f64>() / figures.len().max(1) as f64
    }
}

/// The difference in accuracy of two strategies, image by image over the seeds, with its 95 % interval.
fn paired(a: &[&Row], b: &[&Row]) -> (f64, f64) {
    let mut differences: Vec<f64> = vec![];
    for (a, b) in a.iter().zip(b) {
        for (i, (a, b)) in a.outcomes().into_iter().zip(b.outcomes()).enumerate() {
            if differences.len() <= i {
                differences.push(0.0);
            }
            differences[i] += f64::from(u8::from(a)) - f64::from(u8::from(b));
        }
    }
    let (n, seeds) = (differences.len().max(2) as f64, a.len().max(1) as f64);
    let mean = differences.iter().sum::<f64>() / n / seeds;
    let variance = differences.iter().map(|d| (d / seeds - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = 1.96 * (variance / n).sqrt();
    (mean - half, mean + half)
}

/// A rule that chooses a strategy: its name, and its choice for a task.
pub struct Rule {
    pub name: String,
    pub choice: Box<dyn Fn(&Figures<'_>) -> Strategy>,
}

/// The mean regret of a choice.
pub fn mean_regret(tasks: &[&Figures<'_>], regret: impl Fn(&Figures<'_>) -> f64) -> f64 {
    tasks.iter().map(|figures| regret(figures)).sum::<f64>() / tasks.len().max(1) as f64
}

/// Each strategy always, and the rules by one figure with their thresholds tuned on `tuning`.
pub fn rules(tuning: &[&Figures<'_>]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Strategy::QUADRANTS
        .into_iter()
        .map(|strategy| Rule { name: format!("always {strategy}"), choice: Box::new(move |_| strategy) })
        .collect();
    // A threshold lies between two tasks.
    if tuning.len() < 2 {
        return rules;
    }
    rules.push(threshold(tuning, "training images", |figures| figures.images().0 as f64));
    rules.push(threshold(tuning, "accuracy of the last stage's probe", |figures| figures.probe().0));
    rules.push(threshold(tuning, "gained by twice the images", |f| f.advised(|a| a.gain.unwrap_or(0.0))));
    rules
        .push(threshold(tuning, "divergence of batch norm statistics", |f| f.advised(|a| a.divergence.unwrap_or(0.0))));
    rules.push(threshold(tuning, "of the gradients in the first half", |figures| figures.advised(|a| a.early)));
    rules
}

/// Two strategies, and the threshold of one figure between them, with the least regret on the tuning tasks.
fn threshold(tuning: &[&Figures<'_>], what: &str, figure: fn(&Figures<'_>) -> f64) -> Rule {
    let mut cuts: Vec<f64> = tuning.iter().map(|figures| figure(figures)).collect();
    cuts.sort_by(f64::total_cmp);
    let between = cuts.windows(2).map(|pair| f64::midpoint(pair[0], pair[1])).collect::<Vec<_>>();
    let mut best: Option<(f64, Strategy, Strategy, f64)> = None;
    for below in Strategy::QUADRANTS {
        for above in Strategy::QUADRANTS {
            for &cut in &between {
                let choice = |figures: &Figures<'_>| if figure(figures) < cut { below } else { above };
                let regret = mean_regret(tuning, |figures| figures.regret_of(choice(figures).name()));
                if best.as_ref().is_none_or(|best| regret < best.0) {
                    best = Some((regret, below, above, cut));
                }
            }
        }
    }
    let (_, below, above, cut) = best.unwrap_or((0.0, Strategy::SmallSimilar, Strategy::SmallSimilar, f64::INFINITY));
    let name = format!("{below} below {cut:.3} {what}, else {above}");
    Rule { name, choice: Box::new(move |figures| if figure(figures) < cut { below } else { above }) }
}

/// The 95 % interval of the mean of `value` over the tasks, from resampling whole sets of images.
pub fn bootstrap(tasks: &[&Figures<'_>], value: impl Fn(&Figures<'_>) -> f64) -> (f64, f64) {
    let mut sets: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    tasks.iter().for_each(|figures| sets.entry(&figures.task.set).or_default().push(value(figures)));
    let sets: Vec<Vec<f64>> = sets.into_values().collect();
    if sets.is_empty() {
        return (0.0, 0.0);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut means: Vec<f64> = (0..10_000)
        .map(|_| {
            let drawn: Vec<f64> =
                (0..sets.len()).flat_map(|_| sets[rng.random_range(0..sets.len())].iter().copied()).collect();
            drawn.iter().sum::<f64>() / drawn.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[250], means[9_749])
}
