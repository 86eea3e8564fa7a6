//! The reader of `.pth`: a zip of a pickle, which describes tensors, and of their storages.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use candle_core::Tensor;
use zip::{CompressionMethod, ZipArchive};

use super::elements::Data;
use super::pickle::{self, Id, Node, Storage, Values, View};
use super::{Source, Weights, element_count, quoted};
use crate::error::{Error, Result, shown_list};

/// The keys under which training scripts keep the state dict, the first that is there wins.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "model_state_dict", "state_dict_ema"];

/// What wrappers of a module put before all of its names.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];

/// Reads the pickle, finds the state dict in it, then reads storage by storage.
pub(super) fn read(source: Source) -> Result<Weights> {
    let mut archive = Archive::open(source)?;
    let pickle = archive.read_small("data.pkl", pickle::MAX_BYTES)?;
    let values = pickle::run(&pickle).map_err(|problem| archive.error(problem))?;
    drop(pickle);
    let views = state_dict(&archive, &values)?;
    let tensors = archive.tensors(&views)?;
    Ok(Weights { path: archive.path, tensors: without_prefixes(tensors), metadata: BTreeMap::new() })
}

/// An open zip whose entries lie stored, apart from each other, under one folder.
struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<Box<dyn super::Readable>>>,
    /// The folder, with its slash.
    root: String,
    /// The bytes of all entries, not more than the file has.
    len: u64,
}

impl Archive {
    fn open(source: Source) -> Result<Self> {
        let Source { path, file, len: file_len } = source;
        let damaged = |cause| Error::weights_from(&path, "the zip is damaged or cut short, fetch it again", cause);
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
        let mut roots = Vec::new();
        let mut len = 0u64;
        for i in 0..zip.len() {
            let entry = zip.by_index_raw(i).map_err(damaged)?;
            let name = std::str::from_utf8(entry.name_raw())
                .map_err(|cause| Error::weights_from(&path, "the name of a zip entry is not UTF-8", cause))?;
            let packing = match entry.compression() {
                CompressionMethod::Stored if entry.encrypted() => Some("encrypted".to_owned()),
                CompressionMethod::Stored => None,
                method => Some(format!("compressed ({method})")),
            };
            if let Some(packing) = packing {
                return Err(Error::weights(
                    &path,
                    format!(
                        "zip entry {} is {packing}, but torch.save stores entries as they are; extract the zip and \
                         pack it again without compression, or save the weights anew",
                        quoted(name)
                    ),
                ));
            }
            if entry.size() != entry.compressed_size() {
                let problem = format!("zip entry {} has two lengths; the zip is damaged", quoted(name));
                return Err(Error::weights(&path, problem));
            }
            len = len.saturating_add(entry.size());
            if let Some(root) = name.strip_suffix("data.pkl")
                && root.find('/').is_some_and(|slash| slash + 1 == root.len())
            {
                roots.push(root.to_owned());
            }
        }
        if zip.has_duplicate_names() || len > file_len || zip.has_overlapping_files().map_err(damaged)? {
            return Err(Error::weights(&path, "refused: entries of the zip overlap each other or occur twice"));
        }
        let mut archive = match &roots[..] {
            [root] => Self { zip, root: root.clone(), len, path },
            [] => {
                return Err(Error::weights(
                    path,
                    "this zip was not written by torch.save: it has no data.pkl in its folder. Save the state dict \
                     with torch.save, or better with safetensors.torch.save_file",
                ));
            }
            _ => {
                let roots = shown_list(roots.iter().map(String::as_str));
                return Err(Error::weights(path, format!("this zip has several data.pkl: {roots}")));
            }
        };
        if archive.index("byteorder").is_some() {
            match &archive.read_small("byteorder", 16)?[..] {
                b"little" => {}
                order => {
                    return Err(archive.error(format!(
                        "the storages have the byte order {:?}, and only \"little\" is read; save the file on a \
                         little-endian machine",
                        String::from_utf8_lossy(order)
                    )));
                }
            }
        }
        Ok(archive)
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::weights(&self.path, problem)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.zip.index_for_name(&format!("{}{name}", self.root))
    }

