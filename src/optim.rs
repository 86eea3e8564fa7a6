//! Optimizers: plain data for the choice, and their state by parameter name.

use crate::error::Result;
use crate::ops::{Gradient, Moments, Rule, update};
use candle_core::Var;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
    /// The learning rate of the head at the schedule's full height.
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
        /// The share of the last step's direction that is kept.
        momentum: f64,
        /// Looks ahead along the momentum (Sutskever et al. 2013).
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
    /// What the rule is called.
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

    /// Sets whether SGD looks ahead along its momentum. AdamW has no such choice and is left as it is.
    pub fn nesterov(mut self, value: bool) -> Self {
        if let OptimizerRule::Sgd { nesterov, .. } = &mut self.rule {
            *nesterov = value;
        }
        self
    }
}

impl Optimizer {
    /// Moments per learning element.
    pub(crate) fn moments(&self) -> usize {
        match self.rule {
            OptimizerRule::Sgd { momentum: 0.0, .. } => 0,
            OptimizerRule::Sgd { .. } => 1,
            OptimizerRule::AdamW { .. } => 2,
        }
    }

    /// What is wrong with the rule's settings, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        match self.rule {
            OptimizerRule::Sgd { momentum, .. } if !share(momentum) => {
                Some(format!("a momentum of {momentum} is not in [0, 1)"))
            }
            OptimizerRule::Sgd { momentum: 0.0, nesterov: true } => {
                Some("nesterov looks ahead along a momentum, and that is 0; set Optimizer::momentum".into())
            }
            OptimizerRule::AdamW { beta1, beta2, .. } if !(share(beta1) && share(beta2)) => {
                Some(format!("betas of {beta1} and {beta2} are not in [0, 1)"))
            }
            OptimizerRule::AdamW { eps, .. } if !(eps.is_finite() && eps > 0.0) => {
                Some(format!("an eps of {eps} is not above 0"))
            }
            _ => None,
        }
    }
}

/// What one parameter's step needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    /// The factor on the optimizer's rate.
    pub lr_scale: f64,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// The state of an optimizer, by parameter name, so that it survives a change of phase.
#[derive(Default)]
pub(crate) struct OptimizerState {
    of: BTreeMap<String, (Moments, u64)>,
}

impl OptimizerState {
    /// One step of one parameter; `factor` is the schedule's, `clip` the factor on the gradient.
    pub fn step(
        &mut self,
        optimizer: &Optimizer,
        (name, var): (&str, &Var),
        gradient: &Gradient,
        group: Group,
        factor: f64,
        clip: f64,
    ) -> Result<()> {
        let count = optimizer.moments();
        let (moments, steps) = match self.of.entry(name.to_string()) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert((Moments::zeros(var, count)?, 0)),
        };
        if moments.count() != count {
            (*moments, *steps) = (Moments::zeros(var, count)?, 0);
        }
        *steps += 1;
        let lr = optimizer.lr * factor * group.lr_scale;
        let decay = if group.decays || optimizer.decay_all { optimizer.weight_decay } else { 0.0 };
        let rule = match optimizer.rule {
            OptimizerRule::Sgd { momentum, nesterov } => {
                Rule::Sgd { lr, momentum, nesterov, decay, first: *steps == 1 }
            }
            OptimizerRule::AdamW { beta1, beta2, eps } => {
                Rule::AdamW { lr, betas: (beta1, beta2), eps, decay, step: *steps }
            }
        };
        Ok(update(var, gradient, moments, rule, clip)?)
    }
}

/// The Euclidean norm over all gradients.
pub(crate) fn global_norm<'a>(gradients: impl Iterator<Item = &'a Gradient>) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients {
        sum += gradient.square_sum()?;
    }
    Ok(sum.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Tensor};

    /// Three steps on w = [1, -2] with these gradients, with moments on the CPU or in Candle's tensors.
    fn three(optimizer: Optimizer, moments: Option<usize>) -> Vec<f64> {
        let var = Var::new(&[1f64, -2.0], &Device::Cpu).unwrap();
        let mut state = OptimizerState::default();
        if let Some(count) = moments {
            let zeros = (0..count).map(|_| var.zeros_like().unwrap()).collect();
            state.of.insert("w".into(), (Moments::Device(zeros), 0));
        }
        for g in [[0.5f64, 1.0], [-0.25, 2.0], [1.0, -3.0]] {
            let g = Gradient::Tensor(Tensor::new(&g, &Device::Cpu).unwrap());
            let group = Group { lr_scale: 1.0, decays: true };
            state.step(&optimizer, ("w", &var), &g, group, 1.0, 1.0).unwrap();
        }
        var.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    /// The figures are PyTorch 2.15's, for the same three steps: torch.optim.SGD and AdamW in float64.
    #[test]
    fn three_steps_as_pytorch_makes_them() {
        let adamw = OptimizerRule::AdamW { beta1: 0.8, beta2: 0.95, eps: 1e-3 };
        let adamw = Optimizer { rule: adamw, ..Optimizer::adamw(0.1).weight_decay(0.1) };
        let sgd = Optimizer::sgd(0.1).weight_decay(0.1);
        let cases = [
            (sgd, 0, [0.846_044, -1.936_608]),
            (sgd.momentum(0.9), 1, [0.758_024, -2.233_968]),
            (sgd.momentum(0.9).nesterov(true), 1, [0.630_906_146, -2.140_238_472]),
            (adamw, 2, [0.783_216_899_990_568_5, -2.120_902_017_037_489]),
        ];
        for (optimizer, count, expected) in cases {
            for moments in [None, Some(count)] {
                let w = three(optimizer, moments);
                let close = w.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-12);
                assert!(close, "{optimizer:?} {moments:?}: {w:?}, not {expected:?}");
            }
        }
    }
}
