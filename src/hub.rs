//! The Hugging Face hub: repositories fetched into the cache that Python's libraries share, every file verified before
//! it is used.

mod ask;
mod cache;
mod checksum;
mod failure;
mod fetch;
mod push;
mod settings;
mod transfer;

#[cfg(test)]
mod tests;

use crate::arch::Arch;
use crate::backbone::Snapshot;
use crate::error::{BoxError, Error, HubError, Result};
use fetch::Fetcher;
pub use push::HubUpload;
use settings::Settings;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// How far the download of one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubDownload {
    /// The file's name in its repository.
    pub file: String,
    /// Bytes that are here, those of an earlier attempt included.
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

pub(crate) type Listener = Arc<dyn Fn(&HubDownload) + Send + Sync>;

/// A repository with what the user said about reaching it.
#[derive(Clone)]
pub(crate) struct Remote {
    id: String,
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

    /// Fetches what is needed of the repository and says what it is. `spec`: whether it must say how images are prepared.
    pub fn fetch(&self, arch: Option<Arch>, spec: bool) -> Result<Snapshot> {
        let settings = Settings::resolve(self, |name| std::env::var(name).ok())?;
        self.fetch_with(settings, arch, spec)
    }

    fn fetch_with(&self, settings: Settings, arch: Option<Arch>, spec: bool) -> Result<Snapshot> {
        let repository = Repository::parse(&self.id, self.revision.as_deref())?;
        let listener = self.listener.clone();
        apart(move |runtime| {
            let place = PathBuf::from(repository.to_string());
            let mut fetcher = Fetcher::new(settings, repository, listener)?;
            let found = Snapshot::gather(&place, arch, spec, &mut |name| runtime.block_on(fetcher.get(name)));
            let found = fetcher.judged(found)?;
            Ok(Snapshot { repository: Some(fetcher.id()), ..found })
        })
    }
}

impl fmt::Debug for Remote {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, revision, cache, endpoint, offline, .. } = self;
        write!(f, "Remote({id}, revision {revision:?}, cache {cache:?}, endpoint {endpoint:?}, offline {offline})")
    }
}

/// Runs `work` with a runtime on a thread of its own, so that it may be called from within a runtime too.
fn apart<T: Send>(work: impl FnOnce(&tokio::runtime::Runtime) -> Result<T> + Send) -> Result<T> {
    let on_thread = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        work(&runtime.map_err(Error::io("start a runtime for", "the hub"))?)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("hub".into()).spawn_scoped(scope, on_thread);
        let thread = thread.map_err(Error::io("start a thread for", "the hub"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `owner/name` at a revision, each part fit to be part of a path and of a URL.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub owner: String,
    pub name: String,
    pub revision: String,
}

impl Repository {
    /// `id` may carry the revision behind an @.
    pub fn parse(id: &str, revision: Option<&str>) -> Result<Self> {
        let wrong = |problem: String| Error::Hub {
            repository: id.chars().take(200).collect(),
            kind: HubError::Refused,
            problem,
            cause: None,
        };
        let plain = id.strip_prefix("hf-hub:").unwrap_or(id);
        let (path, behind) = match plain.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (plain, None),
        };
        let Some((owner, name)) = path.split_once('/') else {
            return Err(wrong("is no repository of the hub; name it as owner/name, or owner/name@revision".into()));
        };
        for part in [owner, name] {
            let letters = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            // Two dashes are what the cache puts between owner and name.
            let doubled = part.contains("..") || part.contains("--") || part.ends_with(".git");
            let edge = part.starts_with(['.', '-']) || part.ends_with(['.', '-']);
            if !letters || part.is_empty() || part.len() > 96 || doubled || edge {
                return Err(wrong(format!(
                    "{part:?} is no name that the hub knows: letters, digits, single - _ and . within are"
                )));
            }
        }
        let revision = match (behind, revision) {
            (Some(a), Some(b)) if a != b => return Err(wrong(format!("names {a:?}, and Source::revision {b:?}"))),
            (a, b) => a.or(b).unwrap_or("main"),
        };
        if !is_revision(revision) {
            return Err(wrong(format!("{revision:?} is no revision: a branch, a tag, or a commit's 40 digits")));
        }
        let revision = if is_commit(revision) { revision.to_ascii_lowercase() } else { revision.into() };
        Ok(Self { owner: owner.into(), name: name.into(), revision })
    }

    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The commit, if the revision is one.
    pub fn commit(&self) -> Option<String> {
        is_commit(&self.revision).then(|| self.revision.clone())
    }

    pub fn error(&self, kind: HubError, problem: impl Into<String>) -> Error {
        Error::Hub { repository: self.to_string(), kind, problem: problem.into(), cause: None }
    }

    pub fn error_from(&self, kind: HubError, problem: impl Into<String>, cause: impl Into<BoxError>) -> Error {
        Error::Hub { repository: self.to_string(), kind, problem: problem.into(), cause: Some(cause.into()) }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// 40 hexadecimal digits.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Names of git's, of which every part can be a folder.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./+=".contains(&b));
    letters && text.len() <= 200 && text.split('/').all(part) && !text.contains("..")
}

/// Whether a name from the hub, an etag say, can be a file's name.
fn is_plain(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=".contains(&b));
    letters && !name.is_empty() && name.len() <= 200 && !name.starts_with('.')
}
