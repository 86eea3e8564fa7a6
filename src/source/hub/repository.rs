//! The name of a repository at a revision, and which names are allowed in paths and addresses.

use crate::error::{BoxError, Error, HubErrorKind, Result};
use std::fmt;

/// `owner/name` at a revision. Every part is safe in a path and in a URL.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    pub owner: String,
    pub name: String,
    pub revision: String,
}

impl Repository {
    /// `id` may carry the revision after an @.
    pub fn parse(id: &str, revision: Option<&str>) -> Result<Self> {
        let wrong = |problem: String| Error::Hub {
            repository: id.chars().take(200).collect(),
            kind: HubErrorKind::Refused,
            problem,
            cause: None,
        };
        let plain = id.strip_prefix("hf-hub:").unwrap_or(id);
        let (path, in_id) = match plain.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (plain, None),
        };
        let Some((owner, name)) = path.split_once('/') else {
            return Err(wrong("is not a repository of the hub; name it owner/name, or owner/name@revision".into()));
        };
        for part in [owner, name] {
            let letters = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            // The cache separates owner and name by two dashes.
            let doubled = part.contains("..") || part.contains("--") || part.ends_with(".git");
            let edge = part.starts_with(['.', '-']) || part.ends_with(['.', '-']);
            if !letters || part.is_empty() || part.len() > 96 || doubled || edge {
                return Err(wrong(format!(
                    "{part:?} is not a valid name on the hub; use letters, digits and _, with single - and . inside"
                )));
            }
        }
        let revision = match (in_id, revision) {
            (Some(a), Some(b)) if a != b => {
                return Err(wrong(format!("the name has revision {a:?}, but Source::revision is {b:?}")));
            }
            (a, b) => a.or(b).unwrap_or("main"),
        };
        if !is_revision(revision) {
            return Err(wrong(format!("{revision:?} is not a revision; give a branch, a tag or a commit's 40 digits")));
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

    pub fn error(&self, kind: HubErrorKind, problem: impl Into<String>) -> Error {
        Error::Hub { repository: self.to_string(), kind, problem: problem.into(), cause: None }
    }

    pub fn error_from(&self, kind: HubErrorKind, problem: impl Into<String>, cause: impl Into<BoxError>) -> Error {
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
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Names that git accepts and whose every part can be a folder.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./+=".contains(&b));
    letters && text.len() <= 200 && text.split('/').all(part) && !text.contains("..")
}

/// Whether a name that the hub sends, an etag for example, can be a file's name.
pub(super) fn is_file_name(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+=".contains(&b));
    letters && !name.is_empty() && name.len() <= 200 && !name.starts_with('.')
}
