//! The four quadrants: how much data there is, and how much it resembles what the network was trained on.

use crate::backbone::Backbone;
use crate::data::Augment;
use crate::error::{Error, Result};
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::optim::Optimizer;
use crate::plan::{Init, Phase, Plan};
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

/// The head's rate when it alone learns.
const HEAD_RATE: f64 = 1e-2;

/// The share of the scratch rate at which pretrained weights learn.
const PRETRAINED_SHARE: f64 = 0.1;

/// A share of the blocks and the number of samples up to which it stays frozen.
///
/// The first blocks hold generic features, edges and colours; the more data there is, the fewer of them it pays to
/// keep. DESIGN.md has what was measured.
const FROZEN_SHARE: [(usize, f64); 4] = [(1_000, 0.4), (3_000, 0.3), (10_000, 0.2), (50_000, 0.1)];

/// What a plan has to know of the backbone.
struct Facts {
    samples: usize,
    /// Few features, as CIFAR's ResNets have. Narrow networks take larger rates (AdamW's best one falls as 1 / width,
    /// Yang et al. 2022, arXiv 2203.03466), and they are so small that batch statistics are worth their noise.
    narrow: bool,
}

impl Facts {
    fn new(backbone: &Backbone, samples: usize) -> Self {
        Self { samples, narrow: backbone.feature_dim() <= 128 }
    }

    /// AdamW's rate for weights that start random.
    fn scratch_rate(&self) -> f64 {
        if self.narrow { 1e-2 } else { 1e-3 }
    }

    /// AdamW's rate for pretrained weights.
    fn pretrained_rate(&self) -> f64 {
        PRETRAINED_SHARE * self.scratch_rate()
    }

    /// Samples per step: few samples make too few steps of large batches.
    fn batch_size(&self) -> usize {
        match self.samples {
            ..=300 if self.narrow => 8,
            ..=1000 if self.narrow => 16,
            _ => 32,
        }
    }

    /// Epochs that make about `steps` steps, within bounds.
    fn epochs(&self, steps: usize, least: usize, most: usize) -> usize {
        (steps / self.samples.div_ceil(self.batch_size()).max(1)).clamp(least, most)
    }
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
                "much data unlike the pretraining's: the architecture stays, its weights are randomly initialised"
            }
        }
    }

    /// The recipe for this backbone and number of training samples. It is plain data: change what you like.
    pub fn plan(self, backbone: &Backbone, samples: usize) -> Plan {
        let facts = Facts::new(backbone, samples);
        let blocks = backbone.blocks().len();
        let crops = if facts.narrow { Augment::none().pad_crop(2) } else { Augment::none().crop_scale(0.7, 1.0) };
        let mut plan = match self {
            Self::SmallSimilar => head_only(&facts),
            Self::SmallDifferent => {
                let k = frozen_blocks(blocks, samples);
                let mut plan = tuned(&facts, FreezePolicy::up_to(backbone, k));
                plan.reasons.push(format!("{samples} samples keep the first {k} of {blocks} blocks frozen"));
                plan
            }
            Self::LargeSimilar => {
                let mut plan = tuned(&facts, FreezePolicy::Nothing);
                plan.augment = crops.flip(0.5);
                plan
            }
            Self::LargeDifferent => {
                let mut plan = from_scratch(&facts);
                plan.augment = crops;
                plan.reasons.push("no mirror images: what is unlike photographs may not bear them, as digits".into());
                plan
            }
        };
        if !plan.augment.is_random() {
            plan.reasons.push("images are not varied, so what the frozen blocks make of them is computed once".into());
        }
        plan.reasons.insert(0, self.reason().to_string());
        plan
    }
}

/// How many of `blocks` stay frozen for this many samples; falls as the samples grow, never below the stem.
fn frozen_blocks(blocks: usize, samples: usize) -> usize {
    let share = FROZEN_SHARE.iter().find(|(up_to, _)| samples <= *up_to).map_or(0.0, |(_, share)| *share);
    ((blocks as f64 * share).round() as usize).clamp(1, blocks.saturating_sub(1).max(1))
}

/// The features are computed once, so epochs are almost free.
fn head_only(facts: &Facts) -> Plan {
    let phase = Phase {
        freeze: FreezePolicy::Backbone,
        batch_norm: BatchNormMode::Frozen,
        schedule: Schedule::cosine(),
        augment: false,
        // For whoever opens the backbone: its weights are pretrained here too.
        backbone_lr_scale: facts.pretrained_rate() / HEAD_RATE,
        ..Phase::new(facts.epochs(600, 20, 80), Optimizer::adamw(HEAD_RATE))
    };
    Plan::new(vec![phase]).batch_size(facts.batch_size())
}

