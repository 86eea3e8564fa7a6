//! Optimizers, as plain data.

use serde::{Deserialize, Serialize};

/// An optimizer and its settings.
///
/// ```
/// use candle_finetune::Optimizer;
/// let optimizer = Optimizer::sgd(0.01).momentum(0.9).nesterov(true).weight_decay(1e-4);
/// # let _ = optimizer;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Optimizer {
    /// The update rule.
    pub rule: OptimizerRule,
    /// The learning rate of the head, before the schedule's factor.
    pub lr: f64,
    /// The weight decay: added to the gradient by SGD, decoupled in AdamW.
    pub weight_decay: f64,
    /// Whether biases and norms decay as well. By default they do not.
    pub decay_all: bool,
}

/// An update rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum OptimizerRule {
    /// Stochastic gradient descent, as PyTorch's.
    Sgd {
        /// Momentum coefficient.
        momentum: f64,
        /// Nesterov momentum (Sutskever et al. 2013).
        nesterov: bool,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101).
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
    },
}

impl OptimizerRule {
    /// The rule's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "SGD",
            Self::AdamW { .. } => "AdamW",
        }
    }
}

impl Optimizer {
    /// SGD without momentum or decay.
    pub fn sgd(lr: f64) -> Self {
        let rule = OptimizerRule::Sgd { momentum: 0.0, nesterov: false };
        Self { rule, lr, weight_decay: 0.0, decay_all: false }
    }

    /// AdamW with betas 0.9 and 0.999, eps 1e-8 and weight decay 0.01.
    pub fn adamw(lr: f64) -> Self {
        let rule = OptimizerRule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
        Self { rule, lr, weight_decay: 0.01, decay_all: false }
    }

    /// Sets the learning rate.
    pub fn lr(mut self, lr: f64) -> Self {
        self.lr = lr;
        self
    }

    /// Sets the weight decay.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// Sets whether biases and norms decay as well.
    pub fn decay_all(mut self, decay_all: bool) -> Self {
        self.decay_all = decay_all;
        self
    }

    /// Sets SGD's momentum; AdamW takes it as its first beta.
    pub fn momentum(mut self, value: f64) -> Self {
        match &mut self.rule {
            OptimizerRule::Sgd { momentum, .. } => *momentum = value,
            OptimizerRule::AdamW { beta1, .. } => *beta1 = value,
        }
        self
    }

    /// Sets Nesterov momentum for SGD. AdamW has none and is left unchanged.
    pub fn nesterov(mut self, value: bool) -> Self {
        if let OptimizerRule::Sgd { nesterov, .. } = &mut self.rule {
            *nesterov = value;
        }
        self
    }
}

impl Optimizer {
    /// Moments kept per parameter.
    pub(crate) fn moments(&self) -> usize {
        match self.rule {
            OptimizerRule::Sgd { momentum: 0.0, .. } => 0,
            OptimizerRule::Sgd { .. } => 1,
            OptimizerRule::AdamW { .. } => 2,
        }
    }

    /// The first invalid setting of the rule, if any.
    pub(crate) fn problem(&self) -> Option<String> {
        let in_range = |value: f64| (0.0..1.0).contains(&value);
        match self.rule {
            OptimizerRule::Sgd { momentum, .. } if !in_range(momentum) => {
                Some(format!("a momentum of {momentum} is not in [0, 1)"))
            }
            OptimizerRule::Sgd { momentum: 0.0, nesterov: true } => {
                Some("nesterov needs a momentum above 0; set Optimizer::momentum".into())
            }
            OptimizerRule::AdamW { beta1, beta2, .. } if !(in_range(beta1) && in_range(beta2)) => {
                Some(format!("betas of {beta1} and {beta2} are not in [0, 1)"))
            }
            OptimizerRule::AdamW { eps, .. } if !(eps.is_finite() && eps > 0.0) => {
                Some(format!("an eps of {eps} is not above 0"))
            }
            _ => None,
        }
    }
}
