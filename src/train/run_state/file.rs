//! A run's state as a safetensors file: tensors by role and name, everything else as one JSON text.

use super::{RunState, Setting, VERSION};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::head::Head;
use crate::metrics::Evaluation;
use crate::report::Report;
use crate::train::best::{Best, Epoch};
use crate::train::learner::LearnerState;
use crate::train::pending::PendingSums;
use crate::train::position::Position;
use crate::train::snapshot::Snapshot;
use crate::weights::{Disk, METADATA_KEY, Weights, tensor_bytes, write_through};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The field that every version has.
#[derive(Deserialize)]
struct Versioned {
    run_state: u32,
}

/// The description with a checksum of the file.
#[derive(Serialize, Deserialize)]
struct Sealed {
    /// The version of the format, under a name that no other file of this crate has.
    run_state: u32,
    checksum: String,
    /// A [`Description`] as JSON.
    state: String,
}

/// Everything but the tensors.
#[derive(Serialize, Deserialize)]
struct Description {
    head: Head,
    setting: Setting,
    report: Report,
    seconds: f64,
    position: Position,
    /// For each parameter that was stepped: how many moments it has, and its steps.
    learners: BTreeMap<String, (usize, u64)>,
    best: Vec<BestEpoch>,
    pending: PendingSums,
    valid: Option<u64>,
    instructions: String,
    /// Checksums of the initial weights that are not in the file.
    initial: BTreeMap<String, u64>,
}

#[derive(Serialize, Deserialize)]
struct BestEpoch {
    number: usize,
    averaged: bool,
    evaluation: Evaluation,
    /// For each sample, 1 if its prediction was correct.
    outcomes: String,
}

const MODEL: &str = "model/";
const AVERAGE: &str = "average/";
const PENDING: &str = "pending/";

fn moment(i: usize) -> String {
    format!("moment{i}/")
}

fn best(k: usize) -> String {
    format!("best{k}/")
}

pub(super) fn write(state: &RunState, path: &Path, disk: &mut impl Disk) -> Result<()> {
    let mut tensors = BTreeMap::new();
    let mut initial = state.initial.clone();
    let mut add = |prefix: &str, snapshot: &Snapshot| -> Result<()> {
        tensors.extend(snapshot.trained().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())));
        initial.extend(snapshot.initial_sums()?);
        Ok(())
    };
    add(MODEL, &state.model)?;
    for (k, epoch) in state.best.kept.iter().enumerate() {
        add(&best(k), &epoch.weights)?;
    }
    for (name, learner) in &state.learners {
        let moments = learner.moments.iter().enumerate();
        tensors.extend(moments.map(|(i, tensor)| (moment(i) + name, tensor.clone())));
    }
    let (sums, gradients) = &state.pending;
    for (prefix, all) in [(AVERAGE, &state.averages), (PENDING, gradients)] {
        tensors.extend(all.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())));
    }
    let of_epoch = |epoch: &Epoch| BestEpoch {
        number: epoch.number,
        averaged: epoch.averaged,
        evaluation: epoch.evaluation.clone(),
        outcomes: epoch.evaluation.outcomes.iter().map(|&right| if right { '1' } else { '0' }).collect(),
    };
    let description = Description {
        head: state.head,
        setting: state.setting.clone(),
        report: state.report.clone(),
        seconds: state.seconds,
        position: state.position.clone(),
        learners: state.learners.iter().map(|(name, l)| (name.clone(), (l.moments.len(), l.steps))).collect(),
        best: state.best.kept.iter().map(of_epoch).collect(),
        pending: *sums,
        valid: state.valid,
        instructions: state.instructions.clone(),
        initial,
    };
    let json = |error| Error::weights_from(path, "the state cannot be written as JSON", error);
    let state = serde_json::to_string(&description).map_err(json)?;
    let checksum = checksum(&state, &tensors)?;
    let text = serde_json::to_string(&Sealed { run_state: VERSION, checksum, state }).map_err(json)?;
    write_through(disk, path, &tensors, Some(&text))
}

