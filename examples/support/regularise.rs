//! The options of a training that change a plan's loss, draws and regularisation.

use crate::run::Failure;
use candle_finetune::{ClassWeights, FreezePolicy, Metric, Phase, Plan, Sampling, ScheduleShape};
use clap::Args;

/// The loss, the draws and the regularisation.
#[derive(Args)]
#[command(next_help_heading = "Loss and regularisation")]
pub struct Regularise {
    /// Share of each target that is spread over all classes
    #[arg(long, value_name = "SHARE")]
    label_smoothing: Option<f64>,
    /// How strongly easy samples are down-weighted (focal loss): 2 is usual
    #[arg(long, value_name = "EXPONENT")]
    focal: Option<f64>,
    /// Weights of the classes in the loss: balanced, or one per class, separated by commas
    #[arg(long, value_name = "WEIGHTS")]
    class_weights: Option<Weights>,
    /// How an epoch draws its samples: balanced, or a weight per class, separated by commas
    #[arg(long, value_name = "WEIGHTS")]
    sampling: Option<Weights>,
    /// Blend each image with another one; parameter of the beta distribution: 0.2 is usual
    #[arg(long, value_name = "ALPHA")]
    mixup: Option<f32>,
    /// Patch each image with a piece of another one; parameter of the beta distribution: 1 is usual
    #[arg(long, value_name = "ALPHA")]
    cutmix: Option<f32>,
    /// Dropout in front of the head
    #[arg(long, value_name = "PROBABILITY")]
    pub dropout: Option<f32>,
    /// Stochastic depth: probability that a sample skips the last block
    #[arg(long, value_name = "PROBABILITY")]
    drop_path: Option<f64>,
    /// Pull the backbone's weights back to the pretrained ones: 0.01 to 1 are usual
    #[arg(long, value_name = "STRENGTH")]
    l2_sp: Option<f64>,
    /// Decay of a moving average of the weights, with its own validation: 0.999, say
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// Batches whose gradients are averaged for one step
    #[arg(long, value_name = "BATCHES")]
    grad_accum: Option<usize>,
    /// Largest norm of all gradients together
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// Largest absolute value of an element of a gradient
    #[arg(long, value_name = "VALUE")]
    clip_value: Option<f64>,
    /// Epochs without a better watched metric that end a phase
    #[arg(long, value_name = "EPOCHS")]
    patience: Option<usize>,
    /// Metric that patience and the plateau schedule watch; by default the loss
    #[arg(long, value_name = "METRIC")]
    watch: Option<Metric>,
}

/// Weights of the classes.
#[derive(Clone)]
enum Weights {
    Balanced,
    Given(Vec<f64>),
}

impl std::str::FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "balanced" {
            return Ok(Self::Balanced);
        }
        let weights = text.split(',').map(|weight| weight.trim().parse().map_err(|_| weight.to_string()));
        let weights: Result<Vec<f64>, String> = weights.collect();
        weights.map(Self::Given).map_err(|weight| format!("{weight:?} is neither `balanced` nor a number"))
    }
}

impl Regularise {
    /// The plan with these settings.
    pub fn apply(&self, mut plan: Plan) -> Result<Plan, Failure> {
        let set = [
            self.label_smoothing.is_some() || self.focal.is_some() || self.class_weights.is_some(),
            self.sampling.is_some() || self.mixup.is_some() || self.cutmix.is_some(),
            self.drop_path.is_some() || self.l2_sp.is_some() || self.ema.is_some() || self.grad_accum.is_some(),
            self.clip.is_some() || self.clip_value.is_some() || self.patience.is_some() || self.watch.is_some(),
        ];
        if plan.phases.is_empty() && set.contains(&true) {
            return Err("this strategy fits a head and trains no phase; loss and regularisation have no effect".into());
        }
        plan.loss.label_smoothing = self.label_smoothing.unwrap_or(plan.loss.label_smoothing);
        plan.loss.focal = self.focal.unwrap_or(plan.loss.focal);
        match &self.class_weights {
            Some(Weights::Balanced) => plan.loss.class_weights = ClassWeights::Balanced,
            Some(Weights::Given(weights)) => plan.loss.class_weights = ClassWeights::Given(weights.clone()),
            None => {}
        }
        match &self.sampling {
            Some(Weights::Balanced) => plan.sampling = Sampling::Balanced,
            Some(Weights::Given(weights)) => plan.sampling = Sampling::Weighted(weights.clone()),
            None => {}
        }
        if self.mixup.is_some() || self.cutmix.is_some() {
            let (mixup, cutmix) =
                (self.mixup.unwrap_or(plan.augment.mixup), self.cutmix.unwrap_or(plan.augment.cutmix));
            plan.augment = plan.augment.mixup(mixup).cutmix(cutmix);
        }
        plan.drop_path = self.drop_path.unwrap_or(plan.drop_path);
        plan.l2_sp = self.l2_sp.unwrap_or(plan.l2_sp);
        plan.ema = self.ema.or(plan.ema);
        plan.grad_accum = self.grad_accum.unwrap_or(plan.grad_accum);
        plan.clip = self.clip.or(plan.clip);
        plan.clip_value = self.clip_value.or(plan.clip_value);
        plan.patience = self.patience.or(plan.patience);
        plan.watch = self.watch.unwrap_or(plan.watch);
        match self.without_effect(&plan) {
            Some((option, why)) => Err(format!("{option} has no effect: {why}").into()),
            None => Ok(plan),
        }
    }

    /// An option that this plan leaves without effect, and why.
    fn without_effect(&self, plan: &Plan) -> Option<(&'static str, &'static str)> {
        let augmented = plan.phases.iter().any(|phase| phase.augmented);
        let backbone = plan.phases.iter().any(|phase| phase.freeze != FreezePolicy::Backbone);
        let plateau = |phase: &Phase| matches!(phase.schedule.shape, ScheduleShape::Plateau { .. });
        let watched = plan.patience.is_some() || plan.phases.iter().any(plateau);
        let plain = "no phase of this plan trains on augmented images; add --augment light, or train more than a head";
        let frozen = "this plan trains a head alone, and the backbone stays as it is";
        let unwatched = "neither --patience nor a plateau schedule is set";
        [
            ("--mixup", self.mixup.is_some() && !augmented, plain),
            ("--cutmix", self.cutmix.is_some() && !augmented, plain),
            ("--drop-path", self.drop_path.is_some() && !backbone, frozen),
            ("--l2-sp", self.l2_sp.is_some() && !backbone, frozen),
            ("--watch", self.watch.is_some() && !watched, unwatched),
        ]
        .into_iter()
        .find_map(|(option, idle, why)| idle.then_some((option, why)))
    }
}
