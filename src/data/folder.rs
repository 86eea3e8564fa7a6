//! Images in folders, one folder per class.

mod check;
mod scan;

use super::decode::{self, MAX_PIXELS};
use super::memory::check_classes;
use super::split::split_indices;
use super::{Dataset, Sample, Target, hash};
use crate::{Error, Result};
use scan::Layout;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The part of the training images that validates where no images are set apart for it.
const VALID_FRACTION: f64 = 0.15;

/// Images in folders, one folder per class: `ROOT/CLASS/*`, or `ROOT/train/CLASS/*` with `valid` (or `val`) and
/// `test` beside `train`.
///
/// The classes are the folders' names in sorted order. Images may lie deeper within a class. Hidden files and a few
/// kinds of files that often lie about (text, tables, `Thumbs.db`) are ignored; other files that are no images are an
/// error. Opening reads names only; [`check`](Self::check) decodes all. A clone is cheap.
///
/// ```no_run
/// use candle_finetune::ImageFolder;
///
/// let splits = ImageFolder::splits("data", 42)?;
/// splits.train.check()?; // optional: names every broken file at once
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct ImageFolder {
    root: PathBuf,
    classes: Arc<[String]>,
    files: Arc<[File]>,
    skipped: Arc<[PathBuf]>,
    max_pixels: u64,
}

/// An image file.
#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    class: u32,
    group: Option<u32>,
}

/// The parts of an image folder, over the same classes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Splits {
    /// What is trained on.
    pub train: ImageFolder,
    /// What decides when to stop and what to choose.
    pub valid: ImageFolder,
    /// What is looked at once, for the final figure.
    pub test: Option<ImageFolder>,
}

