//! The one error type: each variant names the thing that is wrong and what to do about it.

use std::path::{Path, PathBuf};

/// An error of a dependency, kept opaque so that dependencies can change without breaking users.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the name of the thing and the remedy.
#[derive(Debug, thiserror::Error)]
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

    /// A setting has a value that cannot work.
    #[error("{what}: {problem}")]
    Invalid {
        /// The setting or argument.
        what: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
}

impl Error {
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
        Self::Weights { path: path.as_ref().to_path_buf(), problem: problem.into(), cause: Some(cause.into()) }
    }

    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), problem: problem.into() }
    }
}

/// The tail of a message that has a cause.
fn because(cause: Option<&BoxError>) -> String {
    cause.map_or_else(String::new, |cause| format!(": {cause}"))
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Box::new(error))
    }
}
