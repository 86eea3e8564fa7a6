//! Runs a network on the weights and input of a parity file and compares the results with the file's values.

mod errors;
mod figures;
mod fill;

pub use errors::Errors;
#[allow(unused_imports)] // used by tests of single errors
pub use errors::Worst;
pub use figures::Figures;

use candle_finetune::candle_core::safetensors::save;
use candle_finetune::candle_core::{DType, Device, Tensor};
use candle_finetune::{
    Arch, Backbone, Batch, FeatureCache, FineTuner, FreezePolicy, Head, Loss, Naming, Optimizer, Phase, Plan,
    Predictor, Session, Source, Targets, TensorDataset,
};
use errors::Group;
use figures::Trajectory;
use fill::filled;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use tempfile::NamedTempFile;

/// Any error that prevents a comparison.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The element type of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    F64,
    F32,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::F64 { "f64" } else { "f32" })
    }
}

/// A parity file, with its weights written to a file as its library would.
pub struct Parity {
    figures: Figures,
    arch: Arch,
    naming: Naming,
    weights: NamedTempFile,
    images: Tensor,
    labels: Vec<u32>,
}

impl Parity {
    /// Fills weights and input by the formula.
    pub fn new(figures: Figures) -> Result<Self, Failure> {
        let (naming, name) = figures.library()?;
        let arch: Arch = name.parse()?;
        let mut tensors = HashMap::new();
        for (name, shape) in &figures.tensors {
            let tensor = if name.ends_with(".num_batches_tracked") {
                Tensor::zeros(shape.as_slice(), DType::I64, &Device::Cpu)?
            } else {
                Tensor::from_vec(filled(name, shape), shape.as_slice(), &Device::Cpu)?
            };
            tensors.insert(name.clone(), tensor);
        }
        let weights = tempfile::Builder::new().suffix(".safetensors").tempfile()?;
        save(&tensors, weights.path())?;
        let shape = [figures.batch, figures.channels, figures.size, figures.size];
        let images = Tensor::from_vec(filled("input", &shape), shape.as_slice(), &Device::Cpu)?;
        let labels = (0..figures.batch).map(|b| (b % figures.num_classes) as u32).collect();
        Ok(Self { figures, arch, naming, weights, images, labels })
    }

    /// Runs all comparisons in one precision.
    pub fn compare(&self, precision: Precision) -> Result<Errors, Failure> {
        let figures = &self.figures;
        let mut errors = Errors::new(precision);
        let dtype = if precision == Precision::F64 { DType::F64 } else { DType::F32 };
        let source = Source::file(self.weights.path()).arch(self.arch).dtype(dtype).channels(figures.channels);
        let predictor = Predictor::load(source, &Device::Cpu)?;
        errors.logits("eval_logits", &predictor.logits(&self.images)?, &figures.eval_logits)?;
        let backbone = predictor.backbone();
        self.one_pass(backbone, &mut errors)?;
        let sgd = Optimizer::sgd(0.01).momentum(0.9).weight_decay(1e-4);
        let adamw = Optimizer::adamw(1e-3).weight_decay(0.01);
        for (name, optimizer, trajectory) in [("sgd", sgd, &figures.sgd), ("adamw", adamw, &figures.adamw)] {
            if let Some(trajectory) = trajectory {
                self.steps(backbone, name, optimizer, trajectory, &mut errors)?;
            }
        }
        Ok(errors)
    }

    /// Compares logits, loss, gradients and running statistics of one pass in training mode.
    fn one_pass(&self, backbone: &Backbone, errors: &mut Errors) -> Result<(), Failure> {
        let figures = &self.figures;
        let mut session = self.session(backbone, Optimizer::sgd(0.01))?;
        let batch = self.batch(&mut session)?;
        let logits = session.forward(&batch)?;
        errors.logits("train_logits", &logits, &figures.train_logits)?;
        let loss = Loss::cross_entropy().forward(&logits, &batch.targets)?;
        errors.loss(loss.to_dtype(DType::F64)?.to_scalar()?, figures.train_loss);
        let mut gradients: BTreeMap<String, Tensor> = session.gradients(&loss.backward()?)?.into_iter().collect();
        let mut found = BTreeMap::new();
        for (name, _) in session.parameters()? {
            let gradient = gradients.remove(&name).ok_or_else(|| format!("{name} has no gradient"))?;
            found.insert(self.arch.name_in(self.naming, &name), gradient);
        }
        errors.tensors(Group::Gradients(figures.largest_gradient), &found, &figures.gradients)?;
        errors.tensors(Group::Running, &self.running(&session)?, &figures.running_after)
    }

