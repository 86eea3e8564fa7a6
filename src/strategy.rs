//! Four preset plans, by amount of data and similarity to the pretraining data.

mod recipe;

use crate::error::{Error, Result};
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

/// One of the four quadrants of transfer learning.
///
/// | | similar to the pretraining data | different |
/// |---|---|---|
/// | little data | train only the new head | freeze the first blocks, train the rest |
/// | much data | train everything at a small rate | keep the architecture, train from scratch |
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
}

impl Strategy {
    /// All four.
    pub const ALL: [Self; 4] = [Self::SmallSimilar, Self::SmallDifferent, Self::LargeSimilar, Self::LargeDifferent];

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
        }
    }

    /// Why this is done in this quadrant.
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
        let found = Self::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|s| s.name()).collect();
            Error::invalid("strategy", format!("unknown strategy {name}; use one of {}", names.join(", ")))
        })
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
