//! A parity file as data (tests/reference/README.md describes the keys).

use super::Failure;
use candle_finetune::Naming;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The values that PyTorch computed for one architecture.
#[derive(Deserialize)]
pub struct Figures {
    pub model: String,
    pub num_classes: usize,
    pub batch: usize,
    pub size: usize,
    #[serde(default = "rgb")]
    pub channels: usize,
    #[serde(default)]
    pub frozen: Vec<String>,
    pub tensors: BTreeMap<String, Vec<usize>>,
    pub eval_logits: Vec<f64>,
    pub train_logits: Vec<f64>,
    pub train_loss: f64,
    pub gradients: Summaries,
    pub largest_gradient: f64,
    pub running_after: Summaries,
    #[serde(default)]
    pub steps: usize,
    pub sgd: Option<Trajectory>,
    pub adamw: Option<Trajectory>,
}

/// Summaries by the tensor's name in the file.
pub type Summaries = BTreeMap<String, Summary>;

/// A summary of a tensor: its norm, its first elements and its inner product with the probe.
#[derive(Deserialize)]
pub struct Summary {
    pub l2: f64,
    pub first: Vec<f64>,
    pub probe: Option<f64>,
}

/// Some steps of an optimizer, and the state after them.
#[derive(Deserialize)]
pub struct Trajectory {
    pub losses: Vec<f64>,
    pub parameters: Summaries,
    pub running: Summaries,
}

fn rgb() -> usize {
    3
}

/// The maximum number of elements, of one tensor and of all together: 2 GiB of f32.
const MOST_ELEMENTS: usize = 1 << 29;

impl Figures {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        Self::parse(&std::fs::read_to_string(path)?)
    }

    /// Parses and checks the text of a file.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let figures: Self = serde_json::from_str(text).map_err(|error| format!("not a parity file: {error}"))?;
        figures.check()?;
        Ok(figures)
    }

    /// The library whose names the file uses, and the architecture's name.
    pub fn library(&self) -> Result<(Naming, &str), Failure> {
        match self.model.split_once(':') {
            Some(("timm" | "reference", name)) => Ok((Naming::Timm, name)),
            Some(("torchvision", name)) => Ok((Naming::Torchvision, name)),
            _ => {
                Err(format!("unknown model {:?}; use timm:NAME, torchvision:NAME or reference:NAME", self.model).into())
            }
        }
    }

    /// Refuses sizes that are inconsistent or impossible.
    fn check(&self) -> Result<(), Failure> {
        let input = [self.batch, self.channels, self.size, self.size];
        let mut total = product(&input).ok_or_else(|| format!("an input of {input:?} is too large"))?;
        if total == 0 || self.num_classes == 0 {
            return Err("batch, channels, size and num_classes must be at least 1".into());
        }
        for (name, shape) in &self.tensors {
            total = product(shape)
                .and_then(|count| count.checked_add(total))
                .filter(|&total| total <= MOST_ELEMENTS)
                .ok_or_else(|| format!("more than {MOST_ELEMENTS} elements with {name} of shape {shape:?}"))?;
        }
        // Tolerances depend on it, so a damaged value must not loosen them.
        let largest = self.gradients.values().map(|gradient| gradient.l2).fold(0.0, f64::max);
        if (self.largest_gradient - largest).abs() > 1e-6 * largest {
            let found = self.largest_gradient;
            return Err(format!("largest_gradient is {found:e}, but the largest of gradients is {largest:e}").into());
        }
        let logits = self.batch.checked_mul(self.num_classes);
        for (key, found) in [("eval_logits", &self.eval_logits), ("train_logits", &self.train_logits)] {
            if Some(found.len()) != logits {
                return Err(format!("{key} has {} elements instead of batch x num_classes", found.len()).into());
            }
        }
        for (key, trajectory) in [("sgd", &self.sgd), ("adamw", &self.adamw)] {
            match trajectory {
                Some(t) if t.losses.len() != self.steps => {
                    return Err(format!("{key} has {} losses for {} steps", t.losses.len(), self.steps).into());
                }
                None if self.steps > 0 => return Err(format!("{key} is missing, but steps is {}", self.steps).into()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The number of elements, if it is within the maximum.
fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MOST_ELEMENTS)
}
