//! A predictor's file: writing and reading.

use super::Predictor;
use crate::backbone::Inner;
use crate::blueprint::{Blueprint, Pooling};
use crate::error::{Error, Result};
use crate::source::{DESCRIPTION_VERSION, Opened, Saved, Source, check_finite};
use crate::weights::write as write_weights;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) fn write(predictor: &Predictor, path: &Path) -> Result<()> {
    let Inner { profile, tensors, .. } = &*predictor.backbone.inner;
    let (blueprint, custom) = (&profile.blueprint, !profile.blueprint.is_built_in());
    let pooling = Some(blueprint.pooling()).filter(|pooling| *pooling != Pooling::Mean);
    let description = Saved {
        version: if pooling.is_some() { DESCRIPTION_VERSION } else { 1 },
        arch: blueprint.name().to_string(),
        custom,
        pooling,
        structure: custom.then(|| blueprint.structure()),
        naming: profile.naming,
        input: profile.spec.clone(),
        labels: predictor.labels().to_vec(),
        head: predictor.inference.head(),
        report: predictor.report.clone(),
    };
    let text = serde_json::to_string(&description)
        .map_err(|error| Error::weights_from(path, "the description cannot be written as JSON", error))?;
    let mut all = tensors.clone();
    all.extend(predictor.inference.head_tensors());
    // PyTorch's batch norms count their batches, and a strict load requires the counters.
    for name in tensors.keys() {
        if let Some(norm) = name.strip_suffix(".running_mean") {
            let name = format!("{norm}.num_batches_tracked");
            let counter = match profile.counters.get(&name) {
                Some(counter) => counter.clone(),
                None => Tensor::zeros((), DType::I64, &Device::Cpu)?,
            };
            all.insert(name, counter);
        }
    }
    let tensors: BTreeMap<String, Tensor> = all
        .into_iter()
        .map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<candle_core::Result<_>>()?;
    write_weights(path, &tensors, Some(&text))
}

pub(super) fn read(path: &Path, blueprint: Option<&Blueprint>, device: &Device) -> Result<Predictor> {
    let mut opened = Source::saved_predictor(path, blueprint).open()?;
    let saved = opened.saved.take().ok_or_else(|| Saved::missing(path))?;
    assemble(&opened, saved, device)
}

/// The predictor in a file; `saved` is its description.
pub(super) fn assemble(opened: &Opened, saved: Saved, device: &Device) -> Result<Predictor> {
    let (path, blueprint, dtype) = (&opened.weights.path, opened.blueprint()?, opened.dtype);
    let names = saved.head.names(&blueprint, saved.labels.len());
    let mut head = Vec::with_capacity(names.len());
    for name in names {
        let tensor = opened
            .weights
            .tensors
            .get(&name)
            .ok_or_else(|| Error::weights(path, format!("the head's tensor {name} is missing")))?;
        check_finite(path, &name, tensor, dtype, false)?;
        head.push((name, tensor.to_dtype(dtype)?.to_device(device)?));
    }
    check_head(&head, blueprint.feature_dim(), saved.labels.len(), path)?;
    let backbone = opened.backbone_beside_head(device)?;
    Predictor::assemble(backbone, saved.head, head, saved.labels, saved.report)
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
    Err(Error::weights(path, format!("the head has {width} classes, but there are {labels} labels")))
}
