//! Preset plans: four by amount of data and similarity to the pretraining data, and two more.

mod recipe;

pub(crate) use recipe::{Cropped, Seen, Views, is_narrow};

use crate::error::{Error, Result, by_name};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How many training images there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DataSize {
    /// Tens or hundreds per class.
    Small,
    /// Thousands per class.
    Large,
}

/// How much the images resemble those that the network was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Similarity {
    /// Similar subjects, photographed in a similar way.
    Similar,
    /// Other subjects, or other imaging: drawings, microscopy, single channels.
    Different,
}

/// A way to fine-tune: one of the four quadrants of transfer learning, or one of two others.
///
/// | | similar to the pretraining data | different |
/// |---|---|---|
/// | little data | train only the new head | freeze the first blocks, train the rest |
/// | much data | train everything at a small rate | keep the architecture, train from scratch |
///
/// [`Strategy::Intermediate`] is for data unlike the pretraining data at the cost of a head, and
/// [`Strategy::ProbeThenTune`] trains everything, from a head that is fitted first.
///
/// ```
/// use candle_finetune::{DataSize, Similarity, Strategy};
/// assert_eq!(Strategy::new(DataSize::Small, Similarity::Different), Strategy::SmallDifferent);
/// assert_eq!("small-different".parse::<Strategy>()?, Strategy::SmallDifferent);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Strategy {
    /// Little data, similar: only the new head is trained.
    SmallSimilar,
    /// Little data, different: the first k blocks are frozen, the others and the head are trained.
    SmallDifferent,
    /// Much data, similar: everything is trained, from the pretrained weights, at a small rate.
    LargeSimilar,
    /// Much data, different: the architecture is kept and trained from random weights.
    LargeDifferent,
    /// A linear head over the features of all stages of the frozen network, of which the useful ones are selected
    /// (after Head2Toe, Evci et al. 2022, arXiv 2201.03529). It is fitted in closed form
    /// ([`HeadStart::Stages`](crate::HeadStart::Stages)): each image passes the network once.
    Intermediate,
    /// A linear head is fitted to the features first ([`HeadStart::Probe`](crate::HeadStart::Probe)), then everything
    /// is trained from the pretrained weights at a small rate (LP-FT, Kumar et al. 2022, arXiv 2202.10054).
    ProbeThenTune,
}

impl Strategy {
    /// The four of the table by size and similarity.
    pub const QUADRANTS: [Self; 4] =
        [Self::SmallSimilar, Self::SmallDifferent, Self::LargeSimilar, Self::LargeDifferent];

    /// All.
    pub const ALL: [Self; 6] = [
        Self::SmallSimilar,
        Self::SmallDifferent,
        Self::LargeSimilar,
        Self::LargeDifferent,
        Self::Intermediate,
        Self::ProbeThenTune,
    ];

    /// The strategy for this size and similarity.
    pub fn new(size: DataSize, similarity: Similarity) -> Self {
        match (size, similarity) {
            (DataSize::Small, Similarity::Similar) => Self::SmallSimilar,
            (DataSize::Small, Similarity::Different) => Self::SmallDifferent,
            (DataSize::Large, Similarity::Similar) => Self::LargeSimilar,
            (DataSize::Large, Similarity::Different) => Self::LargeDifferent,
        }
    }

    /// The name on a command line: "small-similar".
    pub fn name(self) -> &'static str {
        match self {
            Self::SmallSimilar => "small-similar",
            Self::SmallDifferent => "small-different",
            Self::LargeSimilar => "large-similar",
            Self::LargeDifferent => "large-different",
            Self::Intermediate => "intermediate",
            Self::ProbeThenTune => "probe-then-tune",
        }
    }

    /// Why this is done: in a quadrant, or at all.
    pub fn reason(self) -> &'static str {
        match self {
            Self::SmallSimilar => {
                "little data that resembles the pretraining data: the features fit as they are, and training them \
                 on so little would overfit, so only the new head is trained"
            }
            Self::SmallDifferent => {
                "little data unlike the pretraining data: the first blocks hold generic features and stay frozen, \
                 the later, more specific blocks and the head are trained"
            }
            Self::LargeSimilar => {
                "much data that resembles the pretraining data: the weights are a good start, \
                 and there is enough data to train all of them at a small rate"
            }
            Self::LargeDifferent => {
                "much data unlike the pretraining data: the architecture is kept, its weights are randomly initialised"
            }
            Self::Intermediate => {
                "data unlike the pretraining data, at the cost of a head: the features of earlier stages are more \
                 generic than the last ones, so the head sees all stages, and the useful columns are kept"
            }
            Self::ProbeThenTune => {
                "data that resembles the pretraining data: a head that fits the features from the start does not distort \
                 them while all weights are trained at a small rate"
            }
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("strategy", name, &Self::ALL, Self::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_and_unknown_ones_are_refused_with_the_known() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.name().parse::<Strategy>().unwrap(), strategy);
        }
        let error = "small".parse::<Strategy>().unwrap_err().to_string();
        assert!(error.contains("unknown strategy small") && error.contains("small-similar"), "{error}");
    }
}
