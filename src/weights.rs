//! Files of weights: reading safetensors and `.pth`, writing safetensors.
//!
//! Readers trust no length or offset in a file. They compare lengths with the length of the file before they
//! allocate, and everything that they cannot read is an error that names the file and the tensor. Element types and the
//! validation of safetensors headers come from the `safetensors` crate. The streamed reading, the limits and the order
//! of what is written are this module's own.

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

#[cfg(feature = "image")]
pub(crate) use atomic::write_bytes;
pub(crate) use atomic::{Disk, Os, TEMPORARY, write_text};
pub(crate) use elements::read_tensor;
pub(crate) use shards::names as shard_names;
#[cfg(test)]
pub(crate) use write::write;
pub(crate) use write::{METADATA_KEY, tensor_bytes, write_through};

use crate::error::{Error, Result, shown};
use format::Format;

/// Headers and indices of more bytes are refused; real ones have a few hundred thousand at most.
const MAX_HEADER: u64 = 100_000_000;

/// Files and indices of more names are refused, since each name takes more memory than its text; real ones have a few
/// thousand.
const MAX_NAMES: usize = 200_000;

/// Of the entries of a state dict that are no tensors, this many are described.
const MAX_OTHERS: usize = 1000;

/// Tensors of more dimensions are refused; real ones have five at most.
const MAX_RANK: usize = 16;

/// All tensors of a file, or of all the shards of an index.
///
/// Tensors are on the CPU and contiguous. f32, f64, u8 and u32 keep their type, f16 and bf16 are converted to f32, all
/// other integers and booleans to i64.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The file that was opened; for shards, their index.
    pub path: PathBuf,
    /// The tensors by their names in the file.
    pub tensors: BTreeMap<String, Tensor>,
    /// The metadata of a safetensors header, which are free texts; empty for a `.pth`.
    pub metadata: BTreeMap<String, String>,
    /// The state dict that was read, if the file holds several.
    pub notes: Vec<String>,
    /// The entries of a `.pth` state dict that are no tensors and were skipped: name and description, the first
    /// [`MAX_OTHERS`] of them.
    pub others: BTreeMap<String, String>,
}

impl Weights {
    fn new(path: PathBuf, tensors: BTreeMap<String, Tensor>, metadata: BTreeMap<String, String>) -> Self {
        Self { path, tensors, metadata, notes: Vec::new(), others: BTreeMap::new() }
    }

    /// Reads a file of weights, whatever its extension: a safetensors file, an index of shards, or a `.pth` in the zip
    /// format that `torch.save` has written since PyTorch 1.6.
    ///
    /// # Errors
    /// [`Error::Weights`] or [`Error::Io`] for any other file, and for any fault inside the file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_from(OpenFile::open(path)?)
    }

    /// As [`Weights::read`] for the bytes of a file. Errors call the file `name`.
    pub fn from_bytes(name: &str, bytes: impl AsRef<[u8]> + 'static) -> Result<Self> {
        let len = bytes.as_ref().len() as u64;
        Self::read_from(OpenFile { path: PathBuf::from(name), len, reader: Box::new(Cursor::new(bytes)) })
    }

    fn read_from(mut file: OpenFile) -> Result<Self> {
        match format::of(&mut file)? {
            Format::Index => shards::read(file),
            Format::Safetensors => safetensors::read(file),
            Format::Zip => pth::read(file),
        }
    }

    /// As [`Weights::read`] for a file that an index names, which cannot be an index itself.
    fn read_shard(path: &Path) -> Result<Self> {
        let mut file = OpenFile::open(path)?;
        match format::of(&mut file)? {
            Format::Index => Err(file.error("this shard is an index of shards itself; a shard must hold tensors")),
            Format::Safetensors => safetensors::read(file),
            Format::Zip => pth::read(file),
        }
    }
}

/// An open file of weights with its path, for messages, and its length, which bounds what is allocated.
struct OpenFile {
    path: PathBuf,
    reader: Box<dyn Readable>,
    len: u64,
}

/// A file, or bytes in memory.
pub(super) trait Readable: Read + Seek {}
impl<R: Read + Seek> Readable for R {}

impl OpenFile {
    fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !about.is_file() {
            let problem = if about.is_dir() {
                "this is a folder; name the weights file in it, or open a folder that holds a config.json with \
                 `Source::dir` (`--dir`)"
            } else {
                "this is not a regular file; name a weights file"
            };
            return Err(Error::weights(path, problem));
        }
        let file = File::open(path).map_err(Error::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), len: about.len(), reader: Box::new(file) })
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::weights(&self.path, problem)
    }

    /// The first `n` bytes, or all of a shorter file. Rewinds the file.
    fn start(&mut self, n: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut self.reader).take(n).read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
        self.reader.rewind().map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }
}

/// A name from a file, for a message.
fn quoted(name: &str) -> String {
    format!("\"{}\"", shown(name))
}

/// The number of elements of a shape, or `None` if no tensor in memory can have that shape.
///
/// The overflow check ignores lengths of zero, because strides are computed from the others.
fn element_count(shape: &[usize]) -> Option<usize> {
    let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    let fits = shape.len() <= MAX_RANK && isize::try_from(size).is_ok();
    fits.then(|| if shape.contains(&0) { 0 } else { size })
}
