//! The index of a sharded file: which file holds each tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path};

use serde::Deserialize;

use super::safetensors::Unique;
use super::{MAX_HEADER, OpenFile, Weights, quoted};
use crate::error::{Error, Result, shown, shown_list};

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// The names of the shards in the index at this path.
pub(crate) fn names(path: &Path) -> Result<BTreeSet<String>> {
    let (_, index) = parse(OpenFile::open(path)?)?;
    Ok(index.into_values().collect())
}

/// The shard of each tensor. Every shard is a file in the folder of the index.
fn parse(mut index: OpenFile) -> Result<(OpenFile, BTreeMap<String, String>)> {
    if index.len > MAX_HEADER {
        return Err(index.error(format!("an index of {} bytes is refused; at most {MAX_HEADER} are read", index.len)));
    }
    let mut text = Vec::new();
    (&mut index.reader).take(index.len).read_to_end(&mut text).map_err(Error::io("read", &index.path))?;
    let Index { weight_map: Unique(weight_map) } = serde_json::from_slice(&text).map_err(|cause| {
        Error::weights_from(
            &index.path,
            "this JSON is not an index of shards, which has a \"weight_map\" from tensor names to file names",
            cause,
        )
    })?;
    if let Some(shard) = weight_map.values().find(|shard| !is_file_name(shard)) {
        return Err(index.error(format!(
            "the shard name {} is refused: a shard has a plain file name and lies in the folder of the index",
            quoted(shard)
        )));
    }
    Ok((index, weight_map))
}

/// Reads all shards that the index names, and checks them against it.
pub(super) fn read(index: OpenFile) -> Result<Weights> {
    let (index, weight_map) = parse(index)?;
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    let mut missing = Vec::new();
    for &shard in &shards {
        if !index.path.with_file_name(shard).exists() {
            missing.push(shard);
        }
    }
    if !missing.is_empty() {
        return Err(index.error(format!("shards are missing beside the index: {}", shown_list(missing))));
    }

    let mut tensors = BTreeMap::new();
    let (mut metadata, mut notes, mut others) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for &shard in &shards {
        let path = index.path.with_file_name(shard);
        let part = Weights::read_shard(&path)?;
        let absent: Vec<_> = weight_map
            .iter()
            .filter(|&(name, of)| of == shard && !part.tensors.contains_key(name))
            .map(|(name, _)| name.as_str())
            .collect();
        if !absent.is_empty() {
            return Err(Error::weights(
                path,
                format!("the index lists tensors that this shard does not hold: {}", shown_list(absent)),
            ));
        }
        for (name, tensor) in part.tensors {
            if tensors.contains_key(&name) {
                return Err(Error::weights(path, format!("an earlier shard already holds tensor {}", quoted(&name))));
            }
            tensors.insert(name, tensor);
        }
        for (key, value) in part.metadata {
            metadata.entry(key).or_insert(value);
        }
        notes.extend(part.notes.into_iter().map(|note| format!("{}: {note}", shown(shard))));
        others.extend(part.others);
    }
    Ok(Weights { notes, others, ..Weights::new(index.path, tensors, metadata) })
}

/// Whether the text is a plain file name, on any system, and no path out of the folder.
fn is_file_name(name: &str) -> bool {
    let plain = !name.contains(['/', '\\', ':', '\0']);
    let mut components = Path::new(name).components();
    plain && matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}
