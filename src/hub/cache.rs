//! The cache in the layout of Python's huggingface_hub: `models--owner--name` with `blobs` by etag, `snapshots` of
//! links by commit, `refs` by revision, `.no_exist`, and locks beside. `.verified` is ours: what each file was when its
//! checksum was last computed, so that the next start need not compute it again.

use super::checksum::agrees;
use super::{Repository, is_commit};
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

/// What the cache has of a file.
#[derive(Debug)]
pub(super) enum State {
    Missing,
    /// Its size and checksum are those that the hub gave, now or when it last changed.
    Good(PathBuf),
    /// Nothing here tells whether its bytes are the right ones. With what it was before anybody looks at them.
    Unproven(PathBuf, Metadata),
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

    /// The commit that the revision was when the hub was last asked.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|text| is_commit(text))
    }

    pub fn remember_revision(&self, revision: &str, commit: &str) {
        if !is_commit(revision) && self.commit_of(revision).as_deref() != Some(commit) {
            note(&self.folder.join("refs").join(revision), commit.as_bytes());
        }
    }

    /// Whether the hub has said that the commit has no such file.
    pub fn is_absent(&self, commit: &str, name: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(name).exists()
    }

    pub fn remember_absent(&self, commit: &str, name: &str) {
        note(&self.folder.join(".no_exist").join(commit).join(name), b"");
    }

    /// Where users of the cache look for a file.
    pub fn pointer(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(name)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where a download gathers: for whoever holds the lock in the place that the next one finds, else in one of its own.
    pub fn partial(&self, etag: &str, lock: Option<&File>) -> Result<PathBuf> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
        let own = if lock.is_some() { String::new() } else { format!(".{}", std::process::id()) };
        Ok(blobs.join(format!("{etag}{own}.incomplete")))
    }

    /// Keeps other processes, Python's too, from downloading the same. Waits as long as one does. `None` on file systems
    /// that know no locks.
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
                    tracing::debug!(%error, lock = %path.display(), "no lock is to be had");
                    return Ok(None);
                }
            }
            if waited % 600 == 20 {
                tracing::info!(lock = %path.display(), "another process downloads this file; waiting for it");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Some(file))
    }

    /// Looks at a file, and computes its checksum if it has changed since the last time.
    pub fn check(&self, commit: &str, name: &str) -> Result<State> {
        let path = self.pointer(commit, name);
        let about = match fs::metadata(&path) {
            Ok(about) if about.is_file() => about,
            Ok(_) => return Ok(State::Damaged),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::Missing),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let record = fs::read_to_string(self.record(commit, name)).ok();
        let record: Vec<&str> = record.as_deref().unwrap_or_default().split_whitespace().collect();
        // Where there are links, the link tells the etag; else the record does.
        let Some(etag) = self.etag(commit, name).or_else(|| record.first().map(ToString::to_string)) else {
            return Ok(State::Unproven(path, about));
        };
        if record == stamp(&etag, &about).split_whitespace().collect::<Vec<_>>() {
            return Ok(State::Good(path));
        }
        match (agrees(&path, &etag)?, record.get(1)) {
            (Some(true), _) => {
                self.remember(commit, name, &etag, &about);
                Ok(State::Good(path))
            }
            (Some(false), _) => Ok(State::Damaged),
            (None, Some(size)) if *size != about.len().to_string() => Ok(State::Damaged),
            (None, _) => Ok(State::Unproven(path, about)),
        }
    }

    /// Notes that a file was what the hub says. `about` is from before its bytes were looked at, so that a change in
    /// between is seen the next time.
    pub fn remember(&self, commit: &str, name: &str, etag: &str, about: &Metadata) {
        note(&self.record(commit, name), stamp(etag, about).as_bytes());
    }

    /// The etag that a file of the cache goes by.
    pub fn etag(&self, commit: &str, name: &str) -> Option<String> {
        let blob = fs::read_link(self.pointer(commit, name)).ok()?;
        Some(blob.file_name()?.to_str()?.to_string())
    }

    /// Makes a blob known as the commit's file of that name. `about` is as for `remember`.
    pub fn link(&self, commit: &str, name: &str, etag: &str, about: &Metadata) -> Result<PathBuf> {
        let pointer = self.pointer(commit, name);
        let folder = self.folder.join("snapshots").join(commit);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        if self.etag(commit, name).as_deref() == Some(etag) {
            self.remember(commit, name, etag, about);
            return Ok(pointer);
        }
        remove(&pointer)?;
        let linked = link(&self.blob(etag), &Path::new("../../blobs").join(etag), &pointer);
        match linked {
            // Another process has been as quick.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            other => other.map_err(Error::io("link", &pointer))?,
        }
        self.remember(commit, name, etag, about);
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

/// Links need rights there that few users have.
#[cfg(not(unix))]
fn link(blob: &Path, _: &Path, pointer: &Path) -> io::Result<()> {
    // Under another name until it is whole. The system keeps the time of change.
    let unfinished = pointer.with_extension(format!("{}.incomplete", std::process::id()));
    fs::copy(blob, &unfinished)?;
    fs::rename(&unfinished, pointer)
}

/// What tells whether a file has changed since its checksum was computed: etag, size, time of change.
fn stamp(etag: &str, about: &Metadata) -> String {
    let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{etag} {} {}", about.len(), changed.map_or(0, |time| time.as_nanos()))
}

/// Writes what only saves time: a cache that others own can be read without it.
fn note(path: &Path, bytes: &[u8]) {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(error) = made.and_then(|()| fs::write(path, bytes)) {
        tracing::debug!(%error, path = %path.display(), "the cache cannot be written to");
    }
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
