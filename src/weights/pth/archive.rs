//! The container of a `.pth`: a zip whose entries are stored uncompressed in one folder.

use std::collections::BTreeSet;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::{Storage, contents};
use crate::error::{Error, Result, shown_list};
use crate::weights::elements::{self, Data};
use crate::weights::{OpenFile, Readable, quoted};

/// An open zip whose entries are uncompressed, do not overlap and lie in one folder.
pub(super) struct Archive {
    pub path: PathBuf,
    zip: ZipArchive<BufReader<Box<dyn Readable>>>,
    /// The folder, with its slash.
    root: String,
    /// The bytes of all entries, at most those of the file.
    pub len: u64,
}

impl Archive {
    pub fn open(file: OpenFile) -> Result<Self> {
        let OpenFile { path, reader, len: file_len } = file;
        let damaged = |cause| Error::weights_from(&path, "the zip is damaged or cut short, fetch it again", cause);
        // torch.save begins at the first byte. The zip crate, if it has to find the beginning itself, mistakes the
        // first record of the directory for the second where the first has 76 bytes, which depends on the file's name
        // alone.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, BufReader::new(reader)).map_err(damaged)?;
        let mut names = BTreeSet::new();
        let mut unfit = None;
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
                unfit.get_or_insert_with(|| {
                    format!(
                        "zip entry {} is {packing}, but torch.save writes entries uncompressed; extract the zip and \
                         pack it again without compression, or save the weights again",
                        quoted(name)
                    )
                });
            } else if entry.size() != entry.compressed_size() {
                let two = || format!("zip entry {} has two lengths; the zip is damaged", quoted(name));
                unfit.get_or_insert_with(two);
            }
            len = len.saturating_add(entry.size());
            names.insert(name.to_owned());
        }
        if let Some((what, remedy)) = contents::other_than_weights(&names) {
            return Err(Error::weights(path, format!("this is {what}; {remedy}")));
        }
        if let Some(problem) = unfit {
            return Err(Error::weights(path, problem));
        }
        if zip.has_duplicate_names() || len > file_len || zip.has_overlapping_files().map_err(damaged)? {
            return Err(Error::weights(&path, "refused: entries of the zip overlap each other or occur twice"));
        }
        let mut roots = names.iter().filter_map(|name| contents::root(name));
        let mut archive = match (roots.next(), roots.next()) {
            (Some(root), None) => Self { zip, root: root.to_owned(), len, path },
            (None, _) => {
                return Err(Error::weights(
                    path,
                    "this zip was not written by torch.save: it has no data.pkl in its folder. Save the state dict \
                     with torch.save, or better with safetensors.torch.save_file",
                ));
            }
            _ => {
                let roots = shown_list(names.iter().filter_map(|name| contents::root(name)));
                return Err(Error::weights(path, format!("this zip has several data.pkl: {roots}")));
            }
        };
        if archive.index("byteorder").is_some() {
            match &archive.read_small("byteorder", 16)?[..] {
                b"little" => {}
                order => {
                    return Err(archive.error(format!(
                        "the storages have the byte order {:?}, but only \"little\" is read; save the file on a \
                         little-endian machine",
                        String::from_utf8_lossy(order)
                    )));
                }
            }
        }
        Ok(archive)
    }

    pub fn error(&self, problem: impl Into<String>) -> Error {
        Error::weights(&self.path, problem)
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.zip.index_for_name(&format!("{}{name}", self.root))
    }

    /// Reads an entry with `read`, which gets its length, and checks that it ends there with the right checksum.
    fn entry<T>(&mut self, name: &str, read: impl FnOnce(&mut dyn Read, u64) -> std::io::Result<T>) -> Result<T> {
        let Some(index) = self.index(name) else {
            let name = quoted(&format!("{}{name}", self.root));
            return Err(self.error(format!("the zip lacks the entry {name}, which its pickle refers to")));
        };
        let damaged = |path, cause| {
            Error::weights_from(path, format!("zip entry {name:?} could not be read; fetch the file again"), cause)
        };
        let mut entry = self.zip.by_index(index).map_err(|cause| damaged(&self.path, cause.into()))?;
        let len = entry.size();
        let value = read(&mut entry, len).map_err(|cause| damaged(&self.path, cause))?;
        match entry.read(&mut [0]) {
            Ok(0) => Ok(value),
            Ok(_) => Err(Error::weights(&self.path, format!("zip entry {name:?} is longer than its declared size"))),
            Err(cause) => Err(damaged(&self.path, cause)),
        }
    }

    /// The bytes of an entry that is not a storage.
    pub fn read_small(&mut self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let index = self.index(name);
        let len = index.and_then(|index| self.zip.by_index_data(index).ok().map(|entry| entry.size()));
        if let Some(len) = len.filter(|&len| len > limit) {
            return Err(self.error(format!("refused: {name} has {len} bytes, but at most {limit} are read")));
        }
        self.entry(name, |entry, len| {
            let mut bytes = vec![0; len as usize];
            entry.read_exact(&mut bytes)?;
            Ok(bytes)
        })
    }

    pub fn storage(&mut self, &Storage { ref key, dtype, count }: &Storage) -> Result<Data> {
        let size = elements::size(dtype);
        self.entry(&format!("data/{key}"), |mut entry, len| {
            if count.checked_mul(size).map(|bytes| bytes as u64) != Some(len) {
                return Err(std::io::Error::other(format!(
                    "it has {len} bytes, but the pickle describes {count} elements of {size} bytes"
                )));
            }
            elements::read(dtype, &mut entry, count)
        })
    }
}
