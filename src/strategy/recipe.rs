//! The plan that each strategy makes.

use super::Strategy;
use crate::backbone::Backbone;
use crate::data::Augment;
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::optim::Optimizer;
use crate::plan::{HeadStart, Init, Phase, Plan};
use crate::schedule::Schedule;

/// The head's learning rate while the backbone is frozen.
const HEAD_RATE: f64 = 1e-2;

/// The learning rate of pretrained weights divided by that of weights trained from scratch.
const PRETRAINED_SCALE: f64 = 0.1;

/// The number of samples up to which this fraction of the blocks stays frozen.
///
/// The first blocks hold generic features, edges and colours; the more data there is, the fewer blocks should stay
/// frozen. DESIGN.md has the measurements.
const FROZEN_FRACTION: [(usize, f64); 4] = [(1_000, 0.4), (3_000, 0.3), (10_000, 0.2), (50_000, 0.1)];

/// What is known of the data besides its size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Blocks that hold features worth keeping: more are not frozen in the phase that trains a part of the backbone.
    pub most_frozen: usize,
    /// The views that keep an image's class, if they were looked at.
    pub views: Option<Views>,
}

/// The views that keep an image's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Views {
    pub mirrored: bool,
    pub cropped: Cropped,
}

/// How much of an image may be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cropped {
    Not,
    Little,
    Much,
}

impl Default for Seen {
    fn default() -> Self {
        Self { most_frozen: usize::MAX, views: None }
    }
}

/// The facts that a plan depends on.
struct Facts {
    samples: usize,
    /// Whether the backbone has few features, as CIFAR's ResNets do. Narrow networks take larger rates (AdamW's best
    /// rate falls as 1 / width, Yang et al. 2022, arXiv 2203.03466), and with them batch statistics help in spite of
    /// their noise.
    narrow: bool,
}

/// Whether the backbone has few features.
pub(crate) fn is_narrow(backbone: &Backbone) -> bool {
    backbone.feature_dim() <= 128
}

impl Facts {
    fn new(backbone: &Backbone, samples: usize) -> Self {
        Self { samples, narrow: is_narrow(backbone) }
    }

    /// AdamW's rate for randomly initialised weights.
    fn scratch_rate(&self) -> f64 {
        if self.narrow { 1e-2 } else { 1e-3 }
    }

    /// AdamW's rate for pretrained weights.
    fn pretrained_rate(&self) -> f64 {
        PRETRAINED_SCALE * self.scratch_rate()
    }

    /// Samples per step. With large batches, few samples would make too few steps.
    fn batch_size(&self) -> usize {
        match self.samples {
            ..=300 if self.narrow => 8,
            ..=1000 if self.narrow => 16,
            _ => 32,
        }
    }

    /// The epochs that take about `steps` steps, within bounds.
    fn epochs(&self, steps: usize, least: usize, most: usize) -> usize {
        (steps / self.samples.div_ceil(self.batch_size()).max(1)).clamp(least, most)
    }
}

impl Strategy {
    /// The recipe for this backbone and number of training samples. It is plain data: edit it.
    ///
    /// ```
    /// use candle_finetune::{Arch, Backbone, Strategy, candle_core::Device};
    /// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// let plan = Strategy::SmallDifferent.plan(&backbone, 800);
    /// assert_eq!(plan.strategy, Some(Strategy::SmallDifferent));
    /// println!("{plan}"); // its reasons, and a line per phase
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn plan(self, backbone: &Backbone, samples: usize) -> Plan {
        self.plan_seen(backbone, samples, &Seen::default())
    }

