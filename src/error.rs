//! The crate's one error type. Each variant names what is wrong and how to fix it.

mod candle;
mod divergence;
mod hub;
mod images;
mod mismatch;
mod text;

pub use divergence::Divergence;
pub use hub::HubErrorKind;
#[cfg(feature = "image")]
pub(crate) use images::unsupported;
pub use mismatch::WeightsMismatch;
pub(crate) use text::{by_name, distance, nearest, shown, shown_list, tamed, wrapped};

use candle::quiet;
use mismatch::known_archs;
use std::fmt;
use std::path::{Path, PathBuf};
use text::{SHOWN, because, listed, some};

/// An error of a dependency, opaque so that dependencies can change without breaking users.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The result of this crate's functions that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the name of the faulty thing and the remedy.
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
        /// The operation that failed, as a verb: "read", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        cause: std::io::Error,
    },

    /// No architecture has this name.
    #[error("unknown architecture {name}; {}", known_archs(nearest, families))]
    UnknownArch {
        /// The unknown name.
        name: String,
        /// Similar names that are known; empty if there are none.
        nearest: Vec<String>,
        /// The families of architectures, each with an example.
        families: &'static [&'static str],
    },

    /// No block or stage of the backbone has this name.
    #[error("the backbone has no block, stage or tensor {name}; use one of {}", some(known))]
    UnknownBlock {
        /// The unknown name.
        name: String,
        /// The names of the backbone's stages and blocks; for a tensor, the most similar names.
        known: Vec<String>,
    },

    /// The tensors in a file are not those of the architecture.
    #[error("{0}")]
    WeightsMismatch(Box<WeightsMismatch>),

    /// The audit found that training does not follow the plan.
    #[error(
        "the audit of phase {phase} failed:{}{} every trainable parameter must contribute to the loss, and nothing may \
         write to a backbone's tensors",
        listed(" no gradient reached", unreached, SHOWN),
        listed(" frozen but changed", changed, SHOWN)
    )]
    Audit {
        /// The phase, from 1.
        phase: usize,
        /// Learning parameters that the backward pass did not reach.
        unreached: Vec<String>,
        /// Frozen tensors that changed.
        changed: Vec<String>,
    },

    /// The loss or gradients became infinite or NaN, in training or on the validation data.
    #[error("{0}")]
    Diverged(Box<Divergence>),

    /// A network computed infinities or NaNs.
    #[error(
        "{what} are not finite: the weights are damaged or so large that they overflow, or the input is not \
         normalized; check where the weights come from"
    )]
    NotFinite {
        /// The values that are not finite, and what they were computed from.
        what: String,
    },

    /// A request to the hub failed.
    #[error("{repository}: {problem}{}", because(cause.as_ref()))]
    Hub {
        /// The repository, with its revision if one was given.
        repository: String,
        /// The kind of failure.
        kind: HubErrorKind,
        /// The problem, and the remedy.
        problem: String,
        /// The underlying error, if known.
        #[source]
        cause: Option<BoxError>,
    },

    /// A weights file is damaged, malicious or of an unsupported format, or weights cannot be written as they are.
    #[error("{}: {problem}{}", path.display(), because(cause.as_ref()))]
    Weights {
        /// The file.
        path: PathBuf,
        /// The problem, with the name of the tensor or entry, and the remedy if there is one.
        problem: String,
        /// The error of a dependency or the operating system, if one caused it.
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
        /// Its content.
        what: &'static str,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        known: u32,
    },

    /// Another run uses a run directory.
    #[error(
        "{} is in use by another run{}; wait until it has ended, or name another folder", path.display(),
        process.map_or(String::new(), |id| format!(" (process {id})"))
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The id of the other process, if it is known.
        process: Option<u32>,
    },

    /// A training was cancelled ([`Cancel`](crate::Cancel)) that has no result until it has ended.
    #[error("{what} was cancelled after {steps} steps of its training in progress")]
    Cancelled {
        /// What was cancelled.
        what: &'static str,
        /// Steps that the training in progress had made.
        steps: usize,
    },

    /// No strategy fits the limits that the advisor was given.
    #[error("no strategy fits: {}; raise it, or take fewer or smaller images or a smaller network", needs.join(", and "))]
    NoStrategyFits {
        /// What the least demanding strategies need, and the limits that this exceeds, as sentences.
        needs: Vec<String>,
        /// The fewest minutes that a strategy takes, if known.
        minutes: Option<f64>,
        /// The least memory that a strategy takes, in bytes, if known.
        memory: Option<usize>,
    },

    /// A plan asks a network for something that it cannot do.
    #[error("{network} cannot {what}: {why}")]
    Unsupported {
        /// The name of the network.
        network: String,
        /// The unsupported action.
        what: &'static str,
        /// Why, and the remedy.
        why: String,
    },

    /// A setting or argument has an invalid value.
    #[error("{what}: {problem}")]
    Invalid {
        /// The setting or argument.
        what: String,
        /// The problem, and the valid values.
        problem: String,
    },

    /// An image could not be decoded: its file is damaged, or is no image.
    #[error(
        "broken image {image}: {cause}; replace or remove it, or skip such images (`skip_broken`, `--skip-broken`)"
    )]
    BrokenImage {
        /// The file, or another source of the image.
        image: String,
        /// The decoder's error, or what the file is.
        #[source]
        cause: BoxError,
    },

    /// An image has an unsupported format, intact or not.
    #[error("image {image}: {}", images::unsupported(found))]
    UnsupportedImage {
        /// The file, or another source of the image.
        image: String,
        /// The format, for example "a HEIC image" or "a TIFF with palette colours".
        found: String,
    },

    /// All images that a check could not read: broken, or of unsupported formats.
    #[error("{}", images::unreadable(files))]
    UnreadableImages {
        /// Each file with its problem and the remedy.
        files: Vec<(PathBuf, String)>,
    },

    /// Images lie in a folder that belongs to no class.
    #[error(
        "{} directly in {}, {problem}: {}",
        images::counted(images.len()), folder.display(), some(images.iter().map(|image| image.display()))
    )]
    StrayImages {
        /// The folder.
        folder: PathBuf,
        /// The images.
        images: Vec<PathBuf>,
        /// The expected content of the folder, and the remedy.
        problem: String,
    },

    /// The names of folders are ambiguous.
    #[error(
        "the folders in {} can mean two things: {parts}; or {classes}. \
         Choose with `layout` for this folder (`--layout parts` or `--layout classes`)",
        path.display()
    )]
    AmbiguousLayout {
        /// The folder that holds them.
        path: PathBuf,
        /// Their meaning under `FolderLayout::Parts`.
        parts: String,
        /// Their meaning under `FolderLayout::Classes`.
        classes: String,
    },

    /// An image has more pixels than the limit allows.
    #[error(
        "image {image} is {width} x {height} pixels, more than the limit of {limit} pixels; \
         downscale it or raise the limit (`max_pixels`, `--max-pixels`)"
    )]
    ImageTooLarge {
        /// The file, or another source of the image.
        image: String,
        /// Width in pixels.
        width: u64,
        /// Height in pixels.
        height: u64,
        /// The limit on width x height.
        limit: u64,
    },

    /// A folder that should hold images holds none.
    #[error("no images under {}: expected one folder per class, each with {expected} files", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// The kinds of files that are read.
        expected: &'static str,
    },

    /// A class has no samples.
    #[error("class {class:?} has no images that can be read in {}; add some or remove the class", path.display())]
    EmptyClass {
        /// The class.
        class: String,
        /// Its folder, or the table that names it.
        path: PathBuf,
    },

    /// Classes have names that are not among the known classes.
    #[error(
        "{} has unknown classes: {}; the known classes are {}; rename or remove them",
        path.display(), images::unknown_classes(unknown, known), some(known.iter().map(|name| shown(name)))
    )]
    UnknownClasses {
        /// The folder that holds the class folders, or the table.
        path: PathBuf,
        /// The unknown classes.
        unknown: Vec<String>,
        /// The known classes.
        known: Vec<String>,
    },

    /// Files among the images are no images, judging by their extensions.
    #[error(
        "{} files are not images, judging by their extensions: {}; remove or rename them",
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
        /// The problem, and the valid values.
        problem: String,
    },

    /// A dataset panicked while it made a sample.
    #[error("the dataset panicked at {sample}: {message}")]
    DatasetPanicked {
        /// The sample: its file, or its index.
        sample: String,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    /// Whether the call failed because there is no network. With one, it may succeed.
    pub fn is_offline(&self) -> bool {
        matches!(self, Self::Hub { kind: HubErrorKind::Offline, .. })
    }

    /// An [`Error::Io`] with the path.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |cause| Self::Io { action, path, cause }
    }

    /// An [`Error::Weights`] without a cause.
    pub(crate) fn weights(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), problem: problem.into(), cause: None }
    }

    /// An [`Error::Weights`] with the error of a dependency as its cause.
    pub(crate) fn weights_from(path: impl AsRef<Path>, problem: impl Into<String>, cause: impl Into<BoxError>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), problem: problem.into(), cause: Some(quiet(cause.into())) }
    }

    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), problem: problem.into() }
    }

    /// An [`Error::Unsupported`].
    pub(crate) fn unsupported(network: impl Into<String>, what: &'static str, why: impl Into<String>) -> Self {
        Self::Unsupported { network: network.into(), what, why: why.into() }
    }

    /// An [`Error::Diverged`].
    pub(crate) fn diverged(divergence: Divergence) -> Self {
        Self::Diverged(Box::new(divergence))
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

#[cfg(test)]
mod tests;
