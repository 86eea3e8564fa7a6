//! Decides what the folders of a tree are: parts or classes.

use super::part::{Part, part, parts};
use super::tree::Folder;
use crate::error::shown_list;
use crate::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// The meaning of the folders directly under a root, if their names are ambiguous.
///
/// See [`FolderOptions::layout`](crate::FolderOptions::layout).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FolderLayout {
    /// Parts of a data set: train, valid, test. Other folders are ignored.
    Parts,
    /// Classes, with any names.
    Classes,
}

impl FromStr for FolderLayout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "parts" => Ok(Self::Parts),
            "classes" => Ok(Self::Classes),
            _ => Err(Error::invalid("layout", format!("unknown layout {name:?}; use parts or classes"))),
        }
    }
}

impl fmt::Display for FolderLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parts => "parts",
            Self::Classes => "classes",
        })
    }
}

/// The content of a tree.
pub(super) enum Tree<'a> {
    /// The folders directly under this one are the classes.
    Classes(&'a Folder),
    Parts(Parts<'a>),
}

/// The parts of a data set: the folders that hold their class folders.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub train: Option<&'a Folder>,
    pub valid: Option<&'a Folder>,
    pub test: Option<&'a Folder>,
    /// Folders with images beside the parts that are not parts themselves.
    pub ignored: Vec<&'a Folder>,
}

/// Decides what `root` holds. Without a `layout`, either all of its folders that hold images must be parts, or none.
pub(super) fn read(root: &Folder, layout: Option<FolderLayout>) -> Result<Tree<'_>> {
    if layout == Some(FolderLayout::Classes) {
        return Ok(Tree::Classes(root));
    }
    let level = innermost(root);
    // A part without images is a separate error, if other folders show that there are parts.
    let folders: Vec<&Folder> =
        level.folders.iter().filter(|folder| folder.holds_images() || part(&folder.name).is_some()).collect();
    let names: Vec<&str> = folders.iter().map(|folder| folder.name.as_str()).collect();
    let mut found: Vec<(Part, &Folder)> = Vec::new();
    let mut others: Vec<&Folder> = Vec::new();
    for (&folder, part) in folders.iter().zip(parts(&names)) {
        part.map_or_else(|| others.push(folder), |part| found.push((part, folder)));
    }
    // Beside other folders, parts that are all empty do not count as parts.
    let filled = |(_, folder): &(Part, &Folder)| folder.holds_images();
    let has_parts = if others.is_empty() { !found.is_empty() } else { found.iter().any(filled) };
    if !has_parts {
        return match layout {
            Some(_) => {
                let problem =
                    "no folder with images is named train, valid or test; rename them or set `--layout classes`";
                Err(Error::invalid(level.path.display().to_string(), problem))
            }
            None => Ok(Tree::Classes(root)),
        };
    }
    if layout.is_none() && !others.is_empty() {
        return Err(ambiguous(level, &found, &others));
    }
    if level.has_own_images() {
        return Err(Error::StrayImages {
            folder: level.path.clone(),
            images: level.own_images(),
            problem: format!(
                "beside the parts {}; move each into a class folder of one",
                listed(found.iter().map(|(_, f)| *f))
            ),
        });
    }
    let mut parts = Parts { ignored: others, ..Parts::default() };
    for (part, folder) in found {
        let slot = match part {
            Part::Train => &mut parts.train,
            Part::Valid => &mut parts.valid,
            Part::Test => &mut parts.test,
        };
        if let Some(first) = slot.replace(part_root(folder, part)) {
            let problem = format!(
                "{} and {} both match the split {}; keep one, or set `layout` to classes (`--layout classes`)",
                first.path.display(),
                folder.path.display(),
                part.name()
            );
            return Err(Error::invalid(level.path.display().to_string(), problem));
        }
    }
    Ok(Tree::Parts(parts))
}

fn ambiguous(level: &Folder, found: &[(Part, &Folder)], others: &[&Folder]) -> Error {
    let parts: Vec<&Folder> = found.iter().map(|(_, folder)| *folder).collect();
    let classes = level.with_images();
    Error::AmbiguousLayout {
        path: level.path.clone(),
        parts: format!("parts of a data set ({}), without {}", listed(parts), listed(others.iter().copied())),
        classes: format!("{} classes ({})", classes.len(), listed(classes.iter().copied())),
    }
}

/// The names of folders, for a message.
pub(super) fn listed<'a>(folders: impl IntoIterator<Item = &'a Folder>) -> String {
    shown_list(folders.into_iter().map(|folder| folder.name.as_str()))
}

/// The end of a chain of folders that each hold only the next. A part ends the chain.
pub(super) fn innermost(root: &Folder) -> &Folder {
    let mut at = root;
    while let ([only], false) = (at.with_images().as_slice(), at.has_own_images()) {
        if part(&only.name).is_some() {
            break;
        }
        at = only;
    }
    at
}

/// The folder that holds a part's class folders: some archives nest it, as in `test/test/CLASS`.
fn part_root(folder: &Folder, wanted: Part) -> &Folder {
    let mut at = folder;
    while let ([only], false) = (at.with_images().as_slice(), at.has_own_images()) {
        if part(&only.name) != Some(wanted) {
            break;
        }
        at = only;
    }
    at
}
