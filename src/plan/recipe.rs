//! Plans of other libraries and papers.

use super::{HeadStart, Phase, Plan};
use crate::backbone::Backbone;
use crate::error::{Error, Result, by_name};
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::loss::Loss;
use crate::optim::{Optimizer, OptimizerRule};
use crate::schedule::{Schedule, ScheduleShape};
use std::fmt;
use std::str::FromStr;

/// A way to fine-tune that another library or a paper has made known, as a [`Plan`].
///
/// ```
/// use candle_finetune::{Backbone, FineTuner, Recipe, candle_core::Device};
/// let backbone = Backbone::embedded(&Device::Cpu)?;
/// let plan = Recipe::FastaiFineTune.plan(&backbone, 5).batch_size(64);
/// println!("{plan}");
/// let tuner = FineTuner::new(backbone).plan(plan);
/// # let _ = tuner;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// Batches have 32 samples and images are not augmented, unless a recipe says otherwise: set both on the plan. Without a
/// recipe, [`Strategy`](crate::Strategy) makes a plan for the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recipe {
    /// fastai's `fine_tune`: one epoch of the head at 2e-3, then everything in one cycle with half of that rate for the
    /// head, a tenth of the head's rate for the last stage and a hundredth for the first (`Learner.fine_tune` in
    /// fastai's callback/schedule.py; Adam with its defaults there). fastai also trains the batch norms in the first epoch
    /// and has three groups of layers; here each stage has its rate, evenly spaced between the two.
    FastaiFineTune,
    /// The guide "Transfer learning & fine-tuning" of Keras: 20 epochs of the head with Adam at 1e-3, then everything at
    /// 1e-5 with batch norms in inference mode.
    KerasTwoSteps,
    /// A fitted linear head, then everything (LP-FT, Kumar et al. 2022, arXiv 2202.10054): SGD with momentum 0.9 at 1e-3,
    /// cosine, batches of 64. [`Strategy::ProbeThenTune`](crate::Strategy::ProbeThenTune) is the same idea with this
    /// crate's own settings.
    ProbeThenTune,
    /// timm's layer decay, as for BEiT (Bao et al. 2021, arXiv 2106.08254): AdamW at 5e-4, each stage at 0.75 times the
    /// rate of the next, weight decay 0.05, label smoothing 0.1, cosine after 5 % warmup.
    TimmLayerDecay,
    /// Gradual unfreezing (ULMFiT, Howard and Ruder 2018, arXiv 1801.06146): the head alone, then one stage more in each
    /// phase, from the last to the first. Each stage has 1/2.6 of the rate of the next, and in each phase the rate rises
    /// for a tenth of the steps and falls to 1/32. The epochs are those of each phase.
    GradualUnfreezing,
}

impl Recipe {
    /// All.
    pub const ALL: [Self; 5] =
        [Self::FastaiFineTune, Self::KerasTwoSteps, Self::ProbeThenTune, Self::TimmLayerDecay, Self::GradualUnfreezing];