    /// Compares some steps of an optimizer on the one batch.
    fn steps(
        &self,
        backbone: &Backbone,
        name: &str,
        optimizer: Optimizer,
        trajectory: &Trajectory,
        errors: &mut Errors,
    ) -> Result<(), Failure> {
        let mut session = self.session(backbone, optimizer)?;
        let mut losses = Vec::new();
        for _ in 0..self.figures.steps {
            let batch = self.batch(&mut session)?;
            let logits = session.forward(&batch)?;
            let loss = Loss::cross_entropy().forward(&logits, &batch.targets)?;
            losses.push(session.backward_step(&loss)?);
        }
        errors.losses(&format!("{name}_losses"), &losses, &trajectory.losses);
        let parameters = session.parameters()?.into_iter();
        let found = parameters.map(|(name, tensor)| (self.arch.name_in(self.naming, &name), tensor)).collect();
        errors.tensors(Group::After(&format!("{name}_parameters")), &found, &trajectory.parameters)?;
        let running = self.running(&session)?;
        errors.tensors(Group::After(&format!("{name}_running")), &running, &trajectory.running)
    }

    /// A session in which an epoch is one step on the whole batch, and weight decay applies to every parameter, as in
    /// PyTorch's optimizers.
    fn session(&self, backbone: &Backbone, optimizer: Optimizer) -> Result<Session, Failure> {
        let mut phase = Phase::new(self.figures.steps.max(1), optimizer.decay_all(true));
        phase.freeze = self.freeze(backbone);
        let mut plan = Plan::new(vec![phase]);
        plan.batch_size = self.figures.batch;
        let classes = (0..self.figures.num_classes).map(|class| class.to_string()).collect();
        let data = TensorDataset::new(self.images.clone(), self.labels.clone(), classes)?;
        let tuner = FineTuner::new(backbone.clone()).head(Head::original()).plan(plan).cache(&FeatureCache::off());
        Ok(tuner.session(&data)?)
    }

    /// The batch in the file's order; the session's own batch is shuffled.
    fn batch(&self, session: &mut Session) -> Result<Batch, Failure> {
        if session.phase().is_none() {
            session.next_phase()?;
        }
        session.next_epoch()?;
        session.next_batch()?.ok_or("the plan ended before the last step")?;
        Ok(Batch::new(self.images.clone(), Targets::Classes(self.labels.clone()))?)
    }

    /// The frozen tensors under the crate's names. Running statistics are frozen only if their whole norm is.
    fn freeze(&self, backbone: &Backbone) -> FreezePolicy {
        let head = ["weight", "bias"].map(|leaf| format!("{}.{leaf}", self.arch.classifier()));
        let frozen = |canonical: &String| {
            let name = self.arch.name_in(self.naming, canonical);
            let (module, leaf) = name.rsplit_once('.').unwrap_or((&name, ""));
            let what = if leaf.starts_with("running_") { module } else { &name };
            self.figures.frozen.iter().any(|prefix| covers(prefix, what))
        };
        let names: Vec<String> = backbone.tensors().keys().chain(&head).filter(|n| frozen(n)).cloned().collect();
        if names.is_empty() { FreezePolicy::Nothing } else { FreezePolicy::Named(names) }
    }

    /// Running means and variances by the file's names.
    fn running(&self, session: &Session) -> Result<BTreeMap<String, Tensor>, Failure> {
        let statistics = session.tensors()?.into_iter().filter(|(name, _)| {
            name.rsplit('.').next().is_some_and(|leaf| matches!(leaf, "running_mean" | "running_var"))
        });
        Ok(statistics.map(|(name, tensor)| (self.arch.name_in(self.naming, &name), tensor)).collect())
    }
}

/// Whether `prefix` is a prefix of `name` in whole dotted parts.
fn covers(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}
