//! The images of a folder, found by the names that a table has for them.

use crate::Result;
use crate::data::folder::tree::{Folder, nfc};
use std::path::{Path, PathBuf};

/// An image file.
pub(super) struct Image {
    pub path: PathBuf,
    /// Why it cannot be read, if its format is not supported.
    pub problem: Option<String>,
    /// Whether it is a document or a video, of which there are some beside images.
    pub is_document: bool,
}

/// Why a name stands for no image.
pub(super) enum Miss {
    /// It is absolute or has "..", and so leads out of the folder.
    Outside,
    /// There is no such image, but perhaps one of the same name in another folder.
    Absent(Option<usize>),
    /// There are several.
    Ambiguous(usize, usize),
}

/// All images under a folder. Names are compared in composed Unicode (NFC).
///
/// An image is looked up by its path from the end, "3.png/cats/train", so that one sorted list serves whole paths, their
/// ends, and bare names.
pub(super) struct Images {
    pub files: Vec<Image>,
    /// The names of the folders that lead to the root, the last one first.
    root: Vec<String>,
    /// The paths from the end, sorted, with the image.
    paths: Vec<(String, usize)>,
    /// The same without the extension.
    stems: Vec<(String, usize)>,
}

impl Images {
    pub fn read(root: &Path) -> Result<Self> {
        let tree = Folder::read(root)?;
        let mut folders = Vec::new();
        tree.all(&mut folders);
        let mut files = Vec::new();
        for folder in folders {
            let image = |path: &PathBuf, problem: Option<&String>, is_document| Image {
                path: path.clone(),
                problem: problem.cloned(),
                is_document,
            };
            files.extend(folder.images.iter().map(|path| image(path, None, false)));
            files.extend(folder.unread.iter().map(|(path, problem)| image(path, Some(problem), false)));
            files.extend(folder.documents.iter().map(|(path, problem)| image(path, Some(problem), true)));
        }
        Ok(Self::new(root, files))
    }

    /// These files, which are under `root`.
    fn new(root: &Path, files: Vec<Image>) -> Self {
        let (mut paths, mut stems) = (Vec::with_capacity(files.len()), Vec::with_capacity(files.len()));
        for (i, image) in files.iter().enumerate() {
            let inner = image.path.strip_prefix(root).unwrap_or(&image.path);
            paths.push((from_the_end(inner), i));
            stems.push((from_the_end(&inner.with_extension("")), i));
        }
        paths.sort();
        stems.sort();
        let real = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
        let root = from_the_end(&real).split('/').map(String::from).collect();
        Self { files, root, paths, stems }
    }

    /// The image that a name of the table stands for: a path relative to the folder; else the unique image whose path
    /// ends so; else the same without extensions. A path may begin with names of the folders that lead to this one.
    pub fn find(&self, name: &str) -> Result<usize, Miss> {
        let name = name.replace('\\', "/");
        let drive = name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic) && name[1..].starts_with(":/");
        let parts: Vec<String> = name.split('/').filter(|part| !part.is_empty() && *part != ".").map(nfc).collect();
        if name.starts_with('/') || drive || parts.iter().any(|part| part == "..") {
            return Err(Miss::Outside);
        }
        let Some(last) = parts.last() else { return Err(Miss::Absent(None)) };
        let reversed = |parts: &[String]| parts.iter().rev().map(String::as_str).collect::<Vec<_>>().join("/");
        let whole = reversed(&parts);
        match equal(&self.paths, &whole) {
            [] => {}
            [(_, one)] => return Ok(*one),
            [(_, one), (_, other), ..] => return Err(Miss::Ambiguous(*one, *other)),
        }
        for paths in [&self.paths, &self.stems] {
            let mut found = equal(paths, &whole).iter().chain(below(paths, &whole));
            match (found.next(), found.next()) {
                (Some((_, one)), None) => return Ok(*one),
                (Some((_, one)), Some((_, other))) => return Err(Miss::Ambiguous(*one, *other)),
                _ => {}
            }
            // "images/3.png", where the folder is "data/images".
            for cut in 1..parts.len().min(self.root.len() + 1) {
                let to_root = parts[..cut].iter().rev().zip(&self.root).all(|(part, root)| part == root);
                if to_root && let [(_, one)] = equal(paths, &reversed(&parts[cut..])) {
                    return Ok(*one);
                }
            }
        }
        let elsewhere = equal(&self.paths, last).iter().chain(below(&self.paths, last));
        Err(Miss::Absent(elsewhere.map(|(_, image)| *image).next()))
    }
}

/// The names of a path, joined from the last to the first.
fn from_the_end(path: &Path) -> String {
    let names: Vec<_> = path.iter().rev().map(|name| nfc(&name.to_string_lossy())).collect();
    names.join("/")
}

/// The entries of this path.
fn equal<'a>(sorted: &'a [(String, usize)], path: &str) -> &'a [(String, usize)] {
    let from = sorted.partition_point(|(entry, _)| entry.as_str() < path);
    let count = sorted[from..].partition_point(|(entry, _)| entry == path);
    &sorted[from..from + count]
}

/// The entries whose path ends with this one, in folders.
fn below<'a>(sorted: &'a [(String, usize)], path: &str) -> &'a [(String, usize)] {
    let start = format!("{path}/");
    let from = sorted.partition_point(|(entry, _)| *entry < start);
    let count = sorted[from..].partition_point(|(entry, _)| entry.starts_with(&start));
    &sorted[from..from + count]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn many_files_of_one_name_are_found_in_no_quadratic_time() {
        let file =
            |i: usize| Image { path: format!("/data/images/{i}/view.png").into(), problem: None, is_document: false };
        let begun = Instant::now();
        let images = Images::new(Path::new("/data/images"), (0..200_000).map(file).collect());
        for i in (0..200_000).step_by(2) {
            for name in [format!("{i}/view.png"), format!("{i}/view"), format!("images/{i}/view.png")] {
                assert!(matches!(images.find(&name), Ok(found) if found == i), "{name}");
            }
        }
        assert!(matches!(images.find("view.png"), Err(Miss::Ambiguous(..))));
        // Comparing each of 300 000 names with each file would take minutes.
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