impl ImageFolder {
    /// The images of `root/CLASS/*`, or of `root/train/CLASS/*` where there is such a folder. Beside train, valid and
    /// test no other folder may hold images: they would be left out.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        match scan::layout(root)? {
            Layout::Classes => Self::read(root),
            Layout::Splits { train: Some(train), .. } => Self::read(&train),
            Layout::Splits { valid, test, .. } => {
                let other = valid.or(test).unwrap_or_default();
                Err(Error::invalid(
                    format!("{}", root.display()),
                    format!("there is no folder train; to open another part, name it: {}", other.display()),
                ))
            }
        }
    }

    /// All parts of `root`: train, valid (or val) and test. Where there is no valid, 15 % of each class of train are
    /// cut off, chosen by the seed. Train decides the classes; a class that only another part has is an error.
    pub fn splits(root: impl AsRef<Path>, seed: u64) -> Result<Splits> {
        Self::splits_by(root, seed, |_| None)
    }

    /// As [`ImageFolder::splits`], with samples put into groups as by [`ImageFolder::group_by`]: what is cut off train
    /// shares no group with what stays.
    pub fn splits_by(root: impl AsRef<Path>, seed: u64, group: impl Fn(&Path) -> Option<String>) -> Result<Splits> {
        let train = Self::open(root.as_ref())?.group_by(group);
        let (valid, test) = match scan::layout(root.as_ref())? {
            Layout::Splits { valid, test, .. } => (valid, test),
            Layout::Classes => (None, None),
        };
        let part = |path: PathBuf| Self::read(&path)?.labels(&train.classes);
        let test = test.map(part).transpose()?;
        if let Some(valid) = valid {
            return Ok(Splits { valid: part(valid)?, train, test });
        }
        let (kept, cut) = split_indices(&train, VALID_FRACTION, seed)?;
        Ok(Splits { valid: train.only(&cut), train: train.only(&kept), test })
    }

    /// The part of `root` to evaluate on: test, else valid (or val), else train or the folder itself.
    pub fn eval_part(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        match scan::layout(root)? {
            Layout::Classes => Self::read(root),
            Layout::Splits { train, valid, test } => Self::read(&test.or(valid).or(train).unwrap_or_default()),
        }
    }

    fn read(root: &Path) -> Result<Self> {
        let folders = scan::class_folders(root)?;
        let mut classes = Vec::with_capacity(folders.len());
        let mut files = Vec::new();
        for (class, (name, paths)) in folders.into_iter().enumerate() {
            classes.push(name);
            files.extend(paths.into_iter().map(|path| File { path, class: class as u32, group: None }));
        }
        check_classes(&classes)?;
        Ok(Self {
            root: root.to_path_buf(),
            classes: classes.into(),
            files: files.into(),
            skipped: Arc::new([]),
            max_pixels: MAX_PIXELS,
        })
    }

    /// Maps the folders' names onto this list of labels, say those of a saved predictor. The classes are this list
    /// then, whether or not each has images; a folder that is not in it is an error.
    pub fn labels(self, labels: &[String]) -> Result<Self> {
        check_classes(labels)?;
        let ids: BTreeMap<&String, u32> = labels.iter().zip(0..).collect();
        let unknown: Vec<String> = self.classes.iter().filter(|name| !ids.contains_key(name)).cloned().collect();
        if !unknown.is_empty() {
            return Err(Error::UnknownClasses { path: self.root, unknown, known: labels.to_vec() });
        }
        let ids: Vec<u32> = self.classes.iter().filter_map(|name| ids.get(name).copied()).collect();
        Ok(self.renumbered(&ids, labels.to_vec()))
    }

    /// Takes the class ids from the digits that the folders' names start with, alone (`180`) or before an underscore
    /// (`0180_n02093428`), to evaluate a network on classes it already knows. The classes are the network's `labels`
    /// then.
    pub fn class_indices(self, labels: &[String]) -> Result<Self> {
        let mut seen: BTreeMap<usize, &String> = BTreeMap::new();
        let mut ids = Vec::with_capacity(self.classes.len());
        for name in self.classes.iter() {
            let digits = name.split('_').next().unwrap_or_default();
            let folder = || format!("folder {name:?} of {}", self.root.display());
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

    /// Puts samples into groups by a name made of their path, say the patient or the video: one group never is in both
    /// training and validation. `None` leaves a sample on its own.
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

    /// Sets the most pixels an image may have. The default is 178 956 970.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Decodes every file on all cores, and names all that are broken at once ([`Error::BrokenImages`]).
    pub fn check(&self) -> Result<()> {
        let files = check::broken(&self.files, self.max_pixels);
        if files.is_empty() { Ok(()) } else { Err(Error::BrokenImages { files }) }
    }

    /// Decodes every file on all cores and leaves out those that are broken; [`skipped`](Self::skipped) names them. A
    /// class of which nothing is left is an error.
    pub fn skip_broken(mut self) -> Result<Self> {
        let broken = check::broken(&self.files, self.max_pixels);
        if broken.is_empty() {
            return Ok(self);
        }
        let broken: Vec<PathBuf> = broken.into_iter().map(|(path, _)| path).collect();
        let (skipped, kept): (Vec<File>, Vec<File>) =
            self.files.iter().cloned().partition(|file| broken.binary_search(&file.path).is_ok());
        if let Some(file) = skipped.iter().find(|file| !kept.iter().any(|other| other.class == file.class)) {
            let class = self.classes[file.class as usize].clone();
            return Err(Error::EmptyClass { class, path: file.path.parent().unwrap_or(&self.root).to_path_buf() });
        }
        self.files = kept.into();
        self.skipped = self.skipped.iter().cloned().chain(broken).collect();
        Ok(self)
    }

    /// The files that were left out because they are broken.
    pub fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }

    /// The file of sample `i`.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn path(&self, i: usize) -> &Path {
        &self.files[i].path
    }

    /// The folder that holds the class folders.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn renumbered(mut self, ids: &[u32], classes: Vec<String>) -> Self {
        let mut files = self.files.to_vec();
        for file in &mut files {
            file.class = ids[file.class as usize];
        }
        self.files = files.into();
        self.classes = classes.into();
        self
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

    fn target(&self, i: usize) -> Target {
        Target::Class(self.files[i].class)
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        decode::read(&self.files[i].path, self.max_pixels).map(Sample::Image)
    }

    fn group(&self, i: usize) -> Option<u32> {
        self.files[i].group
    }

    fn name(&self, i: usize) -> String {
        self.files[i].path.display().to_string()
    }

    /// Of path, size and time of change.
    fn fingerprint(&self, i: usize) -> Option<u64> {
        let path = &self.files[i].path;
        let file = path.metadata().ok()?;
        Some(hash(&(path, file.len(), file.modified().ok()?)))
    }

    fn skipped(&self) -> usize {
        self.skipped.len()
    }
}

impl std::fmt::Debug for ImageFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (root, classes) = (self.root.display(), self.classes.len());
        write!(f, "ImageFolder({root}: {} images of {classes} classes)", self.files.len())
    }
}
