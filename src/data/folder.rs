//! Images in folders, one folder per class or described by a table.

mod check;
mod classes;
mod csv;
mod duplicates;
mod file;
mod labels;
mod layout;
mod options;
mod part;
mod splits;
mod tree;

pub use csv::CsvOptions;
pub use duplicates::Duplicates;
pub use layout::FolderLayout;
pub use options::FolderOptions;
pub use splits::Splits;

use super::decode;
use super::{Dataset, Sample, SampleInfo};
use crate::fingerprint::Fingerprint;
use crate::{Error, Result};
use file::{File, Origin, counts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Images in folders, one folder per class: `ROOT/CLASS/*`, or `ROOT/train/CLASS/*` with `valid` and `test` beside
/// `train`.
///
/// - **Classes** are the folder names in sorted order, in composed Unicode (NFC). Within a class, images may lie in
///   nested folders.
/// - **Parts** have the usual names, in upper or lower case: `train`, `training`; `val`, `valid`, `validation`, `dev`,
///   `eval`, `evaluation`; `test`, `testing`. A name may also contain words such as `images`, `data` or `set`, a
///   number, or a word that two parts share: `train_images`, `TestSet`, `val2017`, `cats_train` beside `cats_test`. Two
///   folders for the same part are an error.
/// - **Parts or classes**: the folders of a root are parts if all that hold images have such names, classes if none has
///   (`valid` beside `invalid` is a class). Anything else is [`Error::AmbiguousLayout`]; decide it with
///   [`FolderOptions::layout`].
/// - **An extra level** is skipped if it leads to parts: `ROOT/pets/train/CLASS`, `test/test/CLASS`. If it leads to
///   classes, `ROOT/pets/CLASS`, it is an error that names the inner folder.
/// - **No image is skipped silently**: images beside class folders or beside parts are [`Error::StrayImages`], an empty
///   class is [`Error::EmptyClass`], images of unsupported formats (HEIC, AVIF, PSD, raw photographs and more) are
///   [`Error::UnreadableImages`], files with other extensions within a class [`Error::UnknownFiles`].
/// - **Ignored**: names that begin with a dot; system folders (`__MACOSX`, `__pycache__`, `@eaDir`,
///   `@Recycle`, `@Recently-Snapshot`, `@tmp`, `#recycle`, `#snapshot`, `~snapshot`, `$RECYCLE.BIN`, `RECYCLER`,
///   `RECYCLED`, `System Volume Information`, `lost+found`, `Network Trash Folder`, `Temporary Items`,
///   `TheVolumeSettingsFolder`); text and tables (txt, json, csv, tsv, md, xml, yaml, html), `Thumbs.db`,
///   `desktop.ini` and Windows shortcuts.
///
/// Opening reads file names only; [`check`](Self::check) decodes all images. A clone is cheap.
///
/// **A table (CSV)** may describe the images instead, with a row per image: [`csv`](Self::csv). Then the folders mean
/// nothing, and an image may have several labels.
///
/// ```no_run
/// use candle_finetune::ImageFolder;
///
/// let splits = ImageFolder::splits("data", 42)?;
/// println!("{splits}"); // train 244, valid 36 (split off train), test 153 images of 2 classes: ants, bees
/// splits.train.check()?; // optional: lists every broken file
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct ImageFolder {
    root: PathBuf,
    /// The table that describes the images; without one, their folders do.
    origin: Option<Arc<Origin>>,
    classes: Arc<[String]>,
    files: Arc<[File]>,
    /// Skipped images, with what is wrong.
    skipped: Arc<[(PathBuf, String)]>,
    max_pixels: u64,
    /// Whether each class must have an image.
    every_class: bool,
}

impl ImageFolder {
    /// Options for opening a folder: its layout, the limit on pixels, broken images, groups.
    pub fn options() -> FolderOptions {
        FolderOptions::default()
    }

    /// Options for opening the images that a table describes, as the data sets of competitions have them: its columns,
    /// the folder of its images.
    ///
    /// ```no_run
    /// use candle_finetune::ImageFolder;
    ///
    /// let splits = ImageFolder::csv().images("data/images").splits("data/labels.csv", 42)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn csv() -> CsvOptions {
        CsvOptions::default()
    }

    /// The images of `root/CLASS/*`, or of `root/train/CLASS/*` where `root` has parts, with default options.
    ///
    /// # Errors
    /// As [`FolderOptions::open`].
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(root)
    }

    /// All parts of `root`, with default options; if there is no valid, `seed` chooses what is split off train.
    ///
    /// # Errors
    /// As [`FolderOptions::splits`].
    pub fn splits(root: impl AsRef<Path>, seed: u64) -> Result<Splits> {
        Self::options().splits(root, seed)
    }

    /// The part of `root` to evaluate on, with default options: test, else valid, else train or the folder itself.
    ///
    /// # Errors
    /// As [`FolderOptions::eval_part`].
    pub fn eval_part(root: impl AsRef<Path>) -> Result<Self> {
        Self::options().eval_part(root)
    }

    /// All image files under a folder, at any depth, sorted by path. Unsupported formats are included; opening one is
    /// an error that names the format. System folders are ignored.
    ///
    /// # Errors
    /// [`Error::Io`] for a folder that cannot be read, and [`Error::NoImages`].
    pub fn find_images(root: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let tree = tree::Folder::read(root.as_ref())?;
        let mut folders = Vec::new();
        tree.all(&mut folders);
        let mut images: Vec<PathBuf> = folders.into_iter().flat_map(tree::Folder::own_images).collect();
        images.sort();
        if images.is_empty() {
            return Err(Error::NoImages { path: root.as_ref().to_path_buf(), expected: decode::FORMATS });
        }
        Ok(images)
    }

    /// Groups samples by a name derived from their path, say the patient or the video: a group is never spread over
    /// training and validation. `None` leaves a sample ungrouped.
    pub fn group_by(mut self, group: impl Fn(&Path) -> Option<String>) -> Self {
        let mut ids: BTreeMap<String, u32> = BTreeMap::new();
        let mut files = self.files.to_vec();
        for file in &mut files {
            file.group = group(&file.path).map(|name| {
                let next = ids.len() as u32;
                *ids.entry(name).or_insert(next)
            });
        }
        self.files = files.into();
        self
    }

    /// Sets the limit on an image's pixels. The default is 178 956 970.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Decodes every file on all cores.
    ///
    /// # Errors
    /// [`Error::UnreadableImages`], which lists all files that cannot be decoded.
    pub fn check(&self) -> Result<()> {
        let files = check::unreadable(&self.files, self.max_pixels);
        if files.is_empty() { Ok(()) } else { Err(Error::UnreadableImages { files }) }
    }

    /// Decodes every file on all cores and skips those that cannot be decoded; [`skipped`](Self::skipped) lists them.
    /// To skip unsupported formats too, or before a part is split off, use [`FolderOptions::skip_broken`].
    ///
    /// # Errors
    /// [`Error::EmptyClass`] for a class without readable images (each label counts), unless the classes come from
    /// [`labels`](Self::labels).
    pub fn skip_broken(self) -> Result<Self> {
        let unreadable = check::unreadable(&self.files, self.max_pixels);
        self.without(unreadable)
    }

    /// As [`skip_broken`](Self::skip_broken), with the unsupported formats that opening found.
    fn without_broken(mut self) -> Result<Self> {
        let mut unreadable = std::mem::take(&mut self.skipped).to_vec();
        unreadable.extend(check::unreadable(&self.files, self.max_pixels));
        unreadable.sort();
        self.without(unreadable)
    }

    /// Skips these files, which are sorted by path.
    fn without(mut self, unreadable: Vec<(PathBuf, String)>) -> Result<Self> {
        let is_out = |file: &File| unreadable.binary_search_by(|(path, _)| path.cmp(&file.path)).is_ok();
        let kept: Vec<File> = self.files.iter().filter(|file| !is_out(file)).cloned().collect();
        let counts = counts(&kept, self.classes.len());
        if let Some(class) = counts.iter().position(|&count| count == 0).filter(|_| self.every_class) {
            return Err(self.empty_class(class));
        }
        if kept.is_empty() {
            return Err(Error::NoImages { path: self.root, expected: decode::FORMATS });
        }
        if let Some((first, problem)) = unreadable.first() {
            let (count, first) = (unreadable.len(), first.display());
            tracing::warn!(count, %first, problem, "images that cannot be read are skipped");
        }
        self.files = kept.into();
        self.skipped = self.skipped.iter().cloned().chain(unreadable).collect();
        Ok(self)
    }

    /// The error for a class without images.
    fn empty_class(&self, class: usize) -> Error {
        let class = self.classes[class].clone();
        let path = self.origin.as_ref().map_or_else(|| self.root.join(&class), |origin| origin.table.clone());
        Error::EmptyClass { class, path }
    }

    /// What describes the images: the table, or the folder that holds the class folders.
    fn described_by(&self) -> &Path {
        self.origin.as_ref().map_or(&self.root, |origin| &origin.table)
    }

    /// The images that were skipped because they cannot be read, each with what is wrong and the remedy.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        &self.skipped
    }

    /// The file of sample `i`.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn path(&self, i: usize) -> &Path {
        &self.files[i].path
    }

    /// The folder that holds the class folders; for a table, the folder of its images.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn only(&self, indices: &[usize]) -> Self {
        Self { files: indices.iter().map(|&i| self.files[i].clone()).collect(), ..self.clone() }
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        let File { path, label, group } = &self.files[i];
        let mut info = SampleInfo::new(i, label.target()).name(path.to_string_lossy());
        info.group = *group;
        info
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        decode::read(&self.files[i].path, self.max_pixels).map(Sample::Image)
    }

    /// Of path, size and modification time.
    fn fingerprint(&self, i: usize) -> Option<u64> {
        let path = &self.files[i].path;
        let file = path.metadata().ok()?;
        let modified = file.modified().ok()?;
        // Clocks can be set before 1970.
        let (sign, distance) = match modified.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => (0, after),
            Err(before) => (1, before.duration()),
        };
        let print = Fingerprint::new("file sample").bytes(path.as_os_str().as_encoded_bytes()).number(file.len());
        Some(print.number(sign).number(distance.as_secs()).number(distance.subsec_nanos().into()).finish())
    }

    fn skipped(&self) -> Option<usize> {
        Some(self.skipped.len())
    }
}

impl std::fmt::Debug for ImageFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (root, classes) = (self.described_by().display(), self.classes.len());
        write!(f, "ImageFolder({root}: {} images of {classes} classes)", self.files.len())
    }
}
