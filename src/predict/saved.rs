//! A predictor's file: writing and reading.

use super::Predictor;
use crate::backbone::{Backbone, Inner};
use crate::blueprint::{Blueprint, Pooling};
use crate::error::{Error, Result};
use crate::head::{COLUMNS, HeadKind};
use crate::metrics::Task;
use crate::ops::no_grad;
use crate::source::{Opened, Saved, Source, check_finite};
use crate::weights::{Disk, write_through};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) fn write(predictor: &Predictor, path: &Path, disk: &mut impl Disk) -> Result<()> {
    let Inner { profile, tensors, .. } = &*predictor.backbone.inner;
    let (blueprint, custom) = (&profile.blueprint, !profile.blueprint.is_built_in());
    let pooling = Some(blueprint.pooling()).filter(|pooling| *pooling != Pooling::Mean);
    let multi_label = predictor.task() == Task::Labels;
    let description = Saved {
        version: Saved::version_for(pooling, predictor.inference.head(), multi_label),
        arch: blueprint.name().to_string(),
        custom,
        pooling,
        structure: custom.then(|| blueprint.structure()),
        naming: profile.naming,
        input: profile.spec.clone(),
        labels: predictor.labels().to_vec(),
        head: predictor.inference.head(),
        report: predictor.report.clone(),
        multi_label,
        thresholds: predictor.inference.thresholds.clone(),
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
    write_through(disk, path, &tensors, Some(&text))
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
        let is_index = name.ends_with(COLUMNS) && tensor.dtype() == DType::I64;
        let tensor = if is_index { tensor.clone() } else { tensor.to_dtype(dtype)? };
        head.push((name, tensor.to_device(device)?));
    }
    let stages = saved.head.kind == HeadKind::Stages;
    if !stages {
        check_head(&head, blueprint.feature_dim(), saved.labels.len(), path)?;
    }
    let backbone = opened.backbone_beside_head(device)?;
    if stages {
        check_stages(&head, &backbone, saved.labels.len(), path)?;
    }
    let task = if saved.multi_label { Task::Labels } else { Task::Classes };
    let (thresholds, classes) = (saved.thresholds, saved.labels.len());
    let wrong = !thresholds.iter().all(|t| (0.0..=1.0).contains(t)) || ![0, classes].contains(&thresholds.len());
    if wrong || (task == Task::Classes && !thresholds.is_empty()) {
        let problem = format!("has thresholds that do not fit its {classes} labels");
        return Err(Error::weights(path, problem));
    }
    let predictor = Predictor::assemble(backbone, saved.head, head, saved.labels, saved.report)?;
    Ok(predictor.for_task(task, thresholds))
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

/// Refuses a head over all stages whose tensors do not match each other, the labels and the network.
fn check_stages(head: &[(String, Tensor)], backbone: &Backbone, labels: usize, path: &Path) -> Result<()> {
    let [(name, weight), (_, bias), (index, columns)] = head else {
        return Err(Error::weights(path, format!("a head over all stages has 3 tensors, and this one {}", head.len())));
    };
    let kept = match (weight.dims(), bias.dims(), columns.dims(), columns.dtype()) {
        (&[out, dim], &[n], &[kept], DType::I64) if out == labels && n == labels && dim == kept && kept > 0 => kept,
        (w, b, c, dtype) => {
            let problem = format!(
                "the head's {name} of shape {w:?}, with a bias of {b:?} and {index} of {c:?} {dtype:?}, is not one over \
                 all stages with {labels} labels"
            );
            return Err(Error::weights(path, problem));
        }
    };
    let all = match backbone.blueprint().columns() {
        Some(all) => all,
        // Only a run shows how many columns there are where closures hide them.
        None => {
            let spec = backbone.input_spec();
            let shape = (1, spec.channels, spec.size.0, spec.size.1);
            let images = Tensor::zeros(shape, weight.dtype(), backbone.device())?;
            no_grad(|| backbone.inner.network.columns(&images))?.dim(1)?
        }
    };
    let columns: Vec<i64> = columns.to_vec1()?;
    match columns.iter().find(|&&column| usize::try_from(column).map_or(true, |column| column >= all)) {
        Some(column) => {
            let problem = format!("the head's {index} of {kept} has {column}, and the network {all} columns");
            Err(Error::weights(path, problem))
        }
        None => Ok(()),
    }
}
