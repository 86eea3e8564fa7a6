//! Trainable parameters, their optimizer state and the optimizer step.

use crate::error::{Error, Result};
use crate::ops::{Gradient, Gradients, Moments, Rule, update};
use crate::optim::{Optimizer, OptimizerRule};
use candle_core::{Tensor, TensorId, Var};
use std::collections::BTreeMap;

/// How one parameter is stepped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group {
    /// The factor on the optimizer's rate.
    pub lr_scale: f64,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// A trainable parameter.
pub(super) struct Learner {
    pub name: String,
    pub variable: Var,
    pub group: Group,
    /// The optimizer's moments; none before the first step.
    moments: Moments,
    /// Steps made with these moments.
    steps: u64,
}

/// The moments of one parameter as plain tensors, and the steps made with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LearnerState<T = Tensor> {
    /// On the CPU, of one dimension.
    pub moments: Vec<T>,
    pub steps: u64,
}

impl Learner {
    fn new(name: String, variable: Var, group: Group) -> Result<Self> {
        let moments = Moments::zeros(&variable, 0)?;
        Ok(Self { name, variable, group, moments, steps: 0 })
    }

    /// Its gradient, if the backward pass reached it.
    pub fn gradient<'a>(&self, gradients: &'a Gradients) -> Option<&'a Gradient> {
        gradients.get(&self.name)
    }

    /// One step; `factor` is the schedule's, `clip` the factor on the gradient.
    fn step(&mut self, optimizer: &Optimizer, gradient: &Gradient, factor: f64, clip: f64) -> Result<()> {
        let count = optimizer.moments();
        if self.moments.count() != count {
            (self.moments, self.steps) = (Moments::zeros(&self.variable, count)?, 0);
        }
        self.steps += 1;
        let lr = optimizer.lr * factor * self.group.lr_scale;
        let decay = if self.group.decays || optimizer.decay_all { optimizer.weight_decay } else { 0.0 };
        let rule = match optimizer.rule {
            OptimizerRule::Sgd { momentum, nesterov } => {
                Rule::Sgd { lr, momentum, nesterov, decay, first: self.steps == 1 }
            }
            OptimizerRule::AdamW { beta1, beta2, eps } => {
                Rule::AdamW { lr, betas: (beta1, beta2), eps, decay, step: self.steps }
            }
        };
        Ok(update(&self.variable, gradient, &mut self.moments, rule, clip)?)
    }
}

/// What a step has found.
pub(super) struct Stepped {
    /// The Euclidean norm of all gradients, before clipping.
    pub norm: f64,
    /// The parameters whose gradients are zero.
    pub silent: Vec<String>,
}

/// All trainable parameters, in the order of their names, and the optimizer state of those that pause.
#[derive(Default)]
pub(super) struct Learners {
    learning: Vec<Learner>,
    /// Moments of parameters that were trained in an earlier phase and are frozen in this one.
    paused: BTreeMap<String, (Moments, u64)>,
}

impl Learners {
    /// Takes the parameters of a phase, in the order of their names. Moments are kept by name.
    pub fn enter(&mut self, parameters: Vec<(String, Var, Group)>) -> Result<()> {
        for learner in std::mem::take(&mut self.learning) {
            self.paused.insert(learner.name, (learner.moments, learner.steps));
        }
        for (name, variable, group) in parameters {
            let paused = self.paused.remove(&name);
            let mut learner = Learner::new(name, variable, group)?;
            if let Some((moments, steps)) = paused {
                (learner.moments, learner.steps) = (moments, steps);
            }
            self.learning.push(learner);
        }
        Ok(())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Learner> {
        self.learning.iter()
    }

    /// Name and id of every variable.
    pub fn ids(&self) -> impl Iterator<Item = (&str, TensorId)> {
        self.iter().map(|learner| (learner.name.as_str(), learner.variable.id()))
    }

    /// One step of every parameter that has a gradient; `factor` is the schedule's.
    ///
    /// # Errors
    /// With the names of the parameters whose gradients are not finite, through `not_finite`; no step is made then.
    pub fn step(
        &mut self,
        gradients: &Gradients,
        optimizer: &Optimizer,
        factor: f64,
        clip: Option<f64>,
        not_finite: impl FnOnce(Vec<String>) -> Error,
    ) -> Result<Stepped> {
        let (mut sum, mut silent) = (0.0, vec![]);
        for learner in self.iter() {
            if let Some(gradient) = learner.gradient(gradients) {
                let squares = gradient.square_sum()?;
                sum += squares;
                if squares == 0.0 {
                    silent.push(learner.name.clone());
                }
            }
        }
        let norm = f64::sqrt(sum);
        if !norm.is_finite() {
            return Err(not_finite(self.not_finite(gradients)?));
        }
        let scale = clip.filter(|&most| norm > most).map_or(1.0, |most| most / norm);
        for learner in &mut self.learning {
            if let Some(gradient) = learner.gradient(gradients) {
                learner.step(optimizer, gradient, factor, scale)?;
            }
        }
        Ok(Stepped { norm, silent })
    }

    /// The names of the parameters whose gradients are not finite.
    pub fn not_finite(&self, gradients: &Gradients) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for learner in self.iter() {
            if let Some(gradient) = learner.gradient(gradients)
                && !gradient.square_sum()?.is_finite()
            {
                names.push(learner.name.clone());
            }
        }
        Ok(names)
    }