/// First the head alone on frozen features, so that its random start does not spoil them (Kumar et al. 2022,
/// arXiv 2202.10054), then everything that is not frozen at a tenth of the scratch rate.
fn tuned(facts: &Facts, freeze: FreezePolicy) -> Plan {
    let mut plan = head_only(facts).clip(1.0);
    let (scratch, pretrained) = (facts.scratch_rate(), facts.pretrained_rate());
    let second = Phase {
        freeze,
        batch_norm: if facts.narrow { BatchNormMode::Train } else { BatchNormMode::FrozenStats },
        backbone_lr_scale: PRETRAINED_SHARE,
        schedule: Schedule::cosine().warmup(0.1),
        ..Phase::new(facts.epochs(400, 5, if facts.narrow { 30 } else { 10 }), Optimizer::adamw(scratch))
    };
    if facts.narrow {
        // Its features are so few that the head is soon done.
        plan.phases[0].epochs = facts.epochs(150, 3, 10);
    }
    plan.phases.push(second);
    plan.reasons.push(format!(
        "pretrained weights learn at {pretrained:.0e}, a tenth of the rate from scratch ({scratch:.0e})"
    ));
    plan
}

fn from_scratch(facts: &Facts) -> Plan {
    let phase = Phase {
        schedule: Schedule::cosine().warmup(0.1),
        ..Phase::new(facts.epochs(1200, 10, 40), Optimizer::adamw(facts.scratch_rate()).weight_decay(0.05))
    };
    Plan::new(vec![phase]).init(Init::Random).batch_size(facts.batch_size()).clip(1.0)
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
        let rate = |phase: &Phase| phase.optimizer.lr * phase.backbone_lr_scale;
        for arch in [Arch::RESNET18, Arch::CIFAR_RESNET20] {
            let backbone = Backbone::random(arch, 1, &Device::Cpu).unwrap();
            for samples in [50, 500, 5_000, 50_000] {
                let scratch = rate(&Strategy::LargeDifferent.plan(&backbone, samples).phases[0]);
                for strategy in [Strategy::SmallSimilar, Strategy::SmallDifferent, Strategy::LargeSimilar] {
                    // In every phase, also where the backbone is frozen and a user may open it.
                    for phase in &strategy.plan(&backbone, samples).phases {
                        assert!((rate(phase) * 10.0 - scratch).abs() < 1e-12, "{arch} {strategy} {samples}");
                    }
                }
                let head = Strategy::SmallSimilar.plan(&backbone, samples);
                assert!(head.phases.iter().all(|p| p.freeze == FreezePolicy::Backbone));
            }
        }
    }

    #[test]
    fn fewer_blocks_stay_frozen_as_the_data_grows() {
        for arch in Arch::all() {
            let blocks = arch.blueprint(crate::Naming::Timm, 3).unwrap().blocks().len();
            let counts: Vec<usize> =
                [10, 1_000, 3_000, 10_000, 50_000, 1_000_000].iter().map(|&n| frozen_blocks(blocks, n)).collect();
            assert!(counts.is_sorted_by(|a, b| a >= b), "{arch} {counts:?}");
            assert!(counts[0] > *counts.last().unwrap(), "{arch} {counts:?}");
            assert!(counts.iter().all(|&k| k >= 1 && k < blocks), "{arch} {counts:?}");
        }
        // The plan freezes them, under the name of the last.
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        let frozen = |samples| {
            let plan = Strategy::SmallDifferent.plan(&backbone, samples);
            plan.phases[1].freeze.frozen_blocks(&backbone).unwrap()
        };
        assert_eq!([100, 2_000, 5_000, 20_000, 1_000_000].map(frozen), [4, 3, 2, 1, 1]);
    }

    #[test]
    fn every_plan_is_sound_and_prints_its_reasons() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        for strategy in Strategy::ALL {
            for samples in [1, 100, 10_000] {
                let plan = strategy.plan(&backbone, samples);
                plan.check(&backbone).unwrap();
                // The text is wrapped.
                let text = plan.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(text.contains(strategy.reason()), "{text}");
                let text = serde_json::to_string(&plan).unwrap();
                assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
            }
            assert_eq!(strategy.name().parse::<Strategy>().unwrap(), strategy);
        }
        assert!("small".parse::<Strategy>().unwrap_err().to_string().contains("small-similar"));
    }
}
