//! Options for opening a folder of images.

use super::ImageFolder;
use super::classes::{self, Accept};
use super::file::{File, Label};
use super::layout::{self, FolderLayout, Parts, Tree};
use super::splits::{self, Splits};
use super::tree::Folder;
use crate::data::Dataset;
use crate::data::decode::MAX_PIXELS;
use crate::{Error, Result};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Options for opening an [`ImageFolder`], like [`std::fs::OpenOptions`].
///
/// ```no_run
/// use candle_finetune::{FolderLayout, ImageFolder};
///
/// let patient = |path: &std::path::Path| Some(path.file_name()?.to_str()?.split('_').next()?.to_string());
/// let options = ImageFolder::options().layout(FolderLayout::Classes).skip_broken(true).group_by(patient);
/// let splits = options.splits("scans", 42)?;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct FolderOptions {
    layout: Option<FolderLayout>,
    max_pixels: Option<u64>,
    skip_broken: bool,
    group: Option<Arc<Group>>,
}

type Group = dyn Fn(&Path) -> Option<String> + Send + Sync;

impl FolderOptions {
    /// Sets the meaning of the folders under the root, instead of deciding by their names ([`ImageFolder`] has the
    /// rule).
    ///
    /// With [`FolderLayout::Classes`] each is a class, whatever its name. With [`FolderLayout::Parts`] those with a
    /// part's name are parts; the others are ignored with a warning in the log, and [`Splits::ignored`] lists them.
    pub fn layout(mut self, layout: FolderLayout) -> Self {
        self.layout = Some(layout);
        self
    }

    /// Sets the limit on an image's pixels. The default is 178 956 970.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = Some(pixels);
        self
    }

    /// Sets whether images that cannot be read are skipped (no by default): broken images and unsupported formats.
    /// Opening then decodes all images, and [`ImageFolder::skipped`] lists the skipped ones. They are removed before
    /// valid is split off train. Afterwards a class may be missing in valid and test, but not in train.
    pub fn skip_broken(mut self, skip: bool) -> Self {
        self.skip_broken = skip;
        self
    }

    /// Puts samples into groups, as [`ImageFolder::group_by`] does: a valid that is split off train shares no group
    /// with it.
    pub fn group_by(mut self, group: impl Fn(&Path) -> Option<String> + Send + Sync + 'static) -> Self {
        self.group = Some(Arc::new(group));
        self
    }

    /// Opens `root/CLASS/*`, or `root/train/CLASS/*` where `root` has parts.
    ///
    /// # Errors
    /// [`ImageFolder`] explains the layout errors. Also [`Error::Io`] for folders that cannot be read,
    /// [`Error::NoImages`], and [`Error::Invalid`] if there are parts but no train.
    pub fn open(&self, root: impl AsRef<Path>) -> Result<ImageFolder> {
        let tree = Folder::read(root.as_ref())?;
        let folder = match layout::read(&tree, self.layout)? {
            Tree::Classes(folder) => folder,
            Tree::Parts(parts) => {
                warn_of(&parts.ignored);
                train(root.as_ref(), &parts)?
            }
        };
        self.part(folder, Accept::Trained)
    }

    /// Opens all parts of `root`. If there is no valid, or `root` has no parts, 15 % of each class of train become
    /// valid, chosen by the seed. Train defines the classes; valid and test may lack some.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::UnknownClasses`] for a class that train lacks.
    pub fn splits(&self, root: impl AsRef<Path>, seed: u64) -> Result<Splits> {
        let tree = Folder::read(root.as_ref())?;
        let parts = match layout::read(&tree, self.layout)? {
            Tree::Classes(folder) => Parts { train: Some(folder), ..Parts::default() },
            Tree::Parts(parts) => parts,
        };
        warn_of(&parts.ignored);
        let train = self.part(train(root.as_ref(), &parts)?, Accept::Trained)?;
        let other =
            |folder: &Folder| self.read(folder, Accept::Named)?.labels(train.classes()).and_then(|part| self.end(part));
        let valid = parts.valid.map(other).transpose()?;
        let test = parts.test.map(other).transpose()?;
        let ignored = parts.ignored.iter().map(|folder| folder.path.clone()).collect();
        splits::join(train, valid, test, (ignored, 0, 0), seed)
    }

    /// Opens the part of `root` to evaluate on: test, else valid, else train, or `root` itself if it has no parts.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn eval_part(&self, root: impl AsRef<Path>) -> Result<ImageFolder> {
        let tree = Folder::read(root.as_ref())?;
        let folder = match layout::read(&tree, self.layout)? {
            Tree::Classes(folder) => folder,
            Tree::Parts(parts) => {
                warn_of(&parts.ignored);
                parts.test.or(parts.valid).or(parts.train).unwrap_or(&tree)
            }
        };
        let part = self.read(folder, Accept::Named)?;
        self.end(ImageFolder { every_class: false, ..part })
    }

    fn part(&self, folder: &Folder, accept: Accept) -> Result<ImageFolder> {
        self.end(self.read(folder, accept)?)
    }

    /// The images of a folder whose folders are the classes. Unsupported formats are skipped here, or an error.
    fn read(&self, folder: &Folder, accept: Accept) -> Result<ImageFolder> {
        let accept = if self.layout == Some(FolderLayout::Classes) { Accept::Any } else { accept };
        let classes::Classes { classes, mut unread } = classes::read(folder, accept)?;
        unread.sort();
        if !self.skip_broken && !unread.is_empty() {
            return Err(Error::UnreadableImages { files: unread });
        }
        let (mut names, mut files) = (Vec::with_capacity(classes.len()), Vec::new());
        for (class, id) in classes.into_iter().zip(0..) {
            names.push(class.name);
            files.extend(class.images.into_iter().map(|path| File { path, label: Label::Class(id), group: None }));
        }
        Ok(ImageFolder {
            root: folder.path.clone(),
            origin: None,
            classes: names.into(),
            files: files.into(),
            skipped: unread.into(),
            max_pixels: self.max_pixels.unwrap_or(MAX_PIXELS),
            every_class: true,
        })
    }

    /// Skips broken images and makes groups, once it is known which classes must have images.
    fn end(&self, part: ImageFolder) -> Result<ImageFolder> {
        let part = if self.skip_broken { part.without_broken()? } else { part };
        Ok(match &self.group {
            Some(group) => part.group_by(|path| group(path)),
            None => part,
        })
    }
}

fn train<'a>(root: &Path, parts: &Parts<'a>) -> Result<&'a Folder> {
    let others: Vec<String> =
        [parts.valid, parts.test].into_iter().flatten().map(|f| f.path.display().to_string()).collect();
    parts.train.ok_or_else(|| {
        let problem = format!("there is no folder train; to open another part, give its path: {}", others.join(" or "));
        Error::invalid(root.display().to_string(), problem)
    })
}

fn warn_of(ignored: &[&Folder]) {
    for folder in ignored {
        tracing::warn!(folder = %folder.path.display(), "is not a part of the data set and is ignored");
    }
}

impl fmt::Debug for FolderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FolderOptions")
            .field("layout", &self.layout)
            .field("max_pixels", &self.max_pixels)
            .field("skip_broken", &self.skip_broken)
            .field("group_by", &self.group.is_some())
            .finish()
    }
}