    /// Copies of the moments of every parameter that has been stepped, by name.
    pub fn state(&self) -> Result<BTreeMap<String, LearnerState>> {
        let learning = self.learning.iter().map(|learner| (&learner.name, &learner.moments, learner.steps));
        let paused = self.paused.iter().map(|(name, (moments, steps))| (name, moments, *steps));
        let stepped = learning.chain(paused).filter(|(.., steps)| *steps > 0);
        stepped
            .map(|(name, moments, steps)| Ok((name.clone(), LearnerState { moments: moments.to_tensors()?, steps })))
            .collect()
    }

    /// Puts a state back, in place of all moments; `like` gives the tensor of each name.
    pub fn restore(
        &mut self,
        state: &BTreeMap<String, LearnerState>,
        like: impl Fn(&str) -> Option<Tensor>,
    ) -> Result<()> {
        self.paused.clear();
        let mut restored = BTreeMap::new();
        for (name, LearnerState { moments, steps }) in state {
            let Some(tensor) = like(name) else {
                return Err(Error::invalid("run state", format!("has moments of {name}, which this network lacks")));
            };
            restored.insert(name.clone(), (Moments::from_tensors(&tensor, moments)?, *steps));
        }
        for learner in &mut self.learning {
            (learner.moments, learner.steps) = match restored.remove(&learner.name) {
                Some(restored) => restored,
                None => (Moments::zeros(&learner.variable, 0)?, 0),
            };
        }
        self.paused = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    const DECAYS: Group = Group { lr_scale: 1.0, decays: true };

    /// w = [1, -2], with moments on the CPU or in Candle's tensors.
    fn learner(on_device: Option<usize>) -> Learner {
        let variable = Var::new(&[1f64, -2.0], &Device::Cpu).unwrap();
        let mut learner = Learner::new("w".into(), variable.clone(), DECAYS).unwrap();
        if let Some(count) = on_device {
            learner.moments = Moments::Device((0..count).map(|_| variable.zeros_like().unwrap()).collect());
        }
        learner
    }

    fn gradient(values: [f64; 2]) -> Gradient {
        Gradient::Tensor(Tensor::new(&values, &Device::Cpu).unwrap())
    }

    fn values(learner: &Learner) -> Vec<f64> {
        learner.variable.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    const THREE: [[f64; 2]; 3] = [[0.5, 1.0], [-0.25, 2.0], [1.0, -3.0]];

    fn optimizers() -> [(Optimizer, usize, [f64; 2]); 4] {
        let adamw = OptimizerRule::AdamW { beta1: 0.8, beta2: 0.95, eps: 1e-3 };
        let adamw = Optimizer { rule: adamw, ..Optimizer::adamw(0.1).weight_decay(0.1) };
        let sgd = Optimizer::sgd(0.1).weight_decay(0.1);
        [
            (sgd, 0, [0.846_044, -1.936_608]),
            (sgd.momentum(0.9), 1, [0.758_024, -2.233_968]),
            (sgd.momentum(0.9).nesterov(true), 1, [0.630_906_146, -2.140_238_472]),
            (adamw, 2, [0.783_216_899_990_568_5, -2.120_902_017_037_489]),
        ]
    }

    /// The values are PyTorch 2.15's, for the same three steps: torch.optim.SGD and AdamW in float64.
    #[test]
    fn three_steps_as_pytorch_makes_them() {
        for (optimizer, count, expected) in optimizers() {
            for on_device in [None, Some(count)] {
                let mut learner = learner(on_device);
                for g in THREE {
                    learner.step(&optimizer, &gradient(g), 1.0, 1.0).unwrap();
                }
                let w = values(&learner);
                let close = w.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-12);
                assert!(close, "{optimizer:?} {on_device:?}: {w:?}, not {expected:?}");
            }
        }
    }

    /// Also where the parameter pauses for a phase meanwhile.
    #[test]
    fn a_restored_state_steps_on_as_the_one_it_was_copied_from() {
        for (optimizer, count, _) in optimizers() {
            let mut learners = Learners { learning: vec![learner(None)], paused: BTreeMap::new() };
            let step = |learners: &mut Learners, g| {
                learners.learning[0].step(&optimizer, &gradient(g), 1.0, 1.0).unwrap();
            };
            step(&mut learners, THREE[0]);
            let (state, w) = (learners.state().unwrap(), values(&learners.learning[0]));
            step(&mut learners, THREE[1]);
            assert_eq!((state["w"].steps, state["w"].moments.len()), (1, count));
            let var = Var::new(w.as_slice(), &Device::Cpu).unwrap();
            let mut other = Learners::default();
            other.enter(vec![("w".into(), var.clone(), DECAYS)]).unwrap();
            other.restore(&state, |_| Some(var.as_tensor().clone())).unwrap();
            other.enter(vec![]).unwrap();
            other.enter(vec![("w".into(), var.clone(), DECAYS)]).unwrap();
            step(&mut other, THREE[1]);
            assert_eq!(values(&other.learning[0]), values(&learners.learning[0]), "{optimizer:?}");
            assert!(other.restore(&state, |_| None).is_err());
            let long = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
            assert!(count == 0 || other.restore(&state, |_| Some(long.clone())).is_err());
        }
    }
}
