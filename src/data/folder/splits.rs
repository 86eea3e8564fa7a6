//! The parts of an image folder.

use super::ImageFolder;
use super::duplicates::{self, Duplicates};
use crate::Result;
use crate::data::Dataset;
use crate::data::split::split_indices;
use crate::error::shown_list;
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

/// The share of the training images that becomes valid if there is no folder for it.
const VALID_FRACTION: f64 = 0.15;

/// How many classes are printed by name.
const SHOWN: usize = 10;

/// The parts of an image folder, with the same classes.
///
/// `Display` prints how many images each part has, which folders they come from, and which classes valid or test lack.
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
}

/// Joins the parts; splits valid off train if there is none.
pub(super) fn join(
    train: ImageFolder,
    valid: Option<ImageFolder>,
    test: Option<ImageFolder>,
    ignored: Vec<PathBuf>,
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
    let splits = Splits { train, valid, test, valid_is_split, ignored };
    for (part, missing) in splits.missing() {
        tracing::warn!(part, classes = shown_list(missing), "classes without images");
    }
    Ok(splits)
}

impl Splits {
    /// Whether valid was split off train because there is no folder for it.
    pub fn valid_is_split(&self) -> bool {
        self.valid_is_split
    }

    /// Folders with images beside the parts, ignored because of [`FolderLayout::Parts`](crate::FolderLayout::Parts).
    pub fn ignored(&self) -> &[PathBuf] {
        &self.ignored
    }

    /// Finds images that are in more than one part, byte for byte: an image that was trained on tells nothing about
    /// accuracy on new images. Only files of equal length are read.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) for a file that cannot be read.
    pub fn duplicates(&self) -> Result<Duplicates> {
        duplicates::find(&self.train, &self.valid, self.test.as_ref())
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
    let ids: BTreeSet<u32> = part.files.iter().map(|file| file.class).collect();
    part.classes.iter().zip(0..).filter(|(_, id)| !ids.contains(id)).map(|(name, _)| name.as_str()).collect()
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
        write!(f, "; train is {}", train.root().display())?;
        if !self.valid_is_split {
            write!(f, ", valid {}", valid.root().display())?;
        }
        if let Some(test) = test {
            write!(f, ", test {}", test.root().display())?;
        }
        for (part, missing) in self.missing() {
            write!(f, "; {part} lacks {}", first(missing))?;
        }
        let skipped = train.skipped().len() + valid.skipped().len() + test.as_ref().map_or(0, |t| t.skipped().len());
        if skipped > 0 {
            write!(f, "; {skipped} images that cannot be read are skipped")?;
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
