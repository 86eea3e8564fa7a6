//! The head: the classifier on top of a backbone.

use crate::backbone::{Backbone, Inner, init_uniform};
use crate::blueprint::Blueprint;
use crate::error::{Error, Result, shown};
use crate::ops::{Activation, FeatureMap, linear, linear_symbolic};
use crate::params::{Slot, Slots};
use crate::rng::Seed;
use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// The classifier on top of a backbone: features (N, feature_dim) in, logits (N, classes) out. The number of classes is
/// the dataset's.
///
/// A saved predictor holds its head; the version of the predictor's file covers it.
///
/// ```
/// use candle_finetune::Head;
/// let head = Head::mlp(256).dropout(0.2);
/// # let _ = head;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Head {
    /// Its layers.
    pub kind: HeadKind,
    /// Dropout probability in [0, 1), while training.
    pub dropout: f32,
}

/// The largest number of parameters of a head, 16 GB in f32; more are taken for a mistake.
const MOST_ELEMENTS: f64 = 4e9;

/// The last part of the name of the tensor that holds the columns of a head over all stages.
pub(crate) const COLUMNS: &str = "columns";

/// The layers of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HeadKind {
    /// One linear layer.
    Linear,
    /// Two linear layers with a ReLU between.
    Mlp(usize),
    /// The classifier that came with the weights.
    Original,
    /// One linear layer over some of the columns that the stages of the network give: fitted in closed form by a plan
    /// with [`HeadStart::Stages`](crate::HeadStart::Stages), and never trained.
    ///
    /// The columns are the means of all stages in their order, as from
    /// [`Backbone::stage_features`](crate::Backbone::stage_features), then the means over a grid of 4 x 4 cells of all
    /// stages in their order: channel by channel, the cells of each row by row. Its tensors are the columns that it
    /// keeps (kept), weight (classes, kept) and bias (classes).
    Stages,
}

impl Head {
    /// One linear layer: weight (classes, feature_dim) and bias (classes).
    pub fn linear() -> Self {
        Self { kind: HeadKind::Linear, dropout: 0.0 }
    }

    /// Two linear layers with `hidden` units and a ReLU between.
    pub fn mlp(hidden: usize) -> Self {
        Self { kind: HeadKind::Mlp(hidden), dropout: 0.0 }
    }

    /// The classifier that came with the weights, to train it further. The dataset must have the same classes in the
    /// same order.
    pub fn original() -> Self {
        Self { kind: HeadKind::Original, dropout: 0.0 }
    }

    /// Sets the dropout probability, in [0, 1).
    pub fn dropout(mut self, probability: f32) -> Self {
        self.dropout = probability;
        self
    }

    /// Name, output width and input width of each linear layer.
    fn layers(self, blueprint: &Blueprint, classes: usize) -> Vec<(String, usize, usize)> {
        let (name, dim) = (blueprint.classifier(), blueprint.feature_dim());
        match self.kind {
            HeadKind::Linear | HeadKind::Original => vec![(name.to_string(), classes, dim)],
            // All columns, where their number is known: what a fit may keep at most.
            HeadKind::Stages => {
                vec![(name.to_string(), classes, blueprint.columns().unwrap_or(dim))]
            }
            HeadKind::Mlp(hidden) => {
                vec![(format!("{name}.0"), hidden, dim), (format!("{name}.2"), classes, hidden)]
            }
        }
    }

    /// The head's tensor names: weight and bias of each layer, and the columns of a head over all stages.
    pub(crate) fn names(self, blueprint: &Blueprint, classes: usize) -> Vec<String> {
        let name = blueprint.classifier();
        if self.kind == HeadKind::Stages {
            return ["weight", "bias", COLUMNS].map(|suffix| format!("{name}.{suffix}")).to_vec();
        }
        self.shapes(blueprint, classes).into_iter().map(|(name, _)| name).collect()
    }

    /// Name and shape of each of its parameters.
    pub(crate) fn shapes(self, blueprint: &Blueprint, classes: usize) -> Vec<(String, Vec<usize>)> {
        let of = |(name, out, dim): (String, usize, usize)| {
            [(format!("{name}.weight"), vec![out, dim]), (format!("{name}.bias"), vec![out])]
        };
        self.layers(blueprint, classes).into_iter().flat_map(of).collect()
    }