/// Of the description and all tensors.
fn checksum(state: &str, tensors: &BTreeMap<String, Tensor>) -> Result<String> {
    let begun = Fingerprint::new("run state").text(state);
    let print = tensors.iter().try_fold(begun, |print, (name, tensor)| -> Result<Fingerprint> {
        let mut pieces = vec![];
        tensor_bytes(tensor, |bytes| {
            pieces.push(Fingerprint::new("piece").bytes(bytes).finish());
            Ok(())
        })?;
        Ok(pieces.into_iter().fold(print.text(name).numbers(tensor.dims()), Fingerprint::number))
    })?;
    Ok(format!("{:016x}", print.finish()))
}

pub(super) fn read(path: &Path) -> Result<RunState> {
    let weights = Weights::read(path)?;
    let damaged = |error| Error::weights_from(path, "its description of a run's state is damaged", error);
    let Some(text) = weights.metadata.get(METADATA_KEY).filter(|text| text.contains("\"run_state\"")) else {
        return Err(Error::weights(path, "this is no saved state of a run (`RunState::save`)"));
    };
    // First the version alone: a newer description may look different.
    let Versioned { run_state: found } = serde_json::from_str(text).map_err(damaged)?;
    if found > VERSION {
        let what = "the state of a run";
        return Err(Error::NewerFormat { path: path.to_path_buf(), what, found, known: VERSION });
    }
    if found < VERSION {
        let problem = format!(
            "it has format {found} of a run's state, which is no longer read; start the run from the beginning"
        );
        return Err(Error::weights(path, problem));
    }
    let sealed: Sealed = serde_json::from_str(text).map_err(damaged)?;
    if checksum(&sealed.state, &weights.tensors)? != sealed.checksum {
        return Err(Error::weights(path, "it is damaged: its contents do not have its checksum"));
    }
    let description: Description = serde_json::from_str(&sealed.state).map_err(damaged)?;
    let mut rest = weights.tensors;
    let mut learners = BTreeMap::new();
    for (name, (count, steps)) in description.learners {
        let moments = (0..count).map(|i| {
            let tensor = rest.remove(&(moment(i) + &name));
            tensor.ok_or_else(|| Error::weights(path, format!("moment {i} of {name} is missing")))
        });
        learners.insert(name.clone(), LearnerState { moments: moments.collect::<Result<_>>()?, steps });
    }
    let kept = description.best.into_iter().enumerate().map(|(k, epoch)| {
        let evaluation =
            Evaluation { outcomes: epoch.outcomes.bytes().map(|right| right == b'1').collect(), ..epoch.evaluation };
        Epoch { number: epoch.number, averaged: epoch.averaged, evaluation, weights: snapshot(&mut rest, &best(k)) }
    });
    let best = Best { kept: kept.collect(), ..Best::new(description.report.metric) };
    Ok(RunState {
        head: description.head,
        setting: description.setting,
        report: description.report,
        seconds: description.seconds,
        position: description.position,
        model: snapshot(&mut rest, MODEL),
        learners,
        best,
        averages: snapshot(&mut rest, AVERAGE).tensors,
        pending: (description.pending, snapshot(&mut rest, PENDING).tensors),
        valid: description.valid,
        instructions: description.instructions,
        initial: description.initial,
    })
}

/// The tensors whose names begin with `prefix`.
fn snapshot(rest: &mut BTreeMap<String, Tensor>, prefix: &str) -> Snapshot {
    let names: Vec<String> = rest.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
    let mut snapshot = Snapshot::default();
    for name in names {
        if let (Some(short), Some(tensor)) = (name.strip_prefix(prefix), rest.remove(&name)) {
            snapshot.trained.insert(short.to_string());
            snapshot.tensors.insert(short.to_string(), tensor);
        }
    }
    snapshot
}
