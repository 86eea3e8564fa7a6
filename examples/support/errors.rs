//! The worst error of each kind, and its tolerance.

use super::figures::{Summaries, Summary};
use super::fill::probe;
use super::{Failure, Precision};
use candle_finetune::candle_core::{DType, Tensor};
use std::collections::BTreeMap;

/// The worst error of one kind.
#[derive(Clone, Debug)]
#[allow(dead_code)] // each user reads its part
pub struct Worst {
    /// "eval_logits", "gradient_l2" and so on.
    pub kind: String,
    /// Relative to the norm of the tensor; for `gradient_zero`, to the largest gradient.
    pub error: f64,
    /// The name of the tensor.
    pub at: String,
    /// The tolerance; `None` if the error is only shown.
    pub allowed: Option<f64>,
}

impl Worst {
    /// Whether the error exceeds its tolerance. NaN does.
    pub fn too_large(&self) -> bool {
        self.allowed.is_some_and(|allowed| !within(self.error, allowed))
    }
}

fn within(error: f64, allowed: f64) -> bool {
    error <= allowed
}

/// The worst errors of a run, in the order in which the kinds were added.
pub struct Errors {
    pub precision: Precision,
    pub worst: Vec<Worst>,
}

/// Which tensors a comparison is about.
#[derive(Clone, Copy)]
pub enum Group<'a> {
    /// Gradients, with the largest norm among them.
    Gradients(f64),
    /// Running statistics after one pass.
    Running,
    /// Parameters or running statistics after some steps, with the kind: "sgd_parameters".
    After(&'a str),
}

/// A gradient whose norm is below this fraction of the largest one is zero except for rounding.
const ZERO: f64 = 1e-8;
/// In f32, the norms of gradients of at least this fraction of the largest have a tolerance.
const HELD_IN_F32: f64 = 1e-4;

impl Errors {
    pub fn new(precision: Precision) -> Self {
        Self { precision, worst: vec![] }
    }

    /// Keeps an error if it is the worst of its kind.
    fn add(&mut self, kind: &str, error: f64, at: &str, f64_allows: f64, f32_allows: Option<f64>) {
        let allowed = if self.precision == Precision::F64 { Some(f64_allows) } else { f32_allows };
        let (at, kind) = (at.to_string(), kind.to_string());
        match self.worst.iter_mut().find(|w| w.kind == kind) {
            // NaN is worse than any number.
            Some(worst) if error.is_nan() || error > worst.error => *worst = Worst { kind, error, at, allowed },
            Some(_) => {}
            None => self.worst.push(Worst { kind, error, at, allowed }),
        }
    }

    /// Compares logits: the norm of the difference over the norm of the reference.
    pub fn logits(&mut self, kind: &str, found: &Tensor, figures: &[f64]) -> Result<(), Failure> {
        let found = values(found)?;
        if found.len() != figures.len() {
            return Err(format!("{kind}: {} elements, but {} in the file", found.len(), figures.len()).into());
        }
        let difference: Vec<f64> = found.iter().zip(figures).map(|(a, b)| a - b).collect();
        self.add(kind, over(norm(&difference), norm(figures)), "logits", 1e-6, Some(2e-3));
        Ok(())
    }

    /// Compares the loss of one pass.
    pub fn loss(&mut self, found: f64, figure: f64) {
        self.add("train_loss", over((found - figure).abs(), figure.abs()), "loss", 1e-6, Some(2e-3));
    }

    /// Compares the losses before each of an optimizer's steps.
    pub fn losses(&mut self, kind: &str, found: &[f64], figures: &[f64]) {
        for (step, (a, b)) in found.iter().zip(figures).enumerate() {
            self.add(kind, over((a - b).abs(), b.abs()), &format!("step {}", step + 1), 1e-6, None);
        }
    }

    /// Compares tensors by the file's names. Both sides must have the same names.
    pub fn tensors(
        &mut self,
        group: Group,
        found: &BTreeMap<String, Tensor>,
        figures: &Summaries,
    ) -> Result<(), Failure> {
        let what = match group {
            Group::Gradients(_) => "gradients",
            Group::Running => "running_after",
            Group::After(what) => what,
        };
        if let Some(name) = figures.keys().find(|name| !found.contains_key(*name)) {
            return Err(format!("{what}: {name} is in the file, but not in the network").into());
        }
        for (name, tensor) in found {
            let figure =
                figures.get(name).ok_or_else(|| format!("{what}: {name} is in the network, but not in the file"))?;
            self.tensor(group, name, &values(tensor)?, figure)?;
        }
        Ok(())
    }

    fn tensor(&mut self, group: Group, name: &str, found: &[f64], figure: &Summary) -> Result<(), Failure> {
        if figure.first.len() > found.len() {
            return Err(format!("{name}: the file has more than the tensor's {} elements", found.len()).into());
        }
        let l2 = (norm(found) - figure.l2).abs();
        let first = found.iter().zip(&figure.first).fold(0.0, |worst, (a, b)| larger(worst, (a - b).abs()));
        let probed = figure.probe.map(|figure| (probe(name, found) - figure).abs());
        if let Group::Gradients(largest) = group
            && figure.l2 < ZERO * largest
        {
            let error = larger(larger(l2, first), probed.unwrap_or_default());
            self.add("gradient_zero", over(error, largest), name, 1e-6, Some(1e-5));
            return Ok(());
        }
        let (kind, f64_allows) = match group {
            Group::Gradients(_) => ("gradient", 1e-6),
            Group::Running => ("running", 1e-6),
            Group::After(what) => (what, 1e-5),
        };
        match group {
            Group::Gradients(largest) if figure.l2 >= HELD_IN_F32 * largest => {
                self.add("gradient_l2", over(l2, figure.l2), name, f64_allows, Some(5e-2));
            }
            Group::Gradients(_) => self.add("gradient_l2_small", over(l2, figure.l2), name, f64_allows, None),
            _ => self.add(&format!("{kind}_l2"), over(l2, figure.l2), name, f64_allows, None),
        }
        self.add(&format!("{kind}_first"), over(first, figure.l2), name, f64_allows, None);
        if let Some(probed) = probed {
            self.add(&format!("{kind}_probe"), over(probed, figure.l2), name, f64_allows, None);
        }
        Ok(())
    }
}

/// All elements in row-major order, as f64.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>, Failure> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The larger of the two; NaN wins over any number.
fn larger(a: f64, b: f64) -> f64 {
    if b.is_nan() || b > a { b } else { a }
}

/// `error / size`; the error itself if the size is zero.
fn over(error: f64, size: f64) -> f64 {
    if size == 0.0 { error } else { error / size }
}
