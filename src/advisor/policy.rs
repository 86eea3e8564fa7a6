//! The thresholds of the advice, as data, and the decision that follows from them.

use super::evidence::{Evidence, StageProbe};
use crate::strategy::{DataSize, Similarity, Strategy};

/// The thresholds. They were set on the tasks in DESIGN.md, whole sets at a time and none to a single task.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// The samples that are looked at, at most.
    pub sample: usize,
    /// Bytes of the features that are looked at, at most.
    pub bytes: usize,
    /// The share of the last stage's errors that the best stage avoids, from which the data is different.
    avoided: f64,
    /// Standard errors by which the best stage must be better, from which the data is different.
    errors: f64,
    /// The last stage's accuracy below which the data is different, on a scale from 0 for guessing to 1.
    fitting: f64,
    /// Samples from which similar data is large: enough to train all pretrained weights further.
    large_similar: usize,
    /// Samples from which different data is large: enough to train from random weights.
    large_different: usize,
    /// Samples of a class below which its figures say little.
    pub few: usize,
}

impl Policy {
    pub const DEFAULT: Self = Self {
        sample: 800,
        bytes: 256 << 20,
        avoided: 0.35,
        errors: 2.0,
        fitting: 0.5,
        large_similar: 1_000,
        large_different: 20_000,
        few: 5,
    };

    /// Similarity and its reason.
    pub fn similarity(&self, evidence: &Evidence) -> (Similarity, String) {
        let last = evidence.last_top1();
        let Some((best, grid)) = evidence.best() else {
            return (Similarity::Different, "the network has no stages to compare".into());
        };
        let top1 = if grid { best.grid.ridge } else { best.mean.ridge };
        let classes = evidence.size.classes.max(2) as f64;
        let fit = (last - 1.0 / classes) / (1.0 - 1.0 / classes);
        let place = if grid { format!("{} in a grid of 4 x 4 cells", best.stage) } else { best.stage.clone() };
        if fit < self.fitting {
            let reason = format!(
                "a linear classifier on the network's features is right for {last:.3} of the images, where guessing is \
                 for {:.3}: the features do not fit them",
                1.0 / classes
            );
            return (Similarity::Different, reason);
        }
        let avoided = if last < 1.0 { (top1 - last) / (1.0 - last) } else { 0.0 };
        if avoided >= self.avoided && top1 - last > self.errors * evidence.paired_error(best, grid) {
            let reason = format!(
                "the features of {place} separate the classes best, {top1:.3}, and the network's last ones worse, \
                 {last:.3}: its later stages are too specific to its pretraining data"
            );
            return (Similarity::Different, reason);
        }
        let compared = if top1 > last {
            format!("at most a little better after {place}, {top1:.3}")
        } else {
            "nowhere better before".into()
        };
        (
            Similarity::Similar,
            format!(
                "a linear classifier on the network's features is right for {last:.3} of the images, and {compared}: the features fit"
            ),
        )
    }

    /// Size and its reason.
    pub fn size(&self, evidence: &Evidence, similarity: Similarity) -> (DataSize, String) {
        let samples = evidence.size.samples;
        let (large, what) = match similarity {
            Similarity::Similar => (self.large_similar, "to train all pretrained weights further"),
            Similarity::Different => (self.large_different, "to train the network from random weights"),
        };
        let size = if samples >= large { DataSize::Large } else { DataSize::Small };
        let compared = if samples >= large { "enough" } else { "too few" };
        let class = format!("{} of the middle class", evidence.size.median);
        (size, format!("{samples} images, {class}, are {compared} {what}: that takes {large}"))
    }

    /// How many blocks hold features worth keeping: up to the first stage that separates the classes as well as the
    /// best one, within its standard error.
    pub fn worth_freezing(evidence: &Evidence) -> Option<&StageProbe> {
        let (best, grid) = evidence.best()?;
        let top1 = if grid { best.grid.ridge } else { best.mean.ridge };
        evidence.stages.iter().find(|stage| {
            let (mean, cells) = (&stage.mean, &stage.grid);
            mean.ridge.max(cells.ridge) >= top1 - evidence.error(top1)
        })
    }
}

/// The strategy to try if the first one disappoints.
pub(super) fn runner_up(strategy: Strategy) -> Strategy {
    match strategy {
        Strategy::SmallSimilar | Strategy::LargeSimilar => Strategy::SmallDifferent,
        Strategy::SmallDifferent | Strategy::LargeDifferent => Strategy::LargeSimilar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advisor::evidence::{Probe, SizeFigures};

    /// A probe that is right for the first `right` of 200 samples.
    fn probe(right: usize) -> Probe {
        let top1 = right as f64 / 200.0;
        Probe { ridge: top1, neighbours: top1, correct: (0..200).map(|i| i < right).collect() }
    }

    /// Two stages, each with its right answers by mean and in the grid, and a number of samples of ten classes.
    fn evidence(first: [usize; 2], last: [usize; 2], samples: usize) -> Evidence {
        let stage = |name: &str, [mean, grid]: [usize; 2]| StageProbe {
            stage: name.into(),
            mean: probe(mean),
            grid: probe(grid),
        };
        let stages = vec![stage("layer1", first), stage("layer2", last)];
        Evidence { size: SizeFigures::new(&[samples / 10; 10]), samples: 200, stages, seconds: 0.0 }
    }

    #[test]
    fn the_quadrant_follows_from_peak_accuracy_and_number() {
        let quadrant = |evidence: &Evidence| {
            let policy = Policy::DEFAULT;
            let (similarity, why) = policy.similarity(evidence);
            let (size, enough) = policy.size(evidence, similarity);
            assert!(why.len() > 40 && enough.contains("images"), "{why} {enough}");
            Strategy::new(size, similarity)
        };
        for (evidence, expected) in [
            (evidence([100, 120], [190, 180], 500), Strategy::SmallSimilar),
            (evidence([100, 120], [190, 180], 5_000), Strategy::LargeSimilar),
            // The grid of the first stage avoids half of the last one's errors.
            (evidence([150, 190], [180, 185], 500), Strategy::SmallDifferent),
            (evidence([150, 190], [180, 185], 50_000), Strategy::LargeDifferent),
            // One of two errors avoided is within the error of the comparison.
            (evidence([150, 199], [198, 185], 500), Strategy::SmallSimilar),
            // Features that hardly do better than guessing fit nothing, wherever they peak.
            (evidence([40, 40], [90, 80], 500), Strategy::SmallDifferent),
        ] {
            assert_eq!(quadrant(&evidence), expected, "{:?}", evidence.stages);
        }
    }

    #[test]
    fn stages_are_worth_freezing_up_to_the_first_as_good_as_the_best() {
        let worth = |evidence: &Evidence| Policy::worth_freezing(evidence).map(|stage| stage.stage.clone());
        assert_eq!(worth(&evidence([100, 189], [190, 180], 500)).as_deref(), Some("layer1"));
        assert_eq!(worth(&evidence([100, 150], [190, 180], 500)).as_deref(), Some("layer2"));
    }
}
