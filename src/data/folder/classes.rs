//! The classes of a folder.

use super::layout::{innermost, listed};
use super::part::parts;
use super::tree::Folder;
use crate::data::decode::FORMATS;
use crate::{Error, Result};
use std::path::PathBuf;

/// A class with its images, sorted.
pub(super) struct Class {
    pub name: String,
    pub images: Vec<PathBuf>,
}

/// The classes of a folder, sorted by name.
pub(super) struct Classes {
    pub classes: Vec<Class>,
    /// Images that cannot be read, with what is wrong.
    pub unread: Vec<(PathBuf, String)>,
}

/// Which names and depths of class folders are accepted.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Accept {
    /// Any: the caller set the layout to classes.
    Any,
    /// Not if all names are those of parts.
    Named,
    /// As `Named`, and not a single class if the folder may be one level too high.
    Trained,
}

/// Reads the folders directly under `root` as classes, with images at any depth in each.
pub(super) fn read(root: &Folder, accept: Accept) -> Result<Classes> {
    let with_images = root.with_images();
    if root.has_own_images() {
        let problem = if with_images.is_empty() {
            "where one folder per class is expected. If tables hold their labels, open the table (`ImageFolder::csv`); \
             otherwise sort the images into class folders, or move the folder away if its images have no labels"
        } else {
            "beside class folders; move each into one"
        };
        let (folder, images) = (root.path.clone(), root.own_images());
        return Err(Error::StrayImages { folder, images, problem: problem.into() });
    }
    let (mut classes, mut unread, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
    for folder in &root.folders {
        let mut inner = Vec::new();
        folder.all(&mut inner);
        classes.push(Class {
            name: folder.name.clone(),
            images: inner.iter().flat_map(|folder| folder.images.iter().cloned()).collect(),
        });
        unread.extend(inner.iter().flat_map(|folder| folder.unread.iter().chain(&folder.documents).cloned()));
        unknown.extend(inner.iter().flat_map(|folder| folder.unknown.iter().cloned()));
    }
    if !unknown.is_empty() {
        return Err(Error::UnknownFiles { files: unknown });
    }
    if with_images.is_empty() {
        return Err(Error::NoImages { path: root.path.clone(), expected: FORMATS });
    }
    if let Some(folder) = root.folders.iter().find(|folder| !folder.holds_images()) {
        return Err(Error::EmptyClass { class: folder.name.clone(), path: folder.path.clone() });
    }
    check_names(root, &with_images)?;
    if accept != Accept::Any {
        check_level(root, &with_images, accept)?;
    }
    classes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Classes { classes, unread })
}

/// Refuses folders that have the same name in two forms of Unicode.
fn check_names(root: &Folder, folders: &[&Folder]) -> Result<()> {
    let mut sorted = folders.to_vec();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let Some(pair) = sorted.windows(2).find(|pair| pair[0].name == pair[1].name) else { return Ok(()) };
    let [a, b] = [pair[0], pair[1]].map(|folder| folder.path.file_name().unwrap_or_default().to_string_lossy());
    let problem = format!(
        "the folders {} and {} have the same name, in two forms of Unicode (composed and decomposed); put their \
         images into one",
        a.escape_default(),
        b.escape_default()
    );
    Err(Error::invalid(root.path.display().to_string(), problem))
}

/// Refuses class folders that are probably parts, or one level too high.
fn check_level(root: &Folder, folders: &[&Folder], accept: Accept) -> Result<()> {
    let names: Vec<&str> = folders.iter().map(|folder| folder.name.as_str()).collect();
    if parts(&names).iter().all(Option::is_some) {
        return Err(Error::AmbiguousLayout {
            path: root.path.clone(),
            parts: format!(
                "parts of a data set ({}), in a folder that is read as a part itself",
                listed(folders.iter().copied())
            ),
            classes: format!("{} classes ({})", folders.len(), listed(folders.iter().copied())),
        });
    }
    let inner = innermost(root);
    if accept == Accept::Trained && folders.len() == 1 && !inner.has_own_images() && inner.with_images().len() > 1 {
        let problem = format!(
            "its only folder that holds images is {}, and these lie in the folders {} of {}. Open the latter if these \
             are the classes; if {} is a single class, set `layout` to classes (`--layout classes`)",
            listed(folders.iter().copied()),
            listed(inner.with_images()),
            inner.path.display(),
            listed(folders.iter().copied())
        );
        return Err(Error::invalid(root.path.display().to_string(), problem));
    }
    Ok(())
}
