//! The kinds of errors of the hub.

/// The kinds of [`Error::Hub`](crate::Error::Hub).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubErrorKind {
    /// The hub is unreachable or offline mode is on, and the cache lacks the file.
    Offline,
    /// The repository, revision or file does not exist, or this user may not see it.
    NotFound,
    /// Permission denied.
    Denied,
    /// The hub stayed overloaded or broken through all retries.
    Busy,
    /// Downloaded data failed verification twice.
    Damaged,
    /// The request or the hub's response is invalid.
    Refused,
}
