//! The reader of `.pth`: a zip that holds a pickle, which describes the tensors, and their storages.

mod archive;
mod contents;
mod state_dict;
mod views;

use std::collections::BTreeMap;

use super::pickle::{self, Id, Pickled, Storage, Values, View};
use super::{OpenFile, Weights};
use crate::error::Result;
use archive::Archive;

/// Reads the pickle, finds the state dict in it, then reads the storages of its tensors, one after the other.
pub(super) fn read(file: OpenFile) -> Result<Weights> {
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_small("data.pkl", pickle::MAX_BYTES)?;
    let values = pickle::run(&pickle).map_err(|problem| archive.error(problem))?;
    drop(pickle);
    let found = state_dict::find(&values).map_err(|problem| archive.error(problem))?;
    let tensors = archive.tensors(&found.views)?;
    Ok(Weights { notes: found.notes, others: found.others, ..Weights::new(archive.path, tensors, BTreeMap::new()) })
}

#[cfg(test)]
mod tests;
