//! A `VarBuilder` backend that records the tensors a model requests and serves ours.

use super::row::{Features, Row};
use crate::params::{Facts, TensorInit};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, bail};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A tensor that the model requested.
pub(super) struct Asked {
    pub name: String,
    pub shape: Vec<usize>,
    init: Init,
}

/// All requests of a model, in order.
#[derive(Default)]
pub(super) struct Request {
    /// The tensors that it has, each once.
    pub tensors: Vec<Asked>,
    /// Names that it only probed, or requested and does not need.
    pub probed: BTreeSet<String>,
}

impl Request {
    /// Builds the model over zeros and records its requests.
    pub fn of(row: &Row) -> Result<Self> {
        let recorder = Recorder { row, request: Mutex::default() };
        drop((row.build)(VarBuilder::from_backend(Box::new(&recorder), DType::F32, Device::Cpu))?);
        let mut request = recorder.request.into_inner().unwrap_or_else(PoisonError::into_inner);
        for asked in &request.tensors {
            request.probed.remove(&asked.name);
        }
        Ok(request)
    }

    /// The facts of each tensor. A norm is a batch norm if the model requests running statistics.
    pub fn facts(&self, row: &Row) -> Result<Vec<Facts>> {
        let norms: BTreeSet<&str> = self.tensors.iter().filter_map(|a| a.name.strip_suffix(".running_mean")).collect();
        self.tensors.iter().map(|asked| asked.facts(row, &norms)).collect()
    }
}

impl Asked {
    fn facts(&self, row: &Row, norms: &BTreeSet<&str>) -> Result<Facts> {
        if let Some((norm, part)) = self.name.rsplit_once('.')
            && norms.contains(norm)
        {
            match part {
                "running_mean" => return Ok(Facts::RUNNING_MEAN),
                "running_var" => return Ok(Facts::RUNNING_VARIANCE),
                "weight" => return Ok(Facts::BATCH_NORM_WEIGHT),
                "bias" => return Ok(Facts::BATCH_NORM_BIAS),
                _ => {}
            }
        }
        let init = match (row.family.init)(&self.name) {
            Some(init) => init,
            None => self.initial()?,
        };
        // No weight decay for tokens and positions, as for vectors.
        let rank = if (row.family.is_position)(&self.name) { 1 } else { self.shape.len() };
        Ok(Facts::parameter(init, rank))
    }

    /// The model's own initial values.
    fn initial(&self) -> Result<TensorInit> {
        Ok(match self.init {
            Init::Const(0.0) => TensorInit::Zeros,
            Init::Const(1.0) => TensorInit::Ones,
            Init::Const(value) => TensorInit::Constant(value),
            Init::Randn { mean: 0.0, stdev } => TensorInit::Normal(stdev),
            Init::Uniform { lo, up } if lo == -up => TensorInit::Uniform(up),
            Init::Kaiming { dist, fan, non_linearity } => {
                let fan = fan.for_shape(&Shape::from(self.shape.as_slice())).max(1);
                let std = non_linearity.gain() / (fan as f64).sqrt();
                match dist {
                    NormalOrUniform::Normal => TensorInit::Normal(std),
                    NormalOrUniform::Uniform => TensorInit::Uniform(3f64.sqrt() * std),
                }
            }
            other => bail!("{} starts from {other:?}, which is not centred at 0", self.name),
        })
    }
}

/// Builds the model over tensors, all of one type and on one device.
pub(super) fn build(row: &'static Row, tensors: &BTreeMap<String, Tensor>) -> Result<Features> {
    let Some(first) = tensors.values().next() else { bail!("the model has no tensors") };
    let (dtype, device) = (first.dtype(), first.device().clone());
    (row.build)(VarBuilder::from_backend(Box::new(Given { row, tensors }), dtype, device))
}

/// 1 on the diagonal and 0 elsewhere for the weight (outputs, inputs) of the classifier, 0 for its bias.
fn selector(row: &Row, name: &str, shape: &Shape, dtype: DType, device: &Device) -> Option<Result<Tensor>> {
    let part = name.strip_prefix(row.classifier)?;
    let rows = match (part, shape.dims()) {
        (".weight", &[outputs, inputs]) => {
            let diagonal = |i: usize| if i / inputs == i % inputs { 1f32 } else { 0.0 };
            Tensor::from_vec((0..outputs * inputs).map(diagonal).collect::<Vec<_>>(), shape, device)
        }
        (".bias", _) => Tensor::zeros(shape, DType::F32, device),
        _ => return None,
    };
    Some(rows.and_then(|t| t.to_dtype(dtype)))
}

fn missing<T>(name: &str) -> Result<T> {
    Err(Error::CannotFindTensor { path: name.to_string() })
}

struct Recorder<'a> {
    row: &'a Row,
    request: Mutex<Request>,
}

impl Recorder<'_> {
    fn request(&self) -> MutexGuard<'_, Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, name: &str) -> bool {
        (self.row.family.has)(name, self.row.name)
    }
}

impl SimpleBackend for &Recorder<'_> {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(selector) = selector(self.row, name, &shape, dtype, device) {
            return selector;
        }
        let mut request = self.request();
        if !self.has(name) {
            request.probed.insert(name.to_string());
            return missing(name);
        }
        if request.tensors.iter().all(|asked| asked.name != name) {
            request.tensors.push(Asked { name: name.to_string(), shape: shape.dims().to_vec(), init });
        }
        // One element for all.
        Tensor::zeros(1, dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("the model requests {name} without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.request().probed.insert(name.to_string());
        self.has(name)
    }
}

/// Serves the network's tensors.
struct Given<'a> {
    row: &'a Row,
    tensors: &'a BTreeMap<String, Tensor>,
}

impl SimpleBackend for Given<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if let Some(selector) = selector(self.row, name, &shape, dtype, device) {
            return selector;
        }
        // As it is: a variable would lose its place in the graph by a conversion.
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            bail!("{name} has shape {:?}, but the model needs {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        self.tensors.get(name).cloned().map_or_else(|| missing(name), Ok)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}
