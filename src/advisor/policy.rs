//! The thresholds of the advice, as data, and the decision that follows from them.

use super::evidence::{Evidence, StageProbe, ViewProbe};
use crate::strategy::{Cropped, DataSize, Similarity, Strategy, Views};

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
    /// Standard errors by which the features of all stages must be better than the last ones, from which a head sees all.
    together: f64,
    /// Samples from which similar data is large: enough to train all pretrained weights further.
    large_similar: usize,
    /// Samples from which different data is large: enough to train from random weights.
    large_different: usize,
    /// Images whose views are looked at, at most.
    pub views: usize,
    /// The share of the accuracy above guessing that views keep, from which an image may be mirrored.
    mirrors: f64,
    /// The same for crops, from which an image may be cropped a little, and much.
    crops: (f64, f64),
    /// Samples of a class below which its figures say little.
    pub few: usize,
    /// How many times as large as the smallest class the largest is, from which classes are unbalanced.
    pub unbalanced: f64,
    /// The accuracy that the second half of the images brings, from which it is worth saying.
    pub gain: f64,
}

impl Policy {
    pub const DEFAULT: Self = Self {
        sample: 800,
        bytes: 256 << 20,
        avoided: 0.35,
        errors: 2.0,
        fitting: 0.5,
        together: 1.0,
        large_similar: 1_000,
        large_different: 20_000,
        views: 200,
        mirrors: 0.85,
        crops: (0.7, 0.9),
        few: 5,
        unbalanced: 10.0,
        gain: 0.03,
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

    /// The strategy of the quadrant or, for little data, another where the features of all stages together are better than
    /// the last ones by more than the error of the comparison; with the reason. Wide networks get a head over all
    /// stages. Narrow ones have few features and cost little, so they are trained.
    pub fn way(&self, quadrant: Strategy, evidence: &Evidence, narrow: bool) -> (Strategy, Option<String>) {
        let (last, Some(together)) = (evidence.last_top1(), evidence.together.as_ref()) else {
            return (quadrant, None);
        };
        if !self.better_together(evidence) || !matches!(quadrant, Strategy::SmallSimilar | Strategy::SmallDifferent) {
            return (quadrant, None);
        }
        let (strategy, what) = if narrow {
            (Strategy::SmallDifferent, "the network is small enough to train more than a head")
        } else {
            (Strategy::Intermediate, "a head over all stages costs little, and has them all")
        };
        if strategy == quadrant {
            return (quadrant, None);
        }
        let reason = format!(
            "a linear classifier on the features of all stages together is right for {:.3} of the images, and one on the \
             last ones for {last:.3}: {what}",
            together.ridge
        );
        (strategy, Some(reason))
    }

    /// The views that keep their class, and the reason; `None` if the images are not recognised well enough to tell.
    pub fn views(&self, probe: &ViewProbe, classes: usize) -> Option<(Views, String)> {
        let guess = 1.0 / classes.max(2) as f64;
        let error = (guess * (1.0 - guess) / probe.samples.max(1) as f64).sqrt();
        if probe.top1 < guess + 3.0 * error {
            return None;
        }
        let kept = |top1: f64| (top1 - guess) / (probe.top1 - guess);
        let mirrored = kept(probe.mirrored) >= self.mirrors;
        let (cropped, crops) = match kept(probe.cropped) {
            kept if kept >= self.crops.1 => (Cropped::Much, "cropped"),
            kept if kept >= self.crops.0 => (Cropped::Little, "cropped a little"),
            _ => (Cropped::Not, "not cropped"),
        };
        let ViewProbe { top1, mirrored: of_mirrored, cropped: of_cropped, .. } = probe;
        let reason = format!(
            "training images are {} and {crops}: a classifier of images as they are is right for {top1:.3} of them, for \
             {of_mirrored:.3} of their mirror images and for {of_cropped:.3} of crops",
            if mirrored { "mirrored at random" } else { "not mirrored" },
        );
        Some((Views { mirrored, cropped }, reason))
    }

    /// The strategies that could be as good as this one, the likeliest first: the one to try next and, where the features
    /// of all stages together are better than the last ones, a head over them.
    pub fn rivals(&self, strategy: Strategy, evidence: &Evidence) -> Vec<Strategy> {
        let mut rivals = vec![runner_up(strategy)];
        if self.better_together(evidence) {
            rivals.push(Strategy::Intermediate);
        }
        rivals.retain(|rival| *rival != strategy);
        rivals
    }

    /// Whether the features of all stages together are better than the last ones by more than the error of the
    /// comparison.
    fn better_together(&self, evidence: &Evidence) -> bool {
        evidence.together.as_ref().is_some_and(|together| {
            together.ridge - evidence.last_top1() > self.together * evidence.paired_error_of(together)
        })
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
fn runner_up(strategy: Strategy) -> Strategy {
    match strategy {
        Strategy::SmallSimilar | Strategy::LargeSimilar | Strategy::Intermediate => Strategy::SmallDifferent,
        Strategy::SmallDifferent | Strategy::LargeDifferent | Strategy::ProbeThenTune => Strategy::LargeSimilar,
    }
}

/// The strategies to fall back on where one exceeds a limit or the network does not support it, the best first: each
/// takes less than those before it.
const FALLBACKS: [(Strategy, &[Strategy]); 6] = [
    (Strategy::SmallSimilar, &[]),
    (Strategy::SmallDifferent, &[Strategy::Intermediate, Strategy::SmallSimilar]),
    (Strategy::LargeSimilar, &[Strategy::SmallDifferent, Strategy::SmallSimilar]),
    (Strategy::LargeDifferent, &[Strategy::SmallDifferent, Strategy::Intermediate, Strategy::SmallSimilar]),
    (Strategy::Intermediate, &[Strategy::SmallSimilar]),
    (Strategy::ProbeThenTune, &[Strategy::SmallDifferent, Strategy::SmallSimilar]),
];

/// The strategy and those to fall back on, in order.
pub(super) fn preferences(strategy: Strategy) -> impl Iterator<Item = Strategy> {
    let others = FALLBACKS.iter().filter(move |(of, _)| *of == strategy).flat_map(|(_, others)| *others);
    std::iter::once(strategy).chain(others.copied())
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
        Evidence {
            task: crate::metrics::Task::Classes,
            size: SizeFigures::new(&[samples / 10; 10]),
            samples: 200,
            stages,
            together: None,
            learning_curve: vec![],
            views: None,
            seconds: 0.0,
        }
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

    #[test]
    fn a_head_sees_all_stages_where_they_are_better_together() {
        let way = |quadrant: Strategy, together: usize, narrow: bool| {
            let mut evidence = evidence([150, 170], [180, 175], 500);
            evidence.together = Some(probe(together));
            let (strategy, reason) = Policy::DEFAULT.way(quadrant, &evidence, narrow);
            assert_eq!(reason.is_some(), strategy != quadrant);
            strategy
        };
        let (similar, different) = (Strategy::SmallSimilar, Strategy::SmallDifferent);
        // The last stage has 180 right.
        assert_eq!(way(similar, 170, false), similar);
        assert_eq!(way(similar, 180, false), similar);
        assert_eq!(way(similar, 184, false), Strategy::Intermediate);
        assert_eq!(way(different, 184, false), Strategy::Intermediate);
        // A narrow network is trained; much data trains everything.
        assert_eq!(way(similar, 184, true), different);
        assert_eq!(way(similar, 180, true), similar);
        assert_eq!(way(different, 184, true), different);
        assert_eq!(way(Strategy::LargeSimilar, 199, false), Strategy::LargeSimilar);
        // As many more are right, but not of the same images: that is within the error of the comparison.
        let mut others = evidence([150, 170], [180, 175], 500);
        others.together = Some(Probe { correct: (0..200).map(|i| (10..194).contains(&i)).collect(), ..probe(184) });
        assert_eq!(Policy::DEFAULT.way(similar, &others, false).0, similar);
        assert_eq!(Policy::DEFAULT.way(similar, &evidence([0, 0], [0, 0], 500), false), (similar, None));
    }

    #[test]
    fn rivals_are_others_that_could_be_as_good() {
        let rivals = |strategy: Strategy, together: usize| {
            let mut evidence = evidence([150, 170], [180, 175], 500);
            evidence.together = Some(probe(together));
            Policy::DEFAULT.rivals(strategy, &evidence)
        };
        let (tuned, all) = (Strategy::SmallDifferent, Strategy::LargeSimilar);
        assert_eq!(rivals(Strategy::SmallSimilar, 180), [tuned]);
        assert_eq!(rivals(tuned, 180), [all]);
        assert_eq!(rivals(tuned, 184), [all, Strategy::Intermediate]);
        assert_eq!(rivals(Strategy::Intermediate, 184), [tuned]);
    }

    #[test]
    fn views_are_used_where_they_are_recognised() {
        let views = |top1: f64, mirrored: f64, cropped: f64| {
            let probe = ViewProbe { samples: 200, top1, mirrored, cropped };
            Policy::DEFAULT.views(&probe, 10).map(|(views, _)| (views.mirrored, views.cropped))
        };
        // Ten classes: guessing is right for 0.1.
        assert_eq!(views(0.9, 0.88, 0.85), Some((true, Cropped::Much)));
        assert_eq!(views(0.9, 0.75, 0.70), Some((false, Cropped::Little)));
        assert_eq!(views(0.9, 0.38, 0.54), Some((false, Cropped::Not)));
        // Hardly better than guessing: nothing can be told.
        assert_eq!(views(0.15, 0.15, 0.15), None);
    }
}
