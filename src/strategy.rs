//! The four quadrants: how much data there is, and how much it resembles what the network was trained on.

use crate::backbone::Backbone;
use crate::data::Augment;
use crate::error::{Error, Result};
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::loss::Loss;
use crate::optim::Optimizer;
use crate::plan::{Phase, Plan, Start};
use crate::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How many images there are, for what is to be learnt.
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
    /// Things of the same kind, seen in the same way.
    Similar,
    /// Other things, or another way of seeing: drawings, microscopy, single channels.
    Different,
}

/// One of the four ways of transfer learning.
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
    /// Little data, similar: only the new head learns.
    SmallSimilar,
    /// Little data, different: the first k blocks are frozen, the others and the head learn.
    SmallDifferent,
    /// Much data, similar: everything learns, from the pretrained weights, at a small rate.
    LargeSimilar,
    /// Much data, different: the architecture is kept and trained from random weights.
    LargeDifferent,
}

/// AdamW's rate for weights that start from chance. Pretrained ones learn at a tenth.
const SCRATCH_RATE: f64 = 1e-3;

/// The share of the scratch rate at which pretrained weights learn.
const PRETRAINED_SHARE: f64 = 0.1;

/// A share of the blocks and the number of samples up to which it stays frozen.
///
/// The first blocks hold generic features, edges and colours; the more data there is, the fewer of them it pays to
/// keep. The values were tuned by measurement, see DESIGN.md.
const FROZEN_SHARE: [(usize, f64); 5] = [(300, 0.5), (1_000, 0.4), (3_000, 0.3), (10_000, 0.2), (50_000, 0.1)];

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

    /// Why one does this in this quadrant.
    pub fn reason(self) -> &'static str {
        match self {
            Self::SmallSimilar => {
                "little data that resembles the pretraining's: the features fit as they are, and training them \
                 on so little would overfit, so only the new head learns"
            }
            Self::SmallDifferent => {
                "little data unlike the pretraining's: the first blocks hold generic features and stay, \
                 the later, specific ones and the head learn"
            }
            Self::LargeSimilar => {
                "much data that resembles the pretraining's: the weights are a good start, \
                 and there is enough data to tune all of them at a small rate"
            }
            Self::LargeDifferent => {
                "much data unlike the pretraining's: the architecture stays, its weights start from chance"
            }
        }
    }

    /// The recipe for this backbone and number of training samples. It is plain data: change what you like.
    pub fn plan(self, backbone: &Backbone, samples: usize) -> Plan {
        let blocks = backbone.blocks().len();
        let small_images = backbone.input_spec().size.0 <= 64;
        let mut plan = match self {
            Self::SmallSimilar => head_only(samples),
            Self::SmallDifferent => {
                let k = frozen_blocks(blocks, samples);
                let mut plan = tuned(samples, FreezePolicy::First(k));
                plan.reasons.push(format!("{samples} samples keep the first {k} of {blocks} blocks frozen"));
                plan
            }
            Self::LargeSimilar => tuned(samples, FreezePolicy::Nothing),
            Self::LargeDifferent => from_scratch(samples),
        };
        plan.augment = match self {
            Self::SmallSimilar => Augment::none(),
            _ if small_images => Augment::none().pad_crop(2),
            _ => Augment::light(),
        };
        plan.reasons.insert(0, self.reason().to_string());
        plan
    }
}

/// How many of `blocks` stay frozen for this many samples; falls as the samples grow, never below the stem.
fn frozen_blocks(blocks: usize, samples: usize) -> usize {
    let share = FROZEN_SHARE.iter().find(|(up_to, _)| samples <= *up_to).map_or(0.0, |(_, share)| *share);
    ((blocks as f64 * share).round() as usize).clamp(1, blocks.saturating_sub(1).max(1))
}

/// Epochs that make about `steps` steps of 32 samples, within bounds.
fn epochs(samples: usize, steps: usize, least: usize, most: usize) -> usize {
    (steps / samples.div_ceil(32).max(1)).clamp(least, most)
}

/// The features are computed once, so epochs are almost free.
fn head_only(samples: usize) -> Plan {
    let phase = Phase {
        freeze: FreezePolicy::Backbone,
        batch_norm: BatchNormMode::Frozen,
        schedule: Schedule::cosine(),
        ..Phase::new(epochs(samples, 600, 20, 80), Optimizer::adamw(1e-2).weight_decay(1e-2))
    };
    Plan { batch_size: 32, ..Plan::new(vec![phase]) }
}