    /// The head in a dry run over shapes alone; `frozen` tells whether the tensor of a name is frozen.
    pub(crate) fn dry_run(
        self,
        mut x: FeatureMap,
        blueprint: &Blueprint,
        classes: usize,
        dtype: DType,
        frozen: impl Fn(&str) -> bool,
    ) -> Result<FeatureMap> {
        for (name, out, dim) in self.layers(blueprint, classes) {
            let zero = Var::zeros(1, dtype, &Device::Cpu)?;
            let zero = if frozen(&format!("{name}.weight")) { zero.detach() } else { zero.as_tensor().clone() };
            x = linear_symbolic(&x, zero.broadcast_as((out, dim))?)?;
        }
        Ok(x)
    }

    /// Refuses a head that does not work on this backbone with this number of classes.
    pub(crate) fn check(self, backbone: &Backbone, classes: usize) -> Result<()> {
        if let HeadKind::Mlp(0) = self.kind {
            return Err(Error::invalid("head", "0 hidden units; an MLP needs at least 1"));
        }
        let layers = self.layers(backbone.blueprint(), classes);
        let elements = layers.iter().fold(0f64, |sum, (_, out, inputs)| sum + *out as f64 * (*inputs as f64 + 1.0));
        if elements > MOST_ELEMENTS {
            let gigabytes = elements * backbone.inner.profile.dtype.size_in_bytes() as f64 / 1e9;
            let problem = format!(
                "{elements:.3e} parameters take {gigabytes:.0} GB, and a multiple of that in training; the limit is \
                 {MOST_ELEMENTS:.0e}, so use fewer hidden units"
            );
            return Err(Error::invalid("head", problem));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::invalid("head", format!("dropout {} is not in [0, 1)", self.dropout)));
        }
        if self.kind != HeadKind::Original {
            return Ok(());
        }
        match backbone.num_classes() {
            None => Err(Error::invalid("head", format!("{}; use Head::linear()", backbone.without_classifier()))),
            Some(have) if have != classes => {
                let problem = format!("the original classifier has {have} classes and the data {classes}");
                Err(Error::invalid("head", format!("{problem}; use Head::linear()")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Refuses the original classifier for classes that it does not have, or has in another order: training would
    /// continue with the weights of one class for another.
    pub(crate) fn check_labels(self, backbone: &Backbone, labels: &[String]) -> Result<()> {
        let Some(known) = backbone.labels().filter(|_| self.kind == HeadKind::Original) else { return Ok(()) };
        let differs = known.iter().zip(labels).position(|(a, b)| a != b);
        let Some(at) = differs.filter(|_| known.len() == labels.len()) else { return Ok(()) };
        let (known, given) = (shown(&known[at]), shown(&labels[at]));
        let problem = format!(
            "class {at} of the original classifier is {known:?}, and of the data {given:?}; open the data with the \
             classifier's labels in their order, or use Head::linear()"
        );
        Err(Error::invalid("head", problem))
    }

    /// Initial values of every tensor: uniform within 1 / sqrt(inputs), as in PyTorch's linear layers.
    pub(crate) fn start(self, backbone: &Backbone, classes: usize, seed: u64) -> Result<Vec<(String, Tensor)>> {
        self.check(backbone, classes)?;
        let Inner { profile, classifier, .. } = &*backbone.inner;
        if let (HeadKind::Original, Some((weight, bias))) = (self.kind, classifier) {
            let name = backbone.blueprint().classifier();
            return Ok(vec![(format!("{name}.weight"), weight.clone()), (format!("{name}.bias"), bias.clone())]);
        }
        let mut tensors = Vec::new();
        if self.kind == HeadKind::Stages {
            // Until it is fitted: one column, without weight.
            let name = backbone.blueprint().classifier();
            let zeros = |shape: &[usize]| Tensor::zeros(shape, profile.dtype, &profile.device);
            tensors.push((format!("{name}.weight"), zeros(&[classes, 1])?));
            tensors.push((format!("{name}.bias"), zeros(&[classes])?));
            tensors.push((format!("{name}.{COLUMNS}"), Tensor::zeros(1, DType::I64, &profile.device)?));
            return Ok(tensors);
        }
        for (name, out, dim) in self.layers(backbone.blueprint(), classes) {
            let bound = 1.0 / (dim as f64).sqrt();
            for (suffix, shape) in [("weight", vec![out, dim]), ("bias", vec![out])] {
                let name = format!("{name}.{suffix}");
                let values = init_uniform(shape.iter().product(), bound, &name, seed);
                let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
                tensors.push((name, tensor.to_dtype(profile.dtype)?.to_device(&profile.device)?));
            }
        }
        Ok(tensors)
    }

    /// Logits (N, classes) of features (N, feature_dim), or of the columns of all stages. `random`, while training: the
    /// seed and the index of the forward pass, for dropout.
    pub(crate) fn forward(
        self,
        features: &Tensor,
        slots: &Slots,
        blueprint: &Blueprint,
        random: Option<(Seed, u64)>,
    ) -> Result<Tensor> {
        let mut x = match random {
            Some((seed, forward)) if self.dropout > 0.0 => dropped(features, self.dropout, seed, forward)?,
            _ => features.clone(),
        };
        let tensor = |name: &str, suffix: &str| {
            let name = format!("{name}.{suffix}");
            slots.get(&name).map(Slot::tensor).ok_or_else(|| Error::invalid(format!("tensor {name}"), "is missing"))
        };
        if self.kind == HeadKind::Stages {
            let name = blueprint.classifier();
            x = x.index_select(tensor(name, COLUMNS)?, 1)?;
            return Ok(linear(&x, tensor(name, "weight")?, tensor(name, "bias")?, Activation::Identity)?);
        }
        let layers = self.layers(blueprint, 0);
        for (i, (name, ..)) in layers.iter().enumerate() {
            let get = |suffix: &str| tensor(name, suffix);
            let act = if i + 1 < layers.len() { Activation::Relu } else { Activation::Identity };
            x = linear(&x, get("weight")?, get("bias")?, act)?;
        }
        Ok(x)
    }
}

/// Dropout: features are zeroed with this probability and the rest scaled up, so that the mean stays (Srivastava et al.
/// 2014).
fn dropped(x: &Tensor, probability: f32, seed: Seed, forward: u64) -> Result<Tensor> {
    let mut rng = seed.stream("dropout", &[forward]);
    let keep = 1.0 / (1.0 - probability);
    let mask: Vec<f32> =
        (0..x.elem_count()).map(|_| if rng.random::<f32>() < probability { 0.0 } else { keep }).collect();
    let mask = Tensor::from_vec(mask, x.shape(), &Device::Cpu)?;
    let mask = if x.dtype() == DType::F64 { mask.to_dtype(DType::F64)? } else { mask };
    Ok((x * mask.to_device(x.device())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;

    #[test]
    fn dropout_zeroes_its_share_and_keeps_the_mean() {
        let ones = Tensor::ones((100, 200), DType::F32, &Device::Cpu).unwrap();
        let values = |probability: f32, forward: u64| {
            dropped(&ones, probability, Seed(1), forward).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for probability in [0.1f32, 0.25, 0.5] {
            let values = values(probability, 0);
            let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
            // Four standard errors of a fraction of 20,000 elements.
            let error = (f64::from(probability) * (1.0 - f64::from(probability)) / 20_000.0).sqrt();
            assert!((zeros - f64::from(probability)).abs() < 4.0 * error, "{probability}: {zeros}");
            assert!(values.iter().all(|v| *v == 0.0 || *v == 1.0 / (1.0 - probability)), "the others are scaled");
        }
        assert!(values(0.5, 0) == values(0.5, 0) && values(0.5, 0) != values(0.5, 1), "a mask per forward pass");
    }

    #[test]
    fn a_head_that_no_memory_holds_is_refused_with_its_size() {
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        for (head, classes) in
            [(Head::mlp(100_000_000_000), 10), (Head::mlp(usize::MAX), 10), (Head::linear(), 1 << 60)]
        {
            let error = head.check(&backbone, classes).unwrap_err().to_string();
            assert!(error.contains("GB"), "{error}");
        }
        Head::mlp(65_536).check(&backbone, 21_841).unwrap();
    }
}
