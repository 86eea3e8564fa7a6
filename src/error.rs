//! The one error type: each variant names the thing that is wrong and what to do about it.

mod images;
mod mismatch;
mod text;

#[cfg(feature = "image")]
pub(crate) use images::unsupported;
pub use mismatch::Mismatch;
pub(crate) use text::{distance, nearest, shown, shown_list, tamed, wrapped};

use mismatch::known_archs;
use std::fmt;
use std::path::{Path, PathBuf};
use text::{SHOWN, audit_remedy, because, listed, some};

/// An error of a dependency, kept opaque so that dependencies can change without breaking users.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the name of the thing and the remedy.
///
/// `Debug` prints the same text as `Display`, so that a `main` that returns [`Result`] prints a readable message.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed inside Candle.
    #[error("tensor operation failed: {0}")]
    Candle(#[source] Box<candle_core::Error>),

    /// A file or folder could not be read or written.
    #[error("could not {action} {}: {cause}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },

    /// No architecture has this name.
    #[error("there is no architecture called {name}; {}", known_archs(nearest, families))]
    UnknownArch {
        /// The name asked for.
        name: String,
        /// Known names like it; none where nothing is like it.
        nearest: Vec<String>,
        /// The families of architectures, each with an example.
        families: &'static [&'static str],
    },

    /// No block or stage of the backbone has this name.
    #[error("the backbone has no block, stage or tensor called {name}; known names are {}", some(known))]
    UnknownBlock {
        /// The name asked for.
        name: String,
        /// The names of its stages and blocks; for a tensor, the names most like it.
        known: Vec<String>,
    },

    /// The tensors in a file are not those of the architecture.
    #[error("{0}")]
    WeightsMismatch(Box<Mismatch>),

    /// A fine-tuner was started without a recipe.
    #[error(
        "no strategy or plan is set: choose a strategy, `--strategy` (small-similar, small-different, large-similar or \
         large-different) or a plan"
    )]
    NoStrategy,

    /// The training does not do what the plan says.
    #[error(
        "the audit of phase {phase} failed:{}{}{}{}",
        listed(" no gradient reached", unreached, SHOWN),
        listed(" gradients are not finite", not_finite, SHOWN),
        listed(" frozen but changed", changed, SHOWN),
        audit_remedy(not_finite)
    )]
    Audit {
        /// The phase, from 1.
        phase: usize,
        /// Parameters that should learn and that the backward pass did not reach.
        unreached: Vec<String>,
        /// Parameters whose gradients hold infinities or are not numbers.
        not_finite: Vec<String>,
        /// Tensors that should be frozen and have changed.
        changed: Vec<String>,
    },

    /// The loss became infinite or NaN: in training, or on the validation data after every epoch.
    #[error("the {what} is {loss} at step {step}: lower the learning rate, clip the gradients, or check the images")]
    Diverged {
        /// Which loss: "training loss" or "validation loss".
        what: &'static str,
        /// The optimizer step, from 1.
        step: usize,
        /// The loss.
        loss: f64,
    },

    /// A network computed infinities or NaN where it should compute numbers.
    #[error(
        "{what} are not finite: the weights are damaged or so large that they overflow, or the input is not \
         normalized; check where the weights come from"
    )]
    NotFinite {
        /// What was computed, of what.
        what: String,
    },

    /// The hub did not give what was asked of it.
    #[error("{repository}: {problem}{}", because(cause.as_ref()))]
    Hub {
        /// The repository, with its revision where one was named.
        repository: String,
        /// What kind of failure it is.
        kind: HubError,
        /// What went wrong and what to do.
        problem: String,
        /// What lies behind it, where that is known.
        #[source]
        cause: Option<BoxError>,
    },

    /// A file of weights is damaged, hostile or of a kind that is not read, or weights cannot be written as they are.
    #[error("{}: {problem}{}", path.display(), because(cause.as_ref()))]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the tensor or entry it was found at, and the remedy where there is one.
        problem: String,
        /// What a dependency or the system said, where one was asked.
        #[source]
        cause: Option<BoxError>,
    },

    /// A file was written by a newer version of this crate.
    #[error(
        "{}: {what} in format {found}, which a newer version of candle-finetune wrote; this version reads formats up to \
         {known}: update the crate",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: &'static str,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },

    /// A setting has a value that cannot work.
    #[error("{what}: {problem}")]
    Invalid {
        /// The setting or argument.
        what: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },

    /// An image could not be decoded: its file is damaged, or is something else.
    #[error(
        "broken image {image}: {cause}; replace or remove it, or skip such images (`skip_broken`, `--skip-broken`)"
    )]
    BrokenImage {
        /// The file, or where else the image came from.
        image: String,
        /// What the decoder said, or what the file is.
        #[source]
        cause: BoxError,
    },

    /// An image is of a kind that is not read, whether or not it is intact.
    #[error("image {image}: {}", images::unsupported(found))]
    UnsupportedImage {
        /// The file, or where else the image came from.
        image: String,
        /// What it is, say "a HEIC image" or "a TIFF with palette colours".
        found: String,
    },

    /// Images that cannot be read, broken or of kinds that are not supported: everything a check found, at once.
    #[error("{}", images::unreadable(files))]
    UnreadableImages {
        /// Each file with what is wrong with it and the remedy.
        files: Vec<(PathBuf, String)>,
    },

    /// Images lie where they belong to no class.
    #[error(
        "{} directly in {}, {problem}: {}",
        images::counted(images.len()), folder.display(), some(images.iter().map(|image| image.display()))
    )]
    StrayImages {
        /// The folder.
        folder: PathBuf,
        /// The images.
        images: Vec<PathBuf>,
        /// What is expected there and what to do.
        problem: String,
    },

    /// The names of folders allow two readings.
    #[error(
        "the folders in {} can mean two things: {parts}; or {classes}. \
         Choose with `layout` for this folder (`--layout parts` or `--layout classes`)",
        path.display()
    )]
    AmbiguousLayout {
        /// The folder that holds them.
        path: PathBuf,
        /// The reading by `FolderLayout::Parts`.
        parts: String,
        /// The reading by `FolderLayout::Classes`.
        classes: String,
    },

    /// An image has more pixels than the limit allows.
    #[error(
        "image {image} is {width} x {height} pixels, more than the limit of {limit} pixels; \
         shrink it or raise the limit (`max_pixels`, `--max-pixels`)"
    )]
    ImageTooLarge {
        /// The file, or where else the image came from.
        image: String,
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// The limit on width x height.
        limit: u64,
    },

    /// A folder holds no images where images were expected.
    #[error("no images under {}: expected one folder per class, each with {expected} files", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// The kinds of files that count.
        expected: &'static str,
    },

    /// A class has no samples.
    #[error("class {class:?} has no images that can be read in {}; add some or remove the folder", path.display())]
    EmptyClass {
        /// The class.
        class: String,
        /// Its folder.
        path: PathBuf,
    },

    /// Class folders whose names are not among the known classes.
    #[error(
        "{} has classes that are not known: {}; known are {}; rename or remove the folders",
        path.display(), images::unknown_classes(unknown, known), some(known.iter().map(|name| shown(name)))
    )]
    UnknownClasses {
        /// The folder that holds the class folders.
        path: PathBuf,
        /// The classes that are not known.
        unknown: Vec<String>,
        /// The known classes.
        known: Vec<String>,
    },

    /// Files among the images that are no images, judged by their extension.
    #[error(
        "{} files have an extension that is neither an image's nor known to be harmless: {}; remove or rename them",
        files.len(), some(files.iter().map(|file| file.display()))
    )]
    UnknownFiles {
        /// The files.
        files: Vec<PathBuf>,
    },

    /// A label is not below the number of classes.
    #[error("{sample} has label {label}, but there are {classes} classes (labels count from 0)")]
    LabelOutOfRange {
        /// The sample or folder.
        sample: String,
        /// Its label.
        label: u64,
        /// The number of classes.
        classes: usize,
    },

    /// A sample or its target cannot be used.
    #[error("{sample}: {problem}")]
    BadSample {
        /// The sample: its file, or its index.
        sample: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },

    /// The code of a dataset panicked while it made a sample.
    #[error("the dataset panicked at {sample}: {message}")]
    DatasetPanicked {
        /// The sample: its file, or its index.
        sample: String,
        /// The panic's message.
        message: String,
    },
}