/// First the head alone on frozen features, so that its random start does not spoil them (Kumar et al. 2022,
/// arXiv 2202.10054), then everything that is not frozen at a tenth of the scratch rate.
fn tuned(samples: usize, freeze: FreezePolicy) -> Plan {
    let mut head = head_only(samples);
    let mut first = head.phases.remove(0);
    first.epochs = epochs(samples, 300, 5, 40);
    let second = Phase {
        freeze,
        // The statistics of small batches are noisy; the pretrained ones serve (measured, see DESIGN.md).
        batch_norm: BatchNormMode::FrozenStats,
        backbone_lr_scale: PRETRAINED_SHARE,
        schedule: Schedule::cosine().warmup(0.1),
        ..Phase::new(epochs(samples, 400, 5, 20), Optimizer::adamw(SCRATCH_RATE))
    };
    let mut plan = Plan::new(vec![first, second]);
    plan.clip = Some(1.0);
    plan.loss = Loss::cross_entropy();
    plan.reasons.push(format!(
        "pretrained weights learn at {:.0e}, a tenth of the rate from scratch ({SCRATCH_RATE:.0e})",
        SCRATCH_RATE * PRETRAINED_SHARE
    ));
    plan
}

fn from_scratch(samples: usize) -> Plan {
    let phase = Phase {
        schedule: Schedule::cosine().warmup(0.1),
        ..Phase::new(epochs(samples, 1200, 10, 40), Optimizer::adamw(SCRATCH_RATE).weight_decay(0.05))
    };
    let mut plan = Plan::new(vec![phase]);
    plan.init = Start::Random;
    plan.clip = Some(1.0);
    plan
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
            Error::invalid("strategy", format!("there is none called {name}; there are {}", names.join(", ")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;
    use candle_core::Device;

    #[test]
    fn pretrained_weights_learn_at_a_tenth_of_the_scratch_rate() {
        let backbone = Backbone::random(Arch::RESNET18, 1, &Device::Cpu).unwrap();
        for samples in [50, 500, 5_000, 50_000] {
            let rate = |strategy: Strategy| {
                let plan = strategy.plan(&backbone, samples);
                let phase = plan.phases.last().unwrap().clone();
                phase.optimizer.lr * phase.backbone_lr_scale
            };
            let scratch = rate(Strategy::LargeDifferent);
            for strategy in [Strategy::LargeSimilar, Strategy::SmallDifferent] {
                assert!((rate(strategy) * 10.0 - scratch).abs() < 1e-12, "{strategy} {samples}");
            }
            let head = Strategy::SmallSimilar.plan(&backbone, samples);
            assert!(head.phases.iter().all(|p| p.freeze == FreezePolicy::Backbone));
        }
    }

    #[test]
    fn fewer_blocks_stay_frozen_as_the_data_grows() {
        for arch in Arch::all().iter().filter(|a| !a.name().starts_with("vgg") || a.name().ends_with("_features")) {
            let blocks = arch.declared(3).unwrap().last().unwrap().block + 1;
            let counts: Vec<usize> =
                [10, 300, 1_000, 3_000, 10_000, 50_000, 1_000_000].iter().map(|&n| frozen_blocks(blocks, n)).collect();
            assert!(counts.is_sorted_by(|a, b| a >= b), "{arch} {counts:?}");
            assert!(counts[0] > *counts.last().unwrap(), "{arch} {counts:?}");
            assert!(counts.iter().all(|&k| k >= 1 && k < blocks), "{arch} {counts:?}");
        }
    }

    #[test]
    fn every_plan_is_sound_and_prints_its_reasons() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        for strategy in Strategy::ALL {
            for samples in [1, 100, 10_000] {
                let plan = strategy.plan(&backbone, samples);
                plan.check(&backbone).unwrap();
                assert!(plan.to_string().contains(strategy.reason()));
                let text = serde_json::to_string(&plan).unwrap();
                assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
            }
            assert_eq!(strategy.name().parse::<Strategy>().unwrap(), strategy);
        }
        assert!("small".parse::<Strategy>().unwrap_err().to_string().contains("small-similar"));
    }
}
