//! An index that says which of several files holds each tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path};

use serde::Deserialize;

use super::safetensors::Unique;
use super::{MAX_HEADER, Source, Weights, quoted};
use crate::error::{Error, Result, shown, shown_list};

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// The files that the index at this path names.
pub(crate) fn names(path: &Path) -> Result<BTreeSet<String>> {
    let (_, index) = parse(Source::open(path)?)?;
    Ok(index.into_values().collect())
}

/// Which shard holds each tensor. Every shard's name is one of a file in the index's own folder.
fn parse(mut source: Source) -> Result<(Source, BTreeMap<String, String>)> {
    if source.len > MAX_HEADER {
        return Err(source.error(format!("an index of {} bytes is refused; at most {MAX_HEADER} are read", source.len)));
    }
    let mut text = Vec::new();
    (&mut source.file).take(source.len).read_to_end(&mut text).map_err(Error::io("read", &source.path))?;
    let Index { weight_map: Unique(weight_map) } = serde_json::from_slice(&text).map_err(|cause| {
        Error::weights_from(
            &source.path,
            "this JSON is not an index of shards, which has a \"weight_map\" from tensor names to file names",
            cause,
        )
    })?;
    if let Some(shard) = weight_map.values().find(|shard| !is_file_name(shard)) {
        return Err(source.error(format!(
            "the shard name {} is refused: shards are named by a plain file name and lie in the folder of the index",
            quoted(shard)
        )));
    }
    Ok((source, weight_map))
}

/// Reads all shards that the index names, and holds them against it.
pub(super) fn read(source: Source) -> Result<Weights> {
    let (source, weight_map) = parse(source)?;
    let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    let mut missing = Vec::new();
    for &shard in &shards {
        if !source.path.with_file_name(shard).exists() {
            missing.push(shard);
        }
    }
    if !missing.is_empty() {
        return Err(source.error(format!("shards are missing beside the index: {}", shown_list(missing))));
    }

    let mut tensors = BTreeMap::new();
    let (mut metadata, mut notes, mut others) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for &shard in &shards {
        let path = source.path.with_file_name(shard);
        let part = Weights::read_shard(&path)?;
        let absent: Vec<_> = weight_map
            .iter()
            .filter(|&(name, place)| place == shard && !part.tensors.contains_key(name))
            .map(|(name, _)| name.as_str())
            .collect();
        if !absent.is_empty() {
            return Err(Error::weights(
                path,
                format!("the index promises tensors that this shard does not hold: {}", shown_list(absent)),
            ));
        }
        for (name, tensor) in part.tensors {
            if tensors.contains_key(&name) {
                return Err(Error::weights(path, format!("tensor {} was in an earlier shard already", quoted(&name))));
            }
            tensors.insert(name, tensor);
        }
        for (key, value) in part.metadata {
            metadata.entry(key).or_insert(value);
        }
        notes.extend(part.notes.into_iter().map(|note| format!("{}: {note}", shown(shard))));
        others.extend(part.others);
    }
    Ok(Weights { notes, others, ..Weights::new(source.path, tensors, metadata) })
}

/// Whether the text names a file in a folder, on any system, and not a way out of that folder.
fn is_file_name(name: &str) -> bool {
    let plain = !name.contains(['/', '\\', ':', '\0']);
    let mut components = Path::new(name).components();
    plain && matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}
