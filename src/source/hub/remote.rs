//! A repository of the hub with the user's options for reaching it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The progress of one file's download.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubDownload {
    /// The file's name in its repository.
    pub file: String,
    /// Bytes received, including those of an earlier attempt.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

impl fmt::Display for HubDownload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.done.saturating_mul(100).checked_div(self.total).unwrap_or(100);
        write!(f, "{}: {:.1} of {:.1} MB ({percent} %)", self.file, self.done as f64 / 1e6, self.total as f64 / 1e6)
    }
}

pub(super) type Listener = Arc<dyn Fn(&HubDownload) + Send + Sync>;

/// A repository and the user's options for reaching it. `None`: from the environment.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(super) id: String,
    pub revision: Option<String>,
    pub cache: Option<PathBuf>,
    pub token: Option<String>,
    pub endpoint: Option<String>,
    pub offline: bool,
    pub listener: Option<Listener>,
}

impl Remote {
    pub fn new(id: String) -> Self {
        Self { id, revision: None, cache: None, token: None, endpoint: None, offline: false, listener: None }
    }
}

impl fmt::Debug for Remote {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, revision, cache, endpoint, offline, .. } = self;
        write!(f, "Remote({id}, revision {revision:?}, cache {cache:?}, endpoint {endpoint:?}, offline {offline})")
    }
}
