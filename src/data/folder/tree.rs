//! The tree of files under a folder, read once: names only, no file is decoded.

use crate::data::decode::sniff;
use crate::{Error, Result};
use std::ffi::OsStr;
use std::fs::{DirEntry, FileType};
use std::path::{Path, PathBuf};
use unicode_normalization::UnicodeNormalization;

/// Extensions of supported images.
const IMAGES: [&str; 15] =
    ["jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "png", "webp", "bmp", "dib", "gif", "tif", "tiff"];

/// Extensions of files that are common beside images.
const HARMLESS: [&str; 12] = ["txt", "json", "csv", "tsv", "md", "xml", "yaml", "yml", "html", "db", "ini", "lnk"];

/// Extensions of documents and videos, which are found beside images as often as among them.
const DOCUMENTS: [&str; 24] = [
    "pdf", "ps", "eps", "ai", "djvu", "svg", "svgz", "ico", "cur", "icns", "mp4", "m4v", "mov", "avi", "mkv", "webm",
    "mpg", "mpeg", "wmv", "3gp", "mts", "m2ts", "flv", "hdr",
];

/// Folders that systems, file servers and tools create, in lower case. Names that begin with a dot are ignored too.
const SYSTEM: [&str; 18] = [
    "__macosx",
    "__pycache__",
    "$recycle.bin",
    "recycler",
    "recycled",
    "system volume information",
    "lost+found",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "~snapshot",
    "network trash folder",
    "temporary items",
    "thevolumesettingsfolder",
    "icon\r",
];

/// The deepest level, so that an endless tree is an error.
const DEPTH: usize = 24;

/// The most folders. More are links that repeat each other: two in each of 24 levels make 16 million.
const MOST_FOLDERS: usize = 1_000_000;

/// A folder with everything under it except system folders, sorted by name. Links are followed.
#[derive(Debug)]
pub(super) struct Folder {
    pub path: PathBuf,
    /// Its name in composed Unicode (NFC), since systems differ in how they write the same name.
    pub name: String,
    pub folders: Vec<Folder>,
    pub images: Vec<PathBuf>,
    /// Images of unsupported formats, and entries named like an image that are not files, with what is wrong.
    pub unread: Vec<(PathBuf, String)>,
    /// Documents and videos, with what is wrong: within a class they count as images, elsewhere they are ignored.
    pub documents: Vec<(PathBuf, String)>,
    /// Files that are not images, with extensions that are not known to be harmless.
    pub unknown: Vec<PathBuf>,
}

impl Folder {
    pub fn read(path: &Path) -> Result<Self> {
        Self::within(path, &mut Vec::new(), &mut 0)
    }

    /// `above`: the folders that contain this one, links resolved; `count`: the folders read so far.
    fn within(path: &Path, above: &mut Vec<PathBuf>, count: &mut usize) -> Result<Self> {
        *count += 1;
        if *count > MOST_FOLDERS {
            let problem = format!("there are more than {MOST_FOLDERS} folders up to here; do links repeat them?");
            return Err(Error::invalid(path.display().to_string(), problem));
        }
        let real = path.canonicalize().map_err(Error::io("read", path))?;
        if above.contains(&real) || above.len() > DEPTH {
            let problem = format!(
                "it leads to a folder above it, or is nested more than {DEPTH} deep; remove the link, or flatten the folders"
            );
            return Err(Error::invalid(path.display().to_string(), problem));
        }
        above.push(real);
        let mut folder = Self {
            path: path.to_path_buf(),
            name: name_of(path),
            folders: Vec::new(),
            images: Vec::new(),
            unread: Vec::new(),
            documents: Vec::new(),
            unknown: Vec::new(),
        };
        let mut entries: Vec<DirEntry> = std::fs::read_dir(path)
            .and_then(|entries| entries.filter(|entry| !entry.as_ref().is_ok_and(is_system)).collect())
            .map_err(Error::io("read", path))?;
        entries.sort_by_key(DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let mut kind = entry.file_type();
            if kind.as_ref().is_ok_and(FileType::is_symlink) {
                kind = std::fs::metadata(&path).map(|target| target.file_type());
            }
            match kind {
                Ok(kind) if kind.is_dir() => folder.folders.push(Self::within(&path, above, count)?),
                Ok(kind) => folder.file(path, sniff::special(kind)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    // It may have pointed to a folder of images.
                    if path.extension().is_none() {
                        let problem = "it is a broken link; repair or remove it";
                        return Err(Error::invalid(path.display().to_string(), problem));
                    }
                    folder.file(path, Some("it is a broken link"));
                }
                Err(error) => return Err(Error::io("read", path)(error)),
            }
        }
        above.pop();
        Ok(folder)
    }

    /// Adds a file. `special`: why it is not a regular one.
    fn file(&mut self, path: PathBuf, special: Option<&str>) {
        let extension = path.extension().map(OsStr::to_ascii_lowercase);
        let extension = extension.as_deref().and_then(OsStr::to_str).unwrap_or_default();
        let foreign = sniff::by_extension(extension);
        if !IMAGES.contains(&extension) && foreign.is_none() {
            if !HARMLESS.contains(&extension) {
                self.unknown.push(path);
            }
        } else if let Some(special) = special {
            self.unread.push((path, sniff::broken(special)));
        } else if let Some(foreign) = foreign {
            match sniff::file(&path) {
                // The content decides: despite its extension it is a supported image.
                Ok(sniff::Content::Image(_)) => self.images.push(path),
                Ok(sniff::Content::Foreign(found)) if !DOCUMENTS.contains(&extension) => {
                    self.unread.push((path, sniff::unsupported(found)));
                }
                _ if DOCUMENTS.contains(&extension) => self.documents.push((path, sniff::unsupported(foreign))),
                _ => self.unread.push((path, sniff::unsupported(foreign))),
            }
        } else {
            self.images.push(path);
        }
    }

    /// Whether it holds images at any depth, unsupported ones included.
    pub fn holds_images(&self) -> bool {
        self.has_own_images() || self.folders.iter().any(Self::holds_images)
    }

    /// Whether it holds images directly.
    pub fn has_own_images(&self) -> bool {
        !self.images.is_empty() || !self.unread.is_empty()
    }

    /// The images directly in it, unsupported ones included.
    pub fn own_images(&self) -> Vec<PathBuf> {
        self.images.iter().chain(self.unread.iter().map(|(path, _)| path)).cloned().collect()
    }

    /// The folders in it that hold images.
    pub fn with_images(&self) -> Vec<&Folder> {
        self.folders.iter().filter(|folder| folder.holds_images()).collect()
    }

    /// Itself and all folders under it.
    pub fn all<'a>(&'a self, into: &mut Vec<&'a Folder>) {
        into.push(self);
        self.folders.iter().for_each(|folder| folder.all(into));
    }
}

/// The name of a folder in composed Unicode (NFC).
fn name_of(path: &Path) -> String {
    nfc(&path.file_name().unwrap_or_default().to_string_lossy())
}

/// Text in composed Unicode (NFC).
pub(super) fn nfc(text: &str) -> String {
    text.nfc().collect()
}

/// Whether an entry is hidden or a system folder.
fn is_system(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    name.as_encoded_bytes().starts_with(b".")
        || name.to_str().is_some_and(|name| SYSTEM.contains(&name.to_ascii_lowercase().as_str()))
}