    /// Reads an entry with `read`, which is told its length, and then to its end, where its checksum is compared.
    fn entry<T>(&mut self, name: &str, read: impl FnOnce(&mut dyn Read, u64) -> std::io::Result<T>) -> Result<T> {
        let Some(index) = self.index(name) else {
            let name = quoted(&format!("{}{name}", self.root));
            return Err(self.error(format!("the zip has no entry {name}, which its pickle names")));
        };
        let damaged = |path, cause| {
            Error::weights_from(path, format!("zip entry {name:?} could not be read; fetch the file again"), cause)
        };
        let mut entry = self.zip.by_index(index).map_err(|cause| damaged(&self.path, cause.into()))?;
        let len = entry.size();
        let value = read(&mut entry, len).map_err(|cause| damaged(&self.path, cause))?;
        match entry.read(&mut [0]) {
            Ok(0) => Ok(value),
            Ok(_) => Err(Error::weights(&self.path, format!("zip entry {name:?} is longer than it says"))),
            Err(cause) => Err(damaged(&self.path, cause)),
        }
    }

    /// The bytes of an entry that is not a storage.
    fn read_small(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        self.entry(name, |entry, len| {
            if len > limit {
                return Err(std::io::Error::other(format!("it has {len} bytes, and at most {limit} are read")));
            }
            let mut bytes = vec![0; len as usize];
            entry.read_exact(&mut bytes)?;
            Ok(bytes)
        })
    }

    fn storage(&mut self, Storage { key, kind, count }: &Storage) -> Result<Data> {
        self.entry(&format!("data/{key}"), |mut entry, len| {
            if count.checked_mul(kind.size()).map(|bytes| bytes as u64) != Some(len) {
                return Err(std::io::Error::other(format!(
                    "its {len} bytes are not the {count} elements of {} bytes that the pickle promises",
                    kind.size()
                )));
            }
            kind.read(&mut entry, *count)
        })
    }

    /// Reads every storage once and makes the tensors that lie in it.
    fn tensors(&mut self, views: &BTreeMap<&str, &View>) -> Result<BTreeMap<String, Tensor>> {
        let mut storages: BTreeMap<&str, Vec<(&str, &View)>> = BTreeMap::new();
        for (&name, &view) in views {
            storages.entry(&view.storage.key).or_default().push((name, view));
        }
        let mut tensors = BTreeMap::new();
        // Elements may be copied this often: a few bytes must not be expanded to gigabytes.
        let mut budget = self.len;
        for views in storages.values() {
            let storage = &views[0].1.storage;
            for &(name, view) in views {
                self.check(name, view, storage)?;
            }
            let data = self.storage(storage)?;
            // Views of the whole storage share it; others are copied out, the same one only once.
            let (whole, parts): (Vec<_>, Vec<_>) = views.iter().partition(|(_, view)| is_whole(view));
            let mut made: BTreeMap<(usize, &[usize], &[usize]), Tensor> = BTreeMap::new();
            for (name, view) in parts {
                let key = (view.offset, &view.shape[..], &view.stride[..]);
                let tensor = if let Some(tensor) = made.get(&key) {
                    tensor.clone()
                } else {
                    let count = element_count(&view.shape).unwrap_or(usize::MAX) as u64;
                    budget = budget.checked_sub(count).ok_or_else(|| {
                        self.error(format!(
                            "tensor {}: refused: views have more elements than the file has bytes; save contiguous \
                             tensors",
                            quoted(name)
                        ))
                    })?;
                    let part = data.gather(view.offset, &view.shape, &view.stride);
                    part.map_err(|cause| self.error(format!("tensor {}: {cause}", quoted(name))))?
                        .into_tensor(&view.shape)?
                };
                made.insert(key, tensor.clone());
                tensors.insert(name.to_owned(), tensor);
            }
            if !whole.is_empty() {
                let data = data.into_tensor(&[storage.count])?;
                for (name, view) in whole {
                    tensors.insert(name.to_owned(), data.reshape(&view.shape[..])?);
                }
            }
        }
        Ok(tensors)
    }

    /// Proves that a view lies in its storage.
    fn check(&self, name: &str, view: &View, storage: &Storage) -> Result<()> {
        if *view.storage != *storage {
            return Err(self.error(format!(
                "tensor {}: storage {:?} has another type or length for another tensor",
                quoted(name),
                storage.key
            )));
        }
        if !lies_in_storage(view) {
            return Err(self.error(format!(
                "tensor {}: shape {:?} with strides {:?} from element {} does not lie in its storage of {} elements",
                quoted(name),
                view.shape,
                view.stride,
                view.offset,
                storage.count
            )));
        }
        Ok(())
    }
}

