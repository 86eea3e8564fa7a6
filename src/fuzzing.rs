//! The readers of untrusted files, for this crate's own fuzzing. They are not part of the API.
//!
//! Each function reads one kind of input to its end and returns the number of tensors in it. `fuzz/README.md` describes
//! the inputs.

use crate::error::{Error, Result};
use crate::source::{Saved, Snapshot, Wanted};
use crate::weights::Weights;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A reader of untrusted bytes.
pub type Reader = fn(&[u8]) -> Result<usize>;

/// All readers, by the names of the fuzzer's targets.
pub const READERS: [(&str, Reader); 6] = [
    ("safetensors", weights),
    ("header", header),
    ("pth", weights),
    ("pickle", pickle),
    ("index", index),
    ("description", description),
];

/// The numbers of f32 elements in the storages that [`pickle`] adds to the pickle.
const STORAGES: [usize; 3] = [24, 4, 0];

/// A weights file of any format, from memory.
pub fn weights(bytes: &[u8]) -> Result<usize> {
    // Shards that an index names are looked for in a folder that does not exist.
    checked(&Weights::from_bytes("not/there/in memory", Vec::from(bytes))?)
}

/// A weights file at a path.
pub fn weights_at(path: &Path) -> Result<usize> {
    checked(&Weights::read(path)?)
}

/// A safetensors file with the right header length. The first two bytes say how many zeros follow the header, which is
/// the rest of the bytes.
pub fn header(bytes: &[u8]) -> Result<usize> {
    let (count, text) = bytes.split_at(bytes.len().min(2));
    let zeros = count.iter().fold(0, |n, &byte| n * 256 + usize::from(byte));
    weights(&[&(text.len() as u64).to_le_bytes()[..], text, &vec![0; zeros]].concat())
}

/// A pickle, in a zip as `torch.save` writes it, with three storages of 24, 4 and no f32 elements.
pub fn pickle(bytes: &[u8]) -> Result<usize> {
    weights(&wrapped(bytes)?)
}

/// The zip that [`pickle`] puts around a pickle.
pub fn wrapped(pickle: &[u8]) -> Result<Vec<u8>> {
    let failed = |cause| Error::weights_from("in memory", "the zip could not be made", cause);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut add = |name: &str, bytes: &[u8]| {
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(format!("archive/{name}"), stored)?;
        zip.write_all(bytes)?;
        Ok(())
    };
    add("data.pkl", pickle).map_err(failed)?;
    add("byteorder", b"little").map_err(failed)?;
    for (key, count) in STORAGES.iter().enumerate() {
        add(&format!("data/{key}"), &vec![0; count * 4]).map_err(failed)?;
    }
    Ok(zip.finish().map_err(failed)?.into_inner())
}

/// An index of shards and up to two shards, `a.safetensors` and `b.safetensors`, each after a byte 0xff. A shard that
/// is left out holds one tensor, named `a` or `b`.
pub fn index(bytes: &[u8]) -> Result<usize> {
    let mut parts = bytes.splitn(3, |&byte| byte == 0xff);
    let index = parts.next().unwrap_or_default();
    let shards = ["a", "b"].map(|name| {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7]].concat();
        (format!("{name}.safetensors"), parts.next().map_or(whole, <[u8]>::to_vec))
    });
    let [(a, first), (b, second)] = &shards;
    in_folder(&[("model.safetensors.index.json", index), (a, first), (b, second)], |folder| {
        let found = Snapshot::open(folder, Some(&Wanted::Arch(crate::Arch::CIFAR_RESNET20)), true)?;
        weights_at(&found.weights)
    })
}

/// The `config.json` of a folder and, after a byte 0xff, its `preprocessor_config.json`.
pub fn description(bytes: &[u8]) -> Result<usize> {
    let mut parts = bytes.splitn(2, |&byte| byte == 0xff);
    let mut files = vec![("config.json", parts.next().unwrap_or_default())];
    files.extend(parts.next().map(|text| ("preprocessor_config.json", text)));
    files.push(("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"));
    in_folder(&files, |folder| {
        let found = Snapshot::open(folder, None, true)?;
        // As in loading, unless the weights are a saved predictor.
        found.problem.map_or(Ok(()), Err)?;
        weights_at(&found.weights)
    })
}

/// The fault of an outcome: an error of another variant than those for files, or a message that could flood a log
/// or control a terminal.
pub fn complaint(outcome: &Result<usize>) -> Option<String> {
    let error = outcome.as_ref().err()?;
    let text = error.to_string();
    let expected = matches!(error, Error::Weights { .. } | Error::UnknownArch { .. } | Error::Unsupported { .. });
    let harmless = text.len() < 20_000 && !text.contains(|c: char| c.is_control());
    (!expected || !harmless).then(|| text.escape_debug().take(2000).collect())
}

/// Counts the tensors, and parses the description of a saved predictor.
fn checked(weights: &Weights) -> Result<usize> {
    Saved::in_file(weights)?;
    Ok(weights.tensors.len())
}

fn in_folder(files: &[(&str, &[u8])], read: impl FnOnce(&Path) -> Result<usize>) -> Result<usize> {
    let folder = tempfile::tempdir().map_err(Error::io("create", "a temporary folder"))?;
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(Error::io("write", path))?;
    }
    read(folder.path())
}
