//! The parts of an image folder.

use super::ImageFolder;
use super::duplicates::{self, Duplicates};
use super::file::counts;
use crate::Result;
use crate::data::Dataset;
use crate::data::split::split_indices;
use crate::error::shown_list;
use std::fmt;
use std::path::PathBuf;

/// The share of the training images that becomes valid if there is no folder for it.
const VALID_FRACTION: f64 = 0.15;

/// How many classes are printed by name.
const SHOWN: usize = 10;

/// The parts of an image folder, with the same classes.
///
/// `Display` prints how many images each part has, which folders or table they come from, and which classes valid or
/// test lack.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Splits {
    /// For training.
    pub train: ImageFolder,
    /// For early stopping and every choice.
    pub valid: ImageFolder,
    /// For the final figure, used once.
    pub test: Option<ImageFolder>,
    valid_is_split: bool,
    ignored: Vec<PathBuf>,
    unlisted: usize,
    torn: usize,
}

/// Joins the parts; splits valid off train if there is none. `ignored` are folders, `unlisted` counts images, `torn` groups.
pub(super) fn join(
    train: ImageFolder,
    valid: Option<ImageFolder>,
    test: Option<ImageFolder>,
    (ignored, unlisted, torn): (Vec<PathBuf>, usize, usize),
    seed: u64,
) -> Result<Splits> {
    let valid_is_split = valid.is_none();
    let (train, valid) = match valid {
        Some(valid) => (train, valid),
        None => {
            let (kept, split_off) = split_indices(&train, VALID_FRACTION, seed)?;
            // Images that train skipped are counted in train alone.
            (train.only(&kept), ImageFolder { skipped: [].into(), every_class: false, ..train.only(&split_off) })
        }
    };
    let splits = Splits { train, valid, test, valid_is_split, ignored, unlisted, torn };
    for (part, missing) in splits.missing() {
        tracing::warn!(part, classes = shown_list(missing), "classes without images");
    }
    Ok(splits)
}

impl Splits {
    /// Whether valid was split off train because there is no folder for it, and no row of a table.
    pub fn valid_is_split(&self) -> bool {
        self.valid_is_split
    }

    /// Folders with images beside the parts, ignored because of [`FolderLayout::Parts`](crate::FolderLayout::Parts).
    pub fn ignored(&self) -> &[PathBuf] {
        &self.ignored
    }

    /// How many images in the folder of a table ([`ImageFolder::csv`]) no row names. Without a table it is 0: a folder's
    /// images are all used, or an error.
    pub fn unlisted(&self) -> usize {
        self.unlisted
    }

    /// How many groups the split column of a table ([`ImageFolder::csv`]) has put into several parts: what is measured on
    /// their images is too good.
    pub fn torn_groups(&self) -> usize {
        self.torn
    }

    /// Finds images that are in more than one part, byte for byte: an image that was trained on tells nothing about
    /// accuracy on new images. Only files of equal length are read.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) for a file that cannot be read.
    pub fn duplicates(&self) -> Result<Duplicates> {
        duplicates::find(&self.train, &self.valid, self.test.as_ref())
    }

    /// The folders of the parts.
    fn folders(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "; train is {}", self.train.root().display())?;
        if !self.valid_is_split {
            write!(f, ", valid {}", self.valid.root().display())?;
        }
        self.test.iter().try_for_each(|test| write!(f, ", test {}", test.root().display()))
    }

    /// The classes that valid and test lack.
    fn missing(&self) -> Vec<(&'static str, Vec<&str>)> {
        let parts = [("valid", Some(&self.valid)), ("test", self.test.as_ref())];
        let parts = parts.into_iter().filter_map(|(name, part)| Some((name, missing(part?))));
        parts.filter(|(_, missing)| !missing.is_empty()).collect()
    }
}

/// The classes without an image.
fn missing(part: &ImageFolder) -> Vec<&str> {
    let counts = counts(&part.files, part.classes.len());
    part.classes.iter().zip(counts).filter(|(_, count)| *count == 0).map(|(name, _)| name.as_str()).collect()
}

impl fmt::Display for Splits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { train, valid, test, .. } = self;
        write!(f, "train {}, valid {}", train.len(), valid.len())?;
        if self.valid_is_split {
            write!(f, " (split off train)")?;
        }
        if let Some(test) = test {
            write!(f, ", test {}", test.len())?;
        }
        let classes = train.classes();
        write!(f, " images of {} classes: {}", classes.len(), first(classes.iter().map(String::as_str)))?;
        match &train.origin {
            Some(origin) => {
                let (table, columns) = (origin.table.display(), &origin.columns);
                write!(f, "; the table is {table} ({columns}), its images are in {}", train.root().display())?;
            }
            None => self.folders(f)?,
        }
        for (part, missing) in self.missing() {
            write!(f, "; {part} lacks {}", first(missing))?;
        }
        let skipped = train.skipped().len() + valid.skipped().len() + test.as_ref().map_or(0, |t| t.skipped().len());
        if skipped > 0 {
            write!(f, "; {skipped} images that cannot be read are skipped")?;
        }
        if self.unlisted > 0 {
            write!(f, "; {} images in the folder are not in the table", self.unlisted)?;
        }
        if self.torn > 0 {
            write!(f, "; warning: {} groups are in several parts", self.torn)?;
        }
        if !self.ignored.is_empty() {
            let ignored: Vec<String> = self.ignored.iter().map(|path| path.display().to_string()).collect();
            write!(f, "; ignored: {}", ignored.join(", "))?;
        }
        Ok(())
    }
}

/// The first ten names, and how many more there are.
fn first<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = shown_list(names.into_iter().take(SHOWN));
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}
