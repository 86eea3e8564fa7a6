//! The hub's response to a metadata request.

/// The hub's facts about a file.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub etag: String,
    pub commit: String,
    pub size: u64,
    /// Whether the store of large files (xet) holds it.
    pub stored: bool,
}

pub(super) enum Answer {
    File(About),
    /// The commit has no such file. With the commit, if the hub names it.
    Absent(Option<String>),
}
