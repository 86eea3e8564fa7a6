//! Files of weights: reading safetensors and `.pth`, writing safetensors.
//!
//! A reader trusts nothing that a file says about itself: lengths are compared with the length of the file before
//! anything is allocated, and whatever cannot be read as it stands is an error that names the file and the tensor.

mod atomic;
mod elements;
mod format;
mod pickle;
mod pth;
mod safetensors;
mod shards;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use candle_core::Tensor;

pub(crate) use atomic::write_text;
pub(crate) use elements::read_tensor;
pub(crate) use shards::names as shard_names;
pub(crate) use write::{METADATA_KEY, tensor_bytes, write};

use crate::error::{Error, Result, shown};
use format::Format;

/// Headers and indices of more bytes than this are refused; real ones have a few hundred thousand at most.
const MAX_HEADER: u64 = 100_000_000;

/// Files and indices of more names than this are refused, since each takes more memory than its text; real ones have a
/// few thousand.
const MAX_NAMES: usize = 200_000;

/// As many entries of a state dict that are no tensors are described.
const MAX_OTHERS: usize = 1000;

/// Tensors of more dimensions than this are refused; real ones have five at most.
const MAX_RANK: usize = 16;

/// All tensors of a file, or of all the shards of an index.
///
/// Tensors are on the CPU and contiguous. f16 and bf16 have become f32; f32 and f64 are as stored; whole numbers and
/// booleans have become i64, but u8 and u32 are as stored.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The file that was asked for: of shards, their index.
    pub path: PathBuf,
    /// The tensors by the names that the file gives them.
    pub tensors: BTreeMap<String, Tensor>,
    /// The free texts of a safetensors header; empty for a `.pth`.
    pub metadata: BTreeMap<String, String>,
    /// Which of several state dicts these are, where there was a choice.
    pub notes: Vec<String>,
    /// What stands among the tensors of a `.pth` without being one, and was skipped unread: name and description. The
    /// first [`MAX_OTHERS`] of them.
    pub others: BTreeMap<String, String>,
}

impl Weights {
    fn new(path: PathBuf, tensors: BTreeMap<String, Tensor>, metadata: BTreeMap<String, String>) -> Self {
        Self { path, tensors, metadata, notes: Vec::new(), others: BTreeMap::new() }
    }

    /// Reads a file of weights, whatever its extension: a safetensors file, the index of its shards, or a `.pth` in
    /// the zip format that `torch.save` has written since PyTorch 1.6.
    ///
    /// Anything else, and any fault inside the file, is an [`Error::Weights`] or an [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_source(Source::open(path)?)
    }

    /// As [`Weights::read`] for the bytes of a file; `name` is what errors call it.
    pub fn from_bytes(name: &str, bytes: impl AsRef<[u8]> + 'static) -> Result<Self> {
        let len = bytes.as_ref().len() as u64;
        Self::read_source(Source { path: PathBuf::from(name), len, file: Box::new(Cursor::new(bytes)) })
    }

    fn read_source(mut source: Source) -> Result<Self> {
        match format::of(&mut source)? {
            Format::Index => shards::read(source),
            Format::Safetensors => safetensors::read(source),
            Format::Zip => pth::read(source),
        }
    }

    /// As [`Weights::read`] for a file that an index names, which cannot be an index again.
    fn read_shard(path: &Path) -> Result<Self> {
        let mut source = Source::open(path)?;
        match format::of(&mut source)? {
            Format::Index => Err(source.error("this shard is an index of shards itself; a shard must hold tensors")),
            Format::Safetensors => safetensors::read(source),
            Format::Zip => pth::read(source),
        }
    }
}

/// An open file of weights with its path, for messages, and its length, the bound of what is allocated.
struct Source {
    path: PathBuf,
    file: Box<dyn Readable>,
    len: u64,
}

/// A file, or bytes in memory.
pub(super) trait Readable: Read + Seek {}
impl<R: Read + Seek> Readable for R {}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !about.is_file() {
            let problem = if about.is_dir() {
                "this is a folder; name the file of weights itself, or open a folder that holds a config.json with \
                 `Source::dir` (`--dir`)"
            } else {
                "this is not a regular file; name the file of weights itself"
            };
            return Err(Error::weights(path, problem));
        }
        let file = File::open(path).map_err(Error::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), len: about.len(), file: Box::new(file) })
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::weights(&self.path, problem)
    }

    /// The first `n` bytes, or all of a shorter file. Leaves the file at its start.
    fn start(&mut self, n: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut self.file).take(n).read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
        self.file.rewind().map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }
}

/// A name out of a file, for a message.
fn quoted(name: &str) -> String {
    format!("\"{}\"", shown(name))
}

/// The number of elements of a shape, or `None` where it cannot be a shape in memory.
///
/// Lengths of zero are passed over for the overflow check, because strides are computed from the others.
fn element_count(shape: &[usize]) -> Option<usize> {
    let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    let fits = shape.len() <= MAX_RANK && isize::try_from(size).is_ok();
    fits.then(|| if shape.contains(&0) { 0 } else { size })
}
