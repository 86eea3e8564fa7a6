//! Files of weights: reading safetensors and `.pth`, writing safetensors.
//!
//! A reader trusts nothing that a file says about itself: lengths are compared with the length of the file before
//! anything is allocated, and whatever cannot be read as it stands is an error that names the file and the tensor.

mod atomic;
mod elements;
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

/// Headers and indices of more bytes than this are refused; real ones have a few hundred thousand at most.
const MAX_HEADER: u64 = 100_000_000;

/// Files and indices of more names than this are refused, since each takes more memory than its text; real ones have a
/// few thousand.
const MAX_NAMES: usize = 200_000;

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
    /// The tensors by the names that the file gives them, less the wrappers `module.` and `_orig_mod.` in a `.pth`.
    pub tensors: BTreeMap<String, Tensor>,
    /// The free texts of a safetensors header; empty for a `.pth`.
    pub metadata: BTreeMap<String, String>,
}

impl Weights {
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
        match source.format()? {
            Format::Index => shards::read(source),
            Format::Safetensors => safetensors::read(source),
            Format::Zip => pth::read(source),
        }
    }

    /// As [`Weights::read`] for a file that an index names, which cannot be an index again.
    fn read_shard(path: &Path) -> Result<Self> {
        let mut source = Source::open(path)?;
        match source.format()? {
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

/// The kinds of files that are read.
enum Format {
    Safetensors,
    Index,
    Zip,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !about.is_file() {
            let found = if about.is_dir() { "a folder" } else { "not a regular file" };
            return Err(Error::weights(path, format!("this is {found}; name the file of weights itself")));
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

    /// Tells the format by the content, since extensions are often wrong.
    fn format(&mut self) -> Result<Format> {
        let start = self.start(512)?;
        let text = start.trim_ascii_start();
        let found = match &start[..] {
            [] => "an empty file",
            [b'P', b'K', 3 | 5, 4 | 6, ..] => return Ok(Format::Zip),
            bytes if bytes.starts_with(LEGACY_TORCH) => return Err(self.legacy("the legacy pickle of torch.save")),
            bytes if bytes.get(257..262) == Some(b"ustar") => {
                return Err(self.legacy("the tar archive of very old versions of torch.save"));
            }
            // The length of a header is never so large that its highest byte is set; in text that byte always is.
            [_, _, _, _, _, _, _, high, ..] if text.starts_with(b"{") && *high != 0 && start[..8].is_ascii() => {
                return Ok(Format::Index);
            }
            [_, _, _, _, _, _, _, _, b'{', ..] => return Ok(Format::Safetensors),
            [0x80, 2..=5, ..] => return Err(self.legacy("a bare Python pickle")),
            bytes if bytes.starts_with(b"version https://git-lfs") => {
                "a Git LFS pointer, not the file it stands for (fetch it with `git lfs pull`)"
            }
            bytes if bytes.starts_with(b"\x89HDF") => "an HDF5 file (Keras)",
            bytes if bytes.starts_with(b"GGUF") => "a GGUF file",
            _ if text.starts_with(b"<") => "a web page or XML (was an error page downloaded in its place?)",
            _ if start.len() < 9 => "too few bytes to be any of them",
            _ => "none of them",
        };
        Err(self.error(format!(
            "this is not a weights file that is understood: found {found}, {} bytes long; accepted are safetensors, \
             an index of safetensors shards (*.index.json), and the zip format of torch.save (.pth, .pt, .bin)",
            self.len
        )))
    }

    fn legacy(&self, found: &str) -> Error {
        self.error(format!(
            "this is {found}, which is not read, because a pickle is a program. Convert it in Python, from a source \
             you trust: `state = torch.load(\"old.pth\", map_location=\"cpu\", weights_only=True)`, then \
             `safetensors.torch.save_file(state, \"new.safetensors\")`"
        ))
    }
}

/// How a file of `torch.save` without zip begins: a pickle of torch's magic number.
const LEGACY_TORCH: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

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
