//! Images that are in more than one part.

use super::{ImageFolder, check};
use crate::fingerprint::Fingerprint;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// How many pairs are listed.
const EXAMPLES: usize = 10;

/// Images that are in more than one part, byte for byte. See [`Splits::duplicates`](crate::Splits::duplicates).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Duplicates {
    /// Images of valid that are in train as well.
    pub valid: usize,
    /// Images of test that are in train or valid as well.
    pub test: usize,
    /// The first ten pairs of equal files: one of valid or test, then the one of the earlier part.
    pub examples: Vec<(PathBuf, PathBuf)>,
}

impl Duplicates {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.valid + self.test == 0
    }
}

impl fmt::Display for Duplicates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "images in several parts: {} of valid (also in train), {} of test (also in train or valid)",
            self.valid, self.test
        )?;
        for (i, (later, earlier)) in self.examples.iter().enumerate() {
            let start = if i == 0 { ": " } else { ", " };
            write!(f, "{start}{} = {}", later.display(), earlier.display())?;
        }
        Ok(())
    }
}

/// A file of a part.
struct Member<'a> {
    /// 0 train, 1 valid, 2 test.
    part: usize,
    path: &'a Path,
}

pub(super) fn find(train: &ImageFolder, valid: &ImageFolder, test: Option<&ImageFolder>) -> Result<Duplicates> {
    let mut by_length: BTreeMap<u64, Vec<Member>> = BTreeMap::new();
    for (part, folder) in [Some(train), Some(valid), test].into_iter().enumerate() {
        for file in folder.iter().flat_map(|folder| folder.files.iter()) {
            let length = file.path.metadata().map_err(Error::io("read", &file.path))?.len();
            by_length.entry(length).or_default().push(Member { part, path: &file.path });
        }
    }
    // Files whose length no file of another part has are not read.
    let candidates: Vec<(u64, Member)> = by_length
        .into_iter()
        .filter(|(_, members)| members.iter().any(|member| member.part != members[0].part))
        .flat_map(|(length, members)| members.into_iter().map(move |member| (length, member)))
        .collect();
    let mut by_content: BTreeMap<(u64, u64), Vec<&Member>> = BTreeMap::new();
    for (i, content) in check::in_parallel(&candidates, |(_, member)| Some(content_of(member.path))) {
        let (length, member) = &candidates[i];
        by_content.entry((*length, content?)).or_default().push(member);
    }
    let mut found = Duplicates::default();
    let mut pairs: Vec<(PathBuf, PathBuf)> = Vec::new();
    for members in by_content.values() {
        let Some(first) = members.iter().min_by_key(|member| member.part) else { continue };
        for member in members {
            let Some(earlier) = Some(first).filter(|first| first.part < member.part) else { continue };
            if member.part == 1 {
                found.valid += 1;
            } else {
                found.test += 1;
            }
            pairs.push((member.path.to_path_buf(), earlier.path.to_path_buf()));
        }
    }
    pairs.sort();
    pairs.truncate(EXAMPLES);
    found.examples = pairs;
    Ok(found)
}

/// The fingerprint of a file's bytes.
fn content_of(path: &Path) -> Result<u64> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    Ok(Fingerprint::new("file").contents(file).map_err(Error::io("read", path))?.finish())
}
