//! Which files a folder of images holds.

use super::decode::FORMATS;
use crate::{Error, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Extensions of images that are read.
const IMAGES: [&str; 11] = ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff"];

/// Extensions of files that often lie beside images.
const HARMLESS: [&str; 12] = ["txt", "json", "csv", "tsv", "md", "xml", "yaml", "yml", "html", "db", "ini", "lnk"];

/// The deepest folder within a class, so that a link to a folder above ends.
const DEPTH: usize = 16;

/// How a root is laid out.
pub(super) enum Layout {
    /// One folder per class.
    Classes,
    /// One folder per part.
    Splits { train: Option<PathBuf>, valid: Option<PathBuf>, test: Option<PathBuf> },
}

/// Finds out how `root` is laid out. A class may be called "train" too, so parts are told by the folders in them.
pub(super) fn layout(root: &Path) -> Result<Layout> {
    let Entries { folders, .. } = Entries::read(root)?;
    let (mut train, mut valid, mut test) = (None, None, None);
    let mut others = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let part = match name.as_str() {
            "train" => &mut train,
            "valid" | "val" | "validation" => &mut valid,
            "test" => &mut test,
            _ => {
                others.push(folder);
                continue;
            }
        };
        if let Some(first) = part.replace(folder.clone()) {
            let problem = format!("both {} and {} are there; keep one", first.display(), folder.display());
            return Err(Error::invalid(root.display().to_string(), problem));
        }
    }
    let is_part = |part: &Option<PathBuf>| -> Result<bool> {
        part.as_ref().map_or(Ok(false), |path| Ok(!Entries::read(path)?.folders.is_empty()))
    };
    let parts = is_part(&train)? || (others.is_empty() && train.is_none() && (is_part(&valid)? || is_part(&test)?));
    // Images beside the parts would be left out without a word.
    for other in others.iter().filter(|_| parts) {
        // A folder that cannot be read is nobody's class.
        let Ok(entries) = Entries::read(other) else { continue };
        if entries.files.iter().any(|file| has_extension(file, &IMAGES)) {
            let problem =
                format!("{} holds images beside the folder train; move it into a part, or away", other.display());
            return Err(Error::invalid(root.display().to_string(), problem));
        }
    }
    Ok(if parts { Layout::Splits { train, valid, test } } else { Layout::Classes })
}

/// Each class with its images, all sorted by name.
pub(super) fn class_folders(root: &Path) -> Result<Vec<(String, Vec<PathBuf>)>> {
    let Entries { folders, files } = Entries::read(root)?;
    if let Some(loose) = files.iter().find(|file| has_extension(file, &IMAGES)) {
        let problem = format!("{} lies beside the class folders; put each image into one", loose.display());
        return Err(Error::invalid(root.display().to_string(), problem));
    }
    let mut classes = Vec::with_capacity(folders.len());
    let mut unknown = Vec::new();
    for folder in folders {
        let class = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut images = Vec::new();
        images_in(&folder, DEPTH, &mut images, &mut unknown)?;
        classes.push((class, images, folder));
    }
    if !unknown.is_empty() {
        return Err(Error::UnknownFiles { files: unknown });
    }
    if classes.iter().all(|(_, images, _)| images.is_empty()) {
        return Err(Error::NoImages { path: root.to_path_buf(), expected: FORMATS });
    }
    if let Some((class, _, path)) = classes.iter().find(|(_, images, _)| images.is_empty()) {
        return Err(Error::EmptyClass { class: class.clone(), path: path.clone() });
    }
    Ok(classes.into_iter().map(|(class, images, _)| (class, images)).collect())
}

fn images_in(folder: &Path, depth: usize, images: &mut Vec<PathBuf>, unknown: &mut Vec<PathBuf>) -> Result<()> {
    let Entries { folders, files } = Entries::read(folder)?;
    for file in files {
        if has_extension(&file, &IMAGES) {
            images.push(file);
        } else if !has_extension(&file, &HARMLESS) {
            unknown.push(file);
        }
    }
    for inner in folders {
        if depth == 0 {
            let problem = format!("folders are nested more than {DEPTH} deep; does a link point to a folder above?");
            return Err(Error::invalid(inner.display().to_string(), problem));
        }
        images_in(&inner, depth - 1, images, unknown)?;
    }
    Ok(())
}

fn has_extension(file: &Path, extensions: &[&str]) -> bool {
    let extension = file.extension().map(OsStr::to_ascii_lowercase);
    extension.is_some_and(|extension| extensions.iter().any(|known| extension == OsStr::new(known)))
}

/// What a folder holds, without what is hidden, sorted by name. Links are followed.
struct Entries {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Entries {
    fn read(folder: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
            let path = entry.map_err(Error::io("read", folder))?.path();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if !name.starts_with(b".") && name != b"__MACOSX" {
                paths.push(path);
            }
        }
        paths.sort();
        let (mut folders, mut files) = (Vec::new(), Vec::new());
        for path in paths {
            let kind = std::fs::metadata(&path).map_err(Error::io("read", &path))?;
            if kind.is_dir() { folders.push(path) } else { files.push(path) }
        }
        Ok(Self { folders, files })
    }
}