/// The kinds of [`Error::Hub`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubError {
    /// The hub cannot be reached, or must not be, and the cache has not what is needed.
    Offline,
    /// There is no such repository, revision or file, as far as this user may know.
    NotFound,
    /// Permission denied.
    Denied,
    /// The hub is too busy, or broken, and went on being so.
    Busy,
    /// Downloaded data failed verification twice.
    Damaged,
    /// The hub's answer, or what was asked of it, makes no sense.
    Refused,
}

impl Error {
    /// Whether it failed for want of a network: with one, the same call may succeed.
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::Hub { kind: HubError::Offline, .. })
    }

    /// An [`Error::Io`] that keeps the path.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Self::Io { action, path, cause }
    }

    /// An [`Error::Weights`] without a further cause.
    pub(crate) fn weights(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), problem: problem.into(), cause: None }
    }

    /// An [`Error::Weights`] that keeps what a dependency said.
    pub(crate) fn weights_from(path: impl AsRef<Path>, problem: impl Into<String>, cause: impl Into<BoxError>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), problem: problem.into(), cause: Some(quiet(cause.into())) }
    }

    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), problem: problem.into() }
    }

    /// An [`Error::BadSample`].
    pub(crate) fn bad_sample(sample: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::BadSample { sample: sample.into(), problem: problem.into() }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Box::new(without_backtrace(error)))
    }
}

/// Candle puts a backtrace into the message where `RUST_BACKTRACE` is set, pages of it.
fn without_backtrace(error: candle_core::Error) -> candle_core::Error {
    use candle_core::Error::{Context, WithBacktrace, WithPath};
    match error {
        WithBacktrace { inner, .. } => without_backtrace(*inner),
        Context { inner, context } => Context { inner: Box::new(without_backtrace(*inner)), context },
        WithPath { inner, path } => WithPath { inner: Box::new(without_backtrace(*inner)), path },
        other => other,
    }
}

/// A cause of any kind, without Candle's backtrace.
fn quiet(cause: BoxError) -> BoxError {
    match cause.downcast::<candle_core::Error>() {
        Ok(error) => Box::new(without_backtrace(*error)),
        Err(other) => other,
    }
}

#[cfg(test)]
mod tests;
