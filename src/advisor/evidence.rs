//! What was measured.

use crate::metrics::Task;
use crate::probe::Verdict;
use serde::Serialize;

/// What the advisor measured of a dataset: how large it is, and how well the features after each stage of the frozen
/// network separate its classes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Evidence {
    /// Whether images have one class or lists of labels. In all figures here an image with a list is counted under its
    /// rarest label alone, and images without labels form a class of their own.
    pub task: Task,
    /// How many images there are.
    pub size: SizeFigures,
    /// The number of images that were looked at: all, or of each class the same fraction.
    pub samples: usize,
    /// The probes after each stage.
    pub stages: Vec<StageProbe>,
    /// The probe of the features of all stages together, which [`Strategy::Intermediate`](crate::Strategy::Intermediate)
    /// would see; `None` without stages.
    pub together: Option<Probe>,
    /// The accuracy by the number of images, of the features of all stages together: a quarter of those looked at, half
    /// of them, all; without the parts in which a class would have fewer than four. Each image is judged by the others
    /// of its part.
    pub learning_curve: Vec<CurvePoint>,
    /// How mirrored and cropped views are recognised; `None` if the plan trains from unchanged images anyway.
    pub views: Option<ViewProbe>,
    /// Seconds that the whole advice took.
    pub seconds: f64,
}

/// The accuracy of a classifier of this many images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CurvePoint {
    /// Images.
    pub samples: usize,
    /// The accuracy, in [0, 1].
    pub top1: f64,
}

/// How well a classifier of images as they are recognises views of them, by the features of the stage that recognises
/// the images best. Each image, and its view, is judged by the others.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ViewProbe {
    /// Images that were looked at.
    pub samples: usize,
    /// The accuracy on the images, in [0, 1].
    pub top1: f64,
    /// The accuracy on their mirror images, in [0, 1].
    pub mirrored: f64,
    /// The accuracy on crops of 35 to 100 % of their area, in [0, 1].
    pub cropped: f64,
}

/// How many images there are of each class.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SizeFigures {
    /// All samples.
    pub samples: usize,
    /// Classes.
    pub classes: usize,
    /// Of the smallest class.
    pub least: usize,
    /// Of the middle one.
    pub median: usize,
    /// Of the largest.
    pub most: usize,
}

impl Evidence {
    /// The accuracy after the last stage, on the features that a head gets.
    pub(super) fn last_top1(&self) -> f64 {
        self.stages.last().map_or(0.0, |stage| stage.mean.ridge)
    }

    /// The stage whose features separate the classes best, and whether they do in the grid; of equal ones the last.
    pub(super) fn best(&self) -> Option<(&StageProbe, bool)> {
        let all = self.stages.iter().flat_map(|stage| [(stage, true), (stage, false)]);
        let top1 = |&(stage, grid): &(&StageProbe, bool)| if grid { stage.grid.ridge } else { stage.mean.ridge };
        all.max_by(|a, b| top1(a).total_cmp(&top1(b)))
    }

    /// The accuracy that the second half of the images looked at has brought ([`Evidence::learning_curve`]); `None` if
    /// half is too few to tell.
    pub fn gain(&self) -> Option<f64> {
        match self.learning_curve[..] {
            [.., half, all] => Some(all.top1 - half.top1),
            _ => None,
        }
    }

    /// The standard error of an accuracy over the samples that were looked at.
    pub(super) fn error(&self, top1: f64) -> f64 {
        (top1 * (1.0 - top1) / self.samples.max(1) as f64).sqrt()
    }

    /// The standard error of the difference in accuracy between a stage and the last one, sample by sample.
    pub(super) fn paired_error(&self, stage: &StageProbe, grid: bool) -> f64 {
        self.paired_error_of(if grid { &stage.grid } else { &stage.mean })
    }

    /// The same of any probe.
    pub(super) fn paired_error_of(&self, probe: &Probe) -> f64 {
        let Some(last) = self.stages.last() else { return 0.0 };
        let pairs = probe.correct.iter().zip(&last.mean.correct);
        let differ = pairs.filter(|(a, b)| a != b).count() as f64;
        differ.sqrt() / self.samples.max(1) as f64
    }
}

impl SizeFigures {
    pub(super) fn new(sizes: &[usize]) -> Self {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable();
        let at = |i: usize| sizes.get(i).copied().unwrap_or(0);
        Self {
            samples: sizes.iter().sum(),
            classes: sizes.len(),
            least: at(0),
            median: at(sizes.len() / 2),
            most: at(sizes.len().saturating_sub(1)),
        }
    }
}

/// The probes of the features after one stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageProbe {
    /// The stage.
    pub stage: String,
    /// On the mean over all pixels.
    pub mean: Probe,
    /// On the means over 4 x 4 cells.
    pub grid: Probe,
}

/// How well features separate the classes: the accuracy of classifiers that judge each sample by all others, or by
/// those of other groups.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Probe {
    /// Accuracy of ridge regression, in [0, 1].
    pub ridge: f64,
    /// Accuracy of the five nearest neighbours, in [0, 1].
    pub neighbours: f64,
    #[serde(skip)]
    pub(super) correct: Vec<bool>,
}

impl Probe {
    pub(super) fn new(ridge: &Verdict, near: &Verdict) -> Self {
        Self { ridge: ridge.top1(), neighbours: near.top1(), correct: ridge.correct.clone() }
    }
}
