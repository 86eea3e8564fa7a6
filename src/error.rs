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

    /// No architecture has this name.
    #[error("there is no architecture called {name}; the nearest names are {}", nearest.join(", "))]
    UnknownArch {
        /// The name asked for.
        name: String,
        /// Known names like it.
        nearest: Vec<String>,
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

    /// An [`Error::Invalid`].
    pub(crate) fn invalid(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), problem: problem.into() }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(Box::new(error))
    }
}
