//! A predictor's file: writing and reading.

use super::Predictor;
use crate::backbone::{Backbone, DESCRIPTION_VERSION, Saved, Source, check_numbers};
use crate::error::{Error, Result};
use crate::weights::{METADATA_KEY, Weights, write as write_weights};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub(super) fn write(predictor: &Predictor, path: &Path) -> Result<()> {
    let inner = &predictor.backbone.inner;
    let description = Saved {
        version: DESCRIPTION_VERSION,
        arch: inner.arch.name().to_string(),
        naming: inner.naming,
        input: inner.spec.clone(),
        labels: predictor.labels().to_vec(),
        head: predictor.inference.head(),
        story: predictor.story.clone(),
    };
    let text = serde_json::to_string(&description)
        .map_err(|error| Error::weights_from(path, "the description cannot be written as JSON", error))?;
    let mut tensors = inner.tensors.clone();
    tensors.extend(predictor.inference.head_tensors());
    // PyTorch's batch norms count their batches, and a strict load requires the counters.
    for name in inner.tensors.keys() {
        if let Some(norm) = name.strip_suffix(".running_mean") {
            let name = format!("{norm}.num_batches_tracked");
            let counter = match inner.counters.get(&name) {
                Some(counter) => counter.clone(),
                None => Tensor::zeros((), DType::I64, &Device::Cpu)?,
            };
            tensors.insert(name, counter);
        }
    }
    let tensors: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<candle_core::Result<_>>()?;
    write_weights(path, &tensors, Some(&text))
}

pub(super) fn read(path: &Path, device: &Device) -> Result<Predictor> {
    let weights = Arc::new(Weights::read(path)?);
    let Some(description) = description(&weights)? else {
        let problem = "this is no saved predictor (it has no description of one); load weights with \
                       `Predictor::pretrained` or `Backbone::from_file` (`--weights` and `--arch`)";
        return Err(Error::weights(path, problem));
    };
    let dtype = weights.tensors.values().find(|t| t.dtype() == DType::F64).map_or(DType::F32, Tensor::dtype);
    let source = Source::weights(weights.clone()).arch(description.arch.parse()?).dtype(dtype);
    assemble(&weights, description, source, device)
}

/// The description of a predictor in a file, if it holds one.
pub(super) fn description(weights: &Weights) -> Result<Option<Saved>> {
    weights.metadata.get(METADATA_KEY).map(|text| Saved::parse(text, &weights.path)).transpose()
}

/// The predictor in a file; `source` is the file with the options for its backbone.
pub(super) fn assemble(weights: &Weights, saved: Saved, source: Source, device: &Device) -> Result<Predictor> {
    let (path, dtype) = (&weights.path, source.number_type());
    let arch: crate::Arch = saved.arch.parse()?;
    let names = saved.head.names(arch, saved.labels.len());
    let mut head = Vec::with_capacity(names.len());
    for name in names {
        let tensor = weights
            .tensors
            .get(&name)
            .ok_or_else(|| Error::weights(path, format!("the head's tensor {name} is missing")))?;
        check_numbers(path, &name, tensor, dtype, false)?;
        head.push((name, tensor.to_dtype(dtype)?.to_device(device)?));
    }
    check_head(&head, arch.feature_dim(), saved.labels.len(), path)?;
    let backbone = Backbone::load(source.with_head(), device)?;
    Predictor::assemble(backbone, saved.head, head, saved.labels, saved.story)
}

/// Refuses a head whose layer widths do not match the features, each other and the labels.
fn check_head(head: &[(String, Tensor)], features: usize, labels: usize, path: &Path) -> Result<()> {
    let mut width = features;
    for pair in head.chunks(2) {
        let [(name, weight), (_, bias)] = pair else { continue };
        match (weight.dims(), bias.dims()) {
            ([out, dim], [n]) if *dim == width && n == out => width = *out,
            (w, b) => {
                let problem =
                    format!("the head's {name} of shape {w:?} with a bias of {b:?} does not take {width} features");
                return Err(Error::weights(path, problem));
            }
        }
    }
    if width == labels {
        return Ok(());
    }
    Err(Error::weights(path, format!("the head has {width} classes, and there are {labels} labels")))
}
