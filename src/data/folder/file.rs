//! The image files of a dataset with their labels.

use crate::data::Target;
use std::path::PathBuf;

/// An image file.
#[derive(Debug, Clone)]
pub(super) struct File {
    pub path: PathBuf,
    pub label: Label,
    pub group: Option<u32>,
}

/// What an image shows, as indices into the classes.
#[derive(Debug, Clone)]
pub(super) enum Label {
    /// One class.
    Class(u32),
    /// Any number of classes, in ascending order.
    Labels(Box<[u32]>),
}

impl Label {
    /// All of its classes.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::Class(class) => std::slice::from_ref(class),
            Self::Labels(labels) => labels,
        }
    }

    /// The same classes by other numbers: class i becomes `ids[i]`.
    pub fn renumbered(&self, ids: &[u32]) -> Self {
        let new = |&id: &u32| ids[id as usize];
        match self {
            Self::Class(class) => Self::Class(new(class)),
            Self::Labels(labels) => {
                let mut labels: Box<[u32]> = labels.iter().map(new).collect();
                labels.sort_unstable();
                Self::Labels(labels)
            }
        }
    }

    pub fn target(&self) -> Target {
        match self {
            Self::Class(class) => Target::Class(*class),
            Self::Labels(labels) => Target::Labels(labels.to_vec()),
        }
    }
}

/// How many files each class has. A file with several labels counts for each of them.
pub(super) fn counts(files: &[File], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    files.iter().flat_map(|file| file.label.ids()).for_each(|&class| counts[class as usize] += 1);
    counts
}

/// Where the labels come from, if not from folders.
#[derive(Debug)]
pub(super) struct Origin {
    /// The file of the table.
    pub table: PathBuf,
    /// The columns that were read, as words.
    pub columns: String,
}
