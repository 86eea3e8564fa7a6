//! For this crate's own fuzzing: the readers of strangers' files on bytes that a fuzzer made up, which are no part of
//! the API.
//!
//! Each function reads one kind of input to the end and gives the number of tensors in it. `fuzz/README.md` says what
//! the inputs are.

use crate::error::{Error, Result};
use crate::source::{Saved, Snapshot};
use crate::weights::Weights;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A reader of bytes that are not trusted.
pub type Reader = fn(&[u8]) -> Result<usize>;

/// All of them, under the names of the fuzzer's targets.
pub const READERS: [(&str, Reader); 6] = [
    ("safetensors", weights),
    ("header", header),
    ("pth", weights),
    ("pickle", pickle),
    ("index", index),
    ("description", description),
];

/// Elements of the storages that [`pickle`] puts beside the pickle: f32, so four bytes each.
const STORAGES: [usize; 3] = [24, 4, 0];

/// A file of weights of any kind, from memory.
pub fn weights(bytes: &[u8]) -> Result<usize> {
    // Shards that bytes name would be looked for in a folder that is not there.
    looked_through(&Weights::from_bytes("not/there/in memory", Vec::from(bytes))?)
}

/// The weights at a path.
pub fn weights_at(path: &Path) -> Result<usize> {
    looked_through(&Weights::read(path)?)
}

/// A safetensors file whose length of the header is right: two bytes say how many zeros follow the header, which is the
/// rest.
pub fn header(bytes: &[u8]) -> Result<usize> {
    let (count, text) = bytes.split_at(bytes.len().min(2));
    let zeros = count.iter().fold(0, |n, &byte| n * 256 + usize::from(byte));
    weights(&[&(text.len() as u64).to_le_bytes()[..], text, &vec![0; zeros]].concat())
}

/// A pickle, in a zip as `torch.save` makes it, with three storages: 24, 4 and no f32.
pub fn pickle(bytes: &[u8]) -> Result<usize> {
    weights(&wrapped(bytes)?)
}

/// The zip around a pickle.
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

/// An index of shards and, after a byte 0xff each, up to two shards: `a.safetensors` and `b.safetensors`. A shard that
/// is left out holds one tensor of its own name.
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
        let found = Snapshot::open(folder, Some(crate::Arch::CIFAR_RESNET20), true)?;
        weights_at(&found.weights)
    })
}

/// A folder's `config.json` and, after a byte 0xff, its `preprocessor_config.json`.
pub fn description(bytes: &[u8]) -> Result<usize> {
    let mut parts = bytes.splitn(2, |&byte| byte == 0xff);
    let mut files = vec![("config.json", parts.next().unwrap_or_default())];
    files.extend(parts.next().map(|text| ("preprocessor_config.json", text)));
    files.push(("model.safetensors", b"\x02\0\0\0\0\0\0\0{}"));
    in_folder(&files, |folder| {
        let found = Snapshot::open(folder, None, true)?;
        weights_at(&found.weights)
    })
}

/// What is wrong with an outcome: an error that is not one of those for files, or a message that a file could use to
/// flood a log or to command a terminal.
pub fn complaint(outcome: &Result<usize>) -> Option<String> {
    let error = outcome.as_ref().err()?;
    let text = error.to_string();
    let expected = matches!(error, Error::Weights { .. } | Error::UnknownArch { .. });
    let tame = text.len() < 20_000 && !text.contains(|c: char| c.is_control());
    (!expected || !tame).then(|| text.escape_debug().take(2000).collect())
}

/// Counts the tensors, and reads what a saved predictor says of itself.
fn looked_through(weights: &Weights) -> Result<usize> {
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