    /// The name on a command line: "fastai-fine-tune".
    pub fn name(self) -> &'static str {
        match self {
            Self::FastaiFineTune => "fastai-fine-tune",
            Self::KerasTwoSteps => "keras-two-steps",
            Self::ProbeThenTune => "lp-ft",
            Self::TimmLayerDecay => "timm-layer-decay",
            Self::GradualUnfreezing => "gradual-unfreezing",
        }
    }

    /// The plan, with so many epochs of its main phase; of [`Recipe::GradualUnfreezing`] of each phase.
    pub fn plan(self, backbone: &Backbone, epochs: usize) -> Plan {
        let mut stages: Vec<&str> = backbone.blocks().iter().map(|block| block.stage.as_str()).collect();
        stages.dedup();
        let head = |epochs: usize, optimizer: Optimizer| {
            Phase::new(epochs, optimizer).freeze(FreezePolicy::Backbone).batch_norm(BatchNormMode::Frozen)
        };
        let mut plan = match self {
            Self::FastaiFineTune => {
                let rule = OptimizerRule::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-5 };
                let adam = |lr: f64| Optimizer { rule, ..Optimizer::adamw(lr) };
                let cycle = |start: f64, peak: f64| Schedule {
                    shape: ScheduleShape::OneCycle { start, momentum: Some((0.85, 0.95)) },
                    ..Schedule::one_cycle().warmup(peak).least(1e-5)
                };
                let spread = 0.1f64.powf(1.0 / stages.len().saturating_sub(1).max(1) as f64);
                let all = Phase::new(epochs, adam(1e-3)).schedule(cycle(0.2, 0.3));
                // The last stage has one step of the decay already.
                let all = all.backbone_lr_scale(0.1 / spread).layer_decay(spread);
                Plan::new(vec![head(1, adam(2e-3)).schedule(cycle(1.0 / 25.0, 0.99)), all]).batch_size(64)
            }
            Self::KerasTwoSteps => {
                let adam = |lr: f64| Optimizer::adamw(lr).weight_decay(0.0);
                let all = Phase::new(epochs, adam(1e-5)).batch_norm(BatchNormMode::FrozenStats);
                Plan::new(vec![head(20, adam(1e-3)), all])
            }
            Self::ProbeThenTune => {
                let all = Phase::new(epochs, Optimizer::sgd(1e-3).momentum(0.9)).schedule(Schedule::cosine());
                Plan::new(vec![all.batch_norm(BatchNormMode::FrozenStats)]).head_start(HeadStart::Probe).batch_size(64)
            }
            Self::TimmLayerDecay => {
                let all = Phase::new(epochs, Optimizer::adamw(5e-4).weight_decay(0.05)).layer_decay(0.75);
                let all = all.schedule(Schedule::cosine().warmup(0.05)).batch_norm(BatchNormMode::Train);
                Plan::new(vec![all]).loss(Loss::cross_entropy().label_smoothing(0.1))
            }
            Self::GradualUnfreezing => {
                let triangle = Schedule::linear().warmup(0.1).least(1.0 / 32.0);
                let adam = Optimizer::adamw(1e-3);
                let mut phases = vec![head(epochs, adam).schedule(triangle)];
                for trained in 1..=stages.len() {
                    let frozen = stages.len() - trained;
                    let freeze = match frozen.checked_sub(1) {
                        Some(last) => FreezePolicy::UpTo(stages[last].to_string()),
                        None => FreezePolicy::Nothing,
                    };
                    let phase = Phase::new(epochs, adam).freeze(freeze).schedule(triangle);
                    let phase = phase.batch_norm(BatchNormMode::FrozenStats);
                    phases.push(phase.layer_decay(1.0 / 2.6));
                }
                Plan::new(phases)
            }
        };
        plan.reasons.push(format!("the recipe {}", self.name()));
        plan
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recipe {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("recipe", name, &Self::ALL, Self::name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn recipes_are_sound_and_have_the_rates_of_their_sources() {
        let backbone = Backbone::embedded(&Device::Cpu).unwrap();
        for recipe in Recipe::ALL {
            let plan = recipe.plan(&backbone, 4);
            plan.check(&backbone).unwrap();
            assert_eq!(recipe.name().parse::<Recipe>().unwrap(), recipe);
            assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
        }
        assert!("ft".parse::<Recipe>().unwrap_err().to_string().contains("lp-ft"));
        // One stage more in each phase: stem, layer1, layer2, layer3.
        let plan = Recipe::GradualUnfreezing.plan(&backbone, 2);
        let frozen: Vec<usize> =
            plan.phases.iter().map(|phase| phase.freeze.frozen_blocks(&backbone).unwrap()).collect();
        assert_eq!(frozen, [10, 7, 4, 1, 0]);
        assert!(plan.phases.iter().all(|phase| phase.epochs == 2));
    }
}
