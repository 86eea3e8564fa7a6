//! Assigns class ids to the classes of an image folder, by their names.

use super::ImageFolder;
use super::tree::nfc;
use crate::{Error, Result};
use std::collections::BTreeMap;

impl ImageFolder {
    /// Maps the names of the classes onto this list of labels, say those of a saved predictor. This list becomes the
    /// classes, whether or not each has images.
    ///
    /// Names are compared in composed Unicode (NFC). A folder `3` means the label `3`, never the index 3; for indices
    /// use [`class_indices`](Self::class_indices).
    ///
    /// # Errors
    /// [`Error::UnknownClasses`] for folders that are not in the list; [`Error::Invalid`] for a folder whose label is
    /// there twice, as "crane" is among ImageNet's labels.
    pub fn labels(self, labels: &[String]) -> Result<Self> {
        let mut ids: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        labels.iter().zip(0..).for_each(|(label, id)| ids.entry(nfc(label)).or_default().push(id));
        let found: Vec<&[u32]> =
            self.classes.iter().map(|name| ids.get(name).map_or(&[][..], |ids| ids.as_slice())).collect();
        if let Some((name, ids)) = self.classes.iter().zip(&found).find(|(_, ids)| ids.len() > 1) {
            let problem = format!(
                "the labels have this name {} times, as classes {ids:?}, so it could be any of them; number the classes \
                 and use `class_indices`",
                ids.len()
            );
            return Err(Error::invalid(format!("class {name:?} of {}", self.described_by().display()), problem));
        }
        let unknown = self.classes.iter().zip(&found).filter(|(_, ids)| ids.is_empty());
        let unknown: Vec<String> = unknown.map(|(name, _)| name.clone()).collect();
        if !unknown.is_empty() {
            let path = self.described_by().to_path_buf();
            return Err(Error::UnknownClasses { path, unknown, known: labels.to_vec() });
        }
        let ids: Vec<u32> = found.concat();
        Ok(self.renumbered(&ids, labels.to_vec()))
    }

    /// Takes the class ids from the digits at the start of the folder names, alone (`180`) or before an underscore
    /// (`0180_n02093428`), to evaluate a network on classes it already knows. The network's `labels` become the
    /// classes.
    ///
    /// # Errors
    /// [`Error::LabelOutOfRange`] for a number that is not an index into `labels`; [`Error::Invalid`] for a name that
    /// does not start with a number, or a number that two folders have.
    pub fn class_indices(self, labels: &[String]) -> Result<Self> {
        let mut seen: BTreeMap<usize, &String> = BTreeMap::new();
        let mut ids = Vec::with_capacity(self.classes.len());
        for name in self.classes.iter() {
            let digits = name.split('_').next().unwrap_or_default();
            let kind = if self.origin.is_some() { "class" } else { "folder" };
            let folder = || format!("{kind} {name:?} of {}", self.described_by().display());
            let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let Some(id) = all_digits.then(|| digits.parse::<u64>().ok()).flatten() else {
                return Err(Error::invalid(folder(), "its name does not start with the number of a class"));
            };
            if id >= labels.len() as u64 {
                return Err(Error::LabelOutOfRange { sample: folder(), label: id, classes: labels.len() });
            }
            if let Some(other) = seen.insert(id as usize, name) {
                return Err(Error::invalid(folder(), format!("it has the same number as {other:?}")));
            }
            ids.push(id as u32);
        }
        Ok(self.renumbered(&ids, labels.to_vec()))
    }

    fn renumbered(mut self, ids: &[u32], classes: Vec<String>) -> Self {
        let mut files = self.files.to_vec();
        for file in &mut files {
            file.label = file.label.renumbered(ids);
        }
        self.files = files.into();
        self.classes = classes.into();
        self.every_class = false;
        self
    }
}
