//! Downloads: into a file beside the blobs, from where the last attempt ended, believed when the checksum is right.

use super::HubDownload;
use super::ask::About;
use super::cache::remove;
use super::checksum::{agrees, is_checksum};
use super::failure::Failure;
use super::fetch::Fetcher;
use crate::error::{Error, HubError, Result};
use futures_util::StreamExt;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How much of a stored file is asked for at first, at least and at most. The store's client hands on whole blocks of
/// up to 64 MB and fetches several at a time: asked for a whole file over a slow line, it is silent for minutes, which
/// cannot be told from a line that is dead, and what it has fetched is lost when it is given up.
const PIECE: u64 = 16 << 20;
const LEAST_PIECE: u64 = 1 << 20;
const MOST_PIECE: u64 = 256 << 20;
/// Nothing that describes weights is longer, so that a hub cannot fill a disk with it.
const MAX_TEXT: u64 = 100_000_000;

impl Fetcher {
    /// Brings a file into the cache, unless another process has done so meanwhile.
    pub(super) async fn download(&mut self, commit: &str, name: &str, about: &About) -> Result<PathBuf> {
        if about.size > MAX_TEXT && (name.ends_with(".json") || name.ends_with(".md")) {
            let problem = format!("{name} of {} bytes is refused; at most {MAX_TEXT} are read", about.size);
            return Err(self.repository.error(HubError::Refused, problem));
        }
        let lock = self.cache.lock(&about.etag).await?;
        let blob = self.cache.blob(&about.etag);
        if blob.is_file() {
            let found = std::fs::metadata(&blob).map_err(Error::io("read", &blob))?;
            if matches(&blob, about)? {
                return self.cache.link(commit, name, &about.etag, &found);
            }
            remove(&blob)?;
        }
        let partial = self.cache.partial(&about.etag, lock.as_ref())?;
        for again in [true, false] {
            self.transfer(commit, name, about, &partial).await?;
            let found = std::fs::metadata(&partial).map_err(Error::io("read", &partial))?;
            if matches(&partial, about)? {
                std::fs::rename(&partial, &blob).map_err(Error::io("rename", &partial))?;
                return self.cache.link(commit, name, &about.etag, &found);
            }
            remove(&partial)?;
            if again {
                tracing::warn!(file = name, repository = %self.repository, "the checksum is wrong; fetching it again");
            }
        }
        let problem =
            format!("{name} came with another checksum than the hub announced, twice; nothing of it was kept");
        Err(self.repository.error(HubError::Damaged, problem))
    }

    /// Downloads what is missing of a file, in several attempts if need be. What has come stays for the next one.
    async fn transfer(&mut self, commit: &str, name: &str, about: &About, partial: &Path) -> Result<()> {
        let in_pieces = about.stored && is_checksum(&about.etag);
        let (mut tries, mut piece) = (0, if in_pieces { PIECE } else { u64::MAX });
        loop {
            let begun = Instant::now();
            match self.transfer_once(commit, name, about, partial, piece).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    tries = 0;
                    // Twice as much would still take no more than half of the time that silence may last.
                    if begun.elapsed() < self.settings.stall / 4 {
                        piece = (piece * 2).min(MOST_PIECE);
                    }
                }
                Err(failure) => {
                    piece = if in_pieces { (piece / 4).max(LEAST_PIECE) } else { piece };
                    self.pause(failure, &mut tries).await?;
                }
            }
        }
    }

    /// Asks for the next piece. Whether it was the last one.
    async fn transfer_once(
        &mut self,
        commit: &str,
        name: &str,
        about: &About,
        partial: &Path,
        piece: u64,
    ) -> Result<bool, Failure> {
        let open = File::options().create(true).truncate(false).write(true).open(partial);
        let mut file = open.map_err(Error::io("write", partial))?;
        let had = file.metadata().map_err(Error::io("read", partial))?.len();
        // Only a checksum can tell whether two parts make one file.
        let start = if had > about.size || !self.ranges || !is_checksum(&about.etag) { 0 } else { had };
        file.set_len(start).map_err(Error::io("write", partial))?;
        file.seek(SeekFrom::Start(start)).map_err(Error::io("write", partial))?;
        let tell = |done: u64| {
            if let Some(listener) = &self.listener {
                listener(&HubDownload { file: name.to_string(), done, total: about.size });
            }
        };
        tell(start);
        if start == about.size {
            return Ok(true);
        }
        let end = if self.ranges { start.saturating_add(piece).min(about.size) } else { about.size };
        let model = self.client.model(&self.repository.owner, &self.repository.name);
        let range = (start > 0 || end < about.size).then_some(start..end);
        let asked = model.download_file_stream().filename(name).revision(commit).maybe_range(range).send();
        let (_, mut stream) = match timeout(self.settings.stall, asked).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.failure(error)),
            Err(_) => return Err(self.stalled(name)),
        };
        let (mut done, mut told) = (start, start);
        loop {
            let chunk = match timeout(self.settings.stall, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(self.broken_off(name, done, about.size, Some(error))),
                Ok(None) => break,
                Err(_) => return Err(self.stalled(name)),
            };
            done += chunk.len() as u64;
            if done > about.size {
                file.set_len(0).map_err(Error::io("write", partial))?;
                if start > 0 {
                    // It sends all of the file instead of the rest.
                    self.ranges = false;
                    let problem = format!("the hub sends all of {name} again instead of the rest");
                    return Err(Failure::Again(self.repository.error(HubError::Busy, problem), Some(Duration::ZERO)));
                }
                let problem = format!("the hub sends more than the {} bytes that it announced of {name}", about.size);
                return Err(self.repository.error(HubError::Damaged, problem).into());
            }
            file.write_all(&chunk).map_err(Error::io("write", partial))?;
            if done - told >= about.size / 200 || done == about.size {
                told = done;
                tell(done);
            }
        }
        if done < end {
            return Err(self.broken_off(name, done, about.size, None));
        }
        if done == about.size {
            file.sync_all().map_err(Error::io("write", partial))?;
        }
        Ok(done == about.size)
    }
}

/// Whether a file is the one that the hub speaks of, as far as can be told.
pub(super) fn matches(path: &Path, about: &About) -> Result<bool> {
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    Ok(size == about.size && agrees(path, &about.etag)?.unwrap_or(true))
}
