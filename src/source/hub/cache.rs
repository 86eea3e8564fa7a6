//! The cache on disk, in the layout of Python's huggingface_hub: `models--owner--name` with `blobs` named by etag,
//! `snapshots` of links named by commit, `refs` named by revision, `.no_exist`, and a folder of locks beside it. We add
//! `.verified`: each file's etag, size and modification time when its checksum was last computed, so that the next
//! start need not recompute it.

use super::checksum::agrees;
use super::repository::{Repository, is_commit};
use crate::error::{Error, Result};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// The part of the cache that belongs to one repository.
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

/// The state of a file in the cache.
#[derive(Debug)]
pub(super) enum State {
    Missing,
    /// Its size and checksum are the hub's: checked now, or when the file last changed.
    Verified(PathBuf),
    /// Only the hub can verify it. With the file's metadata from before its bytes are read.
    Unverified(PathBuf, Metadata),
    Damaged,
}

impl Cache {
    pub fn new(root: &Path, repository: &Repository) -> Self {
        let name = format!("models--{}--{}", repository.owner, repository.name);
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that the hub last gave for the revision.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|text| is_commit(text))
    }

    pub fn remember_revision(&self, revision: &str, commit: &str) {
        if !is_commit(revision) && self.commit_of(revision).as_deref() != Some(commit) {
            note(&self.folder.join("refs").join(revision), commit.as_bytes());
        }
    }

    /// Whether the hub has reported that the commit lacks the file.
    pub fn is_absent(&self, commit: &str, name: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(name).exists()
    }

    pub fn remember_absent(&self, commit: &str, name: &str) {
        note(&self.folder.join(".no_exist").join(commit).join(name), b"");
    }

    /// The path under which users of the cache find a file.
    pub fn pointer(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(name)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The file that a download is written to. With the lock, its name is fixed, so that the next download resumes it;
    /// without, it belongs to this process.
    pub fn partial(&self, etag: &str, lock: Option<&File>) -> Result<PathBuf> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
        let own = if lock.is_some() { String::new() } else { format!(".{}", std::process::id()) };
        Ok(blobs.join(format!("{etag}{own}.incomplete")))
    }

    /// Keeps other processes, including Python's, from downloading the same file. Waits while another one does. `None`
    /// on file systems without locks.
    pub async fn lock(&self, etag: &str) -> Result<Option<File>> {
        fs::create_dir_all(&self.locks).map_err(Error::io("create", &self.locks))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        for waited in 0u64.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(error)) => {
                    tracing::debug!(%error, lock = %path.display(), "this file system has no locks");
                    return Ok(None);
                }
            }
            if waited % 600 == 20 {
                tracing::info!(lock = %path.display(), "waiting for another process that downloads this file");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Some(file))
    }

    /// The state of a file. Its checksum is recomputed if the file has changed since it was verified.
    pub fn check(&self, commit: &str, name: &str) -> Result<State> {
        let path = self.pointer(commit, name);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => return Ok(State::Damaged),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::Missing),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let record = fs::read_to_string(self.record(commit, name)).ok();
        let record: Vec<&str> = record.as_deref().unwrap_or_default().split_whitespace().collect();
        // A link's target is named by the etag. Without links, the record has it.
        let Some(etag) = self.etag(commit, name).or_else(|| record.first().map(ToString::to_string)) else {
            return Ok(State::Unverified(path, metadata));
        };
        if record == stamp(&etag, &metadata).split_whitespace().collect::<Vec<_>>() {
            return Ok(State::Verified(path));
        }
        match (agrees(&path, &etag)?, record.get(1)) {
            (Some(true), _) => {
                self.remember(commit, name, &etag, &metadata);
                Ok(State::Verified(path))
            }
            (Some(false), _) => Ok(State::Damaged),
            (None, Some(size)) if *size != metadata.len().to_string() => Ok(State::Damaged),
            (None, _) => Ok(State::Unverified(path, metadata)),
        }
    }

    /// Records that a file has been verified. `metadata` is from before its bytes were read, so that a change in
    /// between is noticed the next time.
    pub fn remember(&self, commit: &str, name: &str, etag: &str, metadata: &Metadata) {
        note(&self.record(commit, name), stamp(etag, metadata).as_bytes());
    }

    /// The etag of a file in the cache, from its link.
    pub fn etag(&self, commit: &str, name: &str) -> Option<String> {
        let blob = fs::read_link(self.pointer(commit, name)).ok()?;
        Some(blob.file_name()?.to_str()?.to_string())
    }

    /// Links a blob as the commit's file of that name. `metadata` is as for `remember`.
    pub fn link(&self, commit: &str, name: &str, etag: &str, metadata: &Metadata) -> Result<PathBuf> {
        let pointer = self.pointer(commit, name);
        let folder = self.folder.join("snapshots").join(commit);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        if self.etag(commit, name).as_deref() == Some(etag) {
            self.remember(commit, name, etag, metadata);
            return Ok(pointer);
        }
        remove(&pointer)?;
        let linked = link(&self.blob(etag), &Path::new("../../blobs").join(etag), &pointer);
        match linked {
            // Another process has just linked it.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other.map_err(Error::io("link", &pointer))?,
        }
        self.remember(commit, name, etag, metadata);
        Ok(pointer)
    }

    fn record(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join(".verified").join(commit).join(name)
    }
}

#[cfg(unix)]
fn link(_: &Path, relative: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

/// On Windows, links need rights that few users have.
#[cfg(not(unix))]
fn link(blob: &Path, _: &Path, pointer: &Path) -> io::Result<()> {
    // Written under another name and renamed once complete. A copy keeps the modification time.
    let unfinished = pointer.with_extension(format!("{}.incomplete", std::process::id()));
    fs::copy(blob, &unfinished)?;
    fs::rename(&unfinished, pointer)
}

/// Tells whether a file has changed since its checksum was computed: etag, size and modification time.
fn stamp(etag: &str, metadata: &Metadata) -> String {
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{etag} {} {}", metadata.len(), changed.map_or(0, |time| time.as_nanos()))
}

/// Writes a record that only saves time. Failing is harmless: a cache without write permission stays readable.
fn note(path: &Path, bytes: &[u8]) {
    let created = path.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(error) = created.and_then(|()| fs::write(path, bytes)) {
        tracing::debug!(%error, path = %path.display(), "the cache is not writable");
    }
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