/// The tensors of the state dict, which may be the whole pickle or lie under one of [`WRAPPERS`].
fn state_dict<'a>(archive: &Archive, values: &'a Values) -> Result<BTreeMap<&'a str, &'a View>> {
    let mut at = values.root;
    // Scripts wrap a state dict once or twice; more than that is no accident.
    for _ in 0..4 {
        let entries = named(archive, values, at)?;
        if entries.is_empty() {
            return Err(archive.error("the state dict is empty"));
        }
        let wrapped = WRAPPERS.iter().find_map(|wrapper| {
            let &(_, id) = entries.iter().find(|(name, _)| name == wrapper)?;
            matches!(values.get(id), Node::Dict(_)).then_some(id)
        });
        if let Some(id) = wrapped {
            at = id;
        } else {
            return all_tensors(archive, values, &entries);
        }
    }
    Err(archive.error("refused: the state dict is wrapped more than four times"))
}

/// The keys and values of a dictionary whose keys are texts.
fn named<'a>(archive: &Archive, values: &'a Values, id: Id) -> Result<Vec<(&'a str, Id)>> {
    let Node::Dict(entries) = values.get(id) else {
        return Err(archive.error(format!(
            "the pickle holds {} where a state dict, names with their tensors, is expected; save model.state_dict()",
            describe(values.get(id))
        )));
    };
    let entries = entries.iter().map(|&(key, value)| match values.get(key) {
        Node::Text(key) => Ok((key.as_str(), value)),
        other => Err(archive.error(format!(
            "the state dict has {} for a key, where all keys are names of tensors; save model.state_dict()",
            describe(other)
        ))),
    });
    entries.collect()
}

fn all_tensors<'a>(
    archive: &Archive,
    values: &'a Values,
    entries: &[(&'a str, Id)],
) -> Result<BTreeMap<&'a str, &'a View>> {
    let mut tensors = BTreeMap::new();
    let mut others = Vec::new();
    for &(name, id) in entries {
        match values.get(id) {
            Node::Tensor(view) => {
                if let Some(_first) = tensors.insert(name, &**view) {
                    return Err(archive.error(format!("tensor {} occurs twice in the state dict", quoted(name))));
                }
            }
            other => others.push((name, describe(other))),
        }
    }
    if others.is_empty() {
        return Ok(tensors);
    }
    let more = others.len().saturating_sub(10);
    let mut others: Vec<_> =
        others.into_iter().take(10).map(|(name, what)| format!("{} ({what})", quoted(name))).collect();
    if more > 0 {
        others.push(format!("{more} more"));
    }
    Err(archive.error(format!(
        "a state dict holds nothing but tensors, directly or under one of {}; here is also {}. Save model.state_dict() \
         alone",
        WRAPPERS.join(", "),
        others.join(", ")
    )))
}

fn describe(node: &Node) -> &'static str {
    match node {
        Node::Other(what) => what,
        Node::Int(_) => "a whole number",
        Node::Text(_) => "a text",
        Node::Tuple(_) => "a tuple",
        Node::List(_) => "a list",
        Node::Dict(_) => "a dictionary",
        Node::Global(_) => "a class or function",
        Node::Storage(_) => "a storage",
        Node::Tensor(_) => "a tensor",
    }
}

/// Takes the prefixes of wrappers off, as long as all names have them.
fn without_prefixes(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    // Names are copied once, when it is known how much goes: one of a million prefixes would else take for ever.
    let mut cut = 0;
    let all_have = |prefix: &str, cut: usize| {
        tensors.keys().all(|name| name[cut..].len() > prefix.len() && name[cut..].starts_with(prefix))
    };
    while let Some(prefix) = PREFIXES.into_iter().find(|prefix| !tensors.is_empty() && all_have(prefix, cut)) {
        cut += prefix.len();
    }
    tensors.into_iter().map(|(name, tensor)| (name[cut..].to_owned(), tensor)).collect()
}

/// Whether every element of a view is one of its storage.
fn lies_in_storage(View { storage, offset, shape, stride }: &View) -> bool {
    if shape.len() != stride.len() || *offset > storage.count {
        return false;
    }
    let last = || {
        let mut axes = shape.iter().zip(stride);
        axes.try_fold(*offset, |at, (&length, &stride)| at.checked_add((length - 1).checked_mul(stride)?))
    };
    match element_count(shape) {
        None => false,
        Some(0) => true,
        Some(_) => last().is_some_and(|last| last < storage.count),
    }
}

/// Whether a view is all of its storage, one element after the other. Strides of lengths of one do not matter.
fn is_whole(view: &View) -> bool {
    let mut expected = 1;
    let contiguous = view.shape.iter().zip(&view.stride).rev().all(|(&length, &stride)| {
        let follows = length == 1 || stride == expected;
        expected *= length.max(1);
        follows
    });
    contiguous && element_count(&view.shape) == Some(view.storage.count)
}

#[cfg(test)]
mod tests;