    /// The same where more is known of the data than its size.
    pub(crate) fn plan_seen(self, backbone: &Backbone, samples: usize, seen: &Seen) -> Plan {
        let facts = Facts::new(backbone, samples);
        let blocks = backbone.blocks().len();
        let crops = if facts.narrow { Augment::none().pad_crop(2) } else { Augment::none().crop_scale(0.7, 1.0) };
        let augment = |unseen: Augment| match seen.views {
            None => unseen,
            Some(Views { mirrored, cropped }) => {
                let flip = if mirrored { 0.5 } else { 0.0 };
                let cropped = match cropped {
                    Cropped::Not => Augment::none(),
                    Cropped::Little => crops.clone(),
                    Cropped::Much => Augment::none().crop_scale(0.35, 1.0),
                };
                cropped.flip(flip)
            }
        };
        let mut plan = match self {
            Self::SmallSimilar => head_only(&facts),
            Self::SmallDifferent => {
                let augment = augment(Augment::none());
                // New views of the images in each epoch keep more blocks from overfitting, and leave no features to cache.
                let most = if augment.is_random() { 1 } else { seen.most_frozen };
                let k = frozen_blocks(blocks, samples).min(most).max(1);
                let mut plan = tuned(&facts, FreezePolicy::up_to(backbone, k), augment, seen.views.is_some());
                plan.reasons.push(match k {
                    1 => format!("the first of {blocks} blocks stays frozen"),
                    k => format!("with {samples} samples the first {k} of {blocks} blocks stay frozen"),
                });
                plan
            }
            Self::LargeSimilar => {
                tuned(&facts, FreezePolicy::Nothing, augment(crops.clone().flip(0.5)), seen.views.is_some())
            }
            Self::LargeDifferent => {
                let mut plan = from_scratch(&facts);
                plan.augment = augment(crops.clone());
                if seen.views.is_none() {
                    let reason = "no horizontal flips: they can change the meaning of images such as digits";
                    plan.reasons.push(reason.into());
                }
                plan
            }
            Self::Intermediate => Plan::new(vec![]).head_start(HeadStart::Stages).batch_size(facts.batch_size()),
            Self::ProbeThenTune => {
                let augment = augment(crops.clone().flip(0.5));
                let mut plan = tuned(&facts, FreezePolicy::Nothing, augment, seen.views.is_some());
                plan = plan.head_start(HeadStart::Probe);
                // The head is fitted, so it needs no phase of its own.
                plan.phases.remove(0);
                plan
            }
        };
        if !plan.augment.is_random() {
            plan.reasons.push("no augmentation, so the features of the frozen blocks are computed once".into());
        }
        plan.reasons.insert(0, self.reason().to_string());
        (plan.strategy, plan.samples) = (Some(self), Some(samples));
        plan
    }
}

/// How many of `blocks` stay frozen for this many samples. The more samples, the fewer; the stem always does.
fn frozen_blocks(blocks: usize, samples: usize) -> usize {
    let fraction = FROZEN_FRACTION.iter().find(|(up_to, _)| samples <= *up_to).map_or(0.0, |(_, fraction)| *fraction);
    ((blocks as f64 * fraction).round() as usize).clamp(1, blocks.saturating_sub(1).max(1))
}

/// Only the head is trained. The features are computed once, so epochs cost almost nothing.
fn head_only(facts: &Facts) -> Plan {
    let phase = Phase {
        freeze: FreezePolicy::Backbone,
        batch_norm: BatchNormMode::Frozen,
        schedule: Schedule::cosine(),
        augmented: false,
        // In case a user unfreezes the backbone: its weights are pretrained here too.
        backbone_lr_scale: facts.pretrained_rate() / HEAD_RATE,
        ..Phase::new(facts.epochs(600, 20, 80), Optimizer::adamw(HEAD_RATE))
    };
    Plan::new(vec![phase]).batch_size(facts.batch_size())
}

/// First the head alone on frozen features, because gradients through a randomly initialised head would distort them
/// (Kumar et al. 2022, arXiv 2202.10054), then everything that is not frozen at a tenth of the scratch rate.
fn tuned(facts: &Facts, freeze: FreezePolicy, augment: Augment, longer: bool) -> Plan {
    let mut plan = head_only(facts).clip(1.0);
    let (scratch, pretrained) = (facts.scratch_rate(), facts.pretrained_rate());
    // New views of the images keep a longer training from overfitting, and need it.
    let epochs = if longer && augment.is_random() {
        facts.epochs(1000, 5, if facts.narrow { 50 } else { 80 })
    } else {
        facts.epochs(400, 5, if facts.narrow { 30 } else { 10 })
    };
    let second = Phase {
        freeze,
        batch_norm: if facts.narrow { BatchNormMode::Train } else { BatchNormMode::FrozenStats },
        backbone_lr_scale: PRETRAINED_SCALE,
        schedule: Schedule::cosine().warmup(0.1),
        ..Phase::new(epochs, Optimizer::adamw(scratch))
    };
    plan.augment = augment;
    if facts.narrow {
        // With so few features the head converges soon.
        plan.phases[0].epochs = facts.epochs(150, 3, 10);
    }
    plan.phases.push(second);
    plan.reasons.push(format!(
        "pretrained weights are trained at {pretrained:.0e}, a tenth of the rate from scratch ({scratch:.0e})"
    ));
    plan
}

/// Everything is trained from random weights.
fn from_scratch(facts: &Facts) -> Plan {
    let phase = Phase {
        schedule: Schedule::cosine().warmup(0.1),
        ..Phase::new(facts.epochs(1200, 10, 40), Optimizer::adamw(facts.scratch_rate()).weight_decay(0.05))
    };
    Plan::new(vec![phase]).init(Init::Random).batch_size(facts.batch_size()).clip(1.0)
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
                for strategy in Strategy::ALL.into_iter().filter(|strategy| *strategy != Strategy::LargeDifferent) {
                    // In every phase, also where the backbone is frozen and a user may unfreeze it.
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
        // The plan freezes them, by the name of the last.
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
        }
    }
}
