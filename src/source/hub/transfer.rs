//! Downloads: each goes into a file beside the blobs, resumes where the last attempt ended, and becomes a blob once its
//! checksum has been verified.

use super::answer::About;
use super::cache::{Cache, remove};
use super::checksum::{is_checksum, matches};
use super::client::Client;
use super::failure::Failure;
use super::remote::{HubDownload, Listener};
use crate::error::{Error, HubErrorKind, Result};
use futures_util::StreamExt;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// The first, least and greatest number of bytes requested at a time from the store of large files. The store's client
/// delivers whole blocks of up to 64 MB and fetches several at a time. Requesting a whole file over a slow line would
/// mean minutes of silence, which look like a dead line, and giving up would lose all that was fetched.
const PIECE: u64 = 16 << 20;
const LEAST_PIECE: u64 = 1 << 20;
const MOST_PIECE: u64 = 256 << 20;
/// The longest description that is downloaded, so that a hub cannot fill the disk with one.
const MAX_TEXT: u64 = 100_000_000;

/// Downloads files of a repository into its cache.
pub(super) struct Downloader {
    listener: Option<Listener>,
    /// Whether the server sends parts of files; false once it has not.
    ranges: bool,
}

/// One download: which file, and where it is written.
struct Job<'a> {
    client: &'a Client,
    commit: &'a str,
    name: &'a str,
    about: &'a About,
    partial: &'a Path,
}

impl Downloader {
    pub fn new(listener: Option<Listener>) -> Self {
        Self { listener, ranges: true }
    }

    /// Downloads a file into the cache, unless another process has just done so.
    pub async fn download(
        &mut self,
        client: &Client,
        cache: &Cache,
        commit: &str,
        name: &str,
        about: &About,
    ) -> Result<PathBuf> {
        if about.size > MAX_TEXT && (name.ends_with(".json") || name.ends_with(".md")) {
            let problem = format!("{name} of {} bytes is refused; at most {MAX_TEXT} are read", about.size);
            return Err(client.repository.error(HubErrorKind::Refused, problem));
        }
        let lock = cache.lock(&about.etag).await?;
        let blob = cache.blob(&about.etag);
        if blob.is_file() {
            let found = std::fs::metadata(&blob).map_err(Error::io("read", &blob))?;
            if matches(&blob, about)? {
                return cache.link(commit, name, &about.etag, &found);
            }
            remove(&blob)?;
        }
        let partial = cache.partial(&about.etag, lock.as_ref())?;
        let job = Job { client, commit, name, about, partial: &partial };
        for retry in [true, false] {
            self.transfer(&job).await?;
            let found = std::fs::metadata(&partial).map_err(Error::io("read", &partial))?;
            if matches(&partial, about)? {
                std::fs::rename(&partial, &blob).map_err(Error::io("rename", &partial))?;
                return cache.link(commit, name, &about.etag, &found);
            }
            remove(&partial)?;
            if retry {
                tracing::warn!(file = name, repository = %client.repository, "wrong checksum; downloading it again");
            }
        }
        let problem = format!("{name} did not have the checksum that the hub announced, twice; nothing of it was kept");
        Err(client.repository.error(HubErrorKind::Damaged, problem))
    }

    /// Downloads the missing part of a file, with retries. Each attempt keeps what it received for the next one.
    async fn transfer(&mut self, job: &Job<'_>) -> Result<()> {
        let Job { client, about, .. } = *job;
        let in_pieces = about.stored && is_checksum(&about.etag);
        let (mut tries, mut piece) = (0, if in_pieces { PIECE } else { u64::MAX });
        loop {
            let begun = Instant::now();
            match self.transfer_once(job, piece).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    tries = 0;
                    // Twice as much would still take at most half of the download timeout.
                    if begun.elapsed() < client.settings.download_timeout / 4 {
                        piece = (piece * 2).min(MOST_PIECE);
                    }
                }
                Err(failure) => {
                    piece = if in_pieces { (piece / 4).max(LEAST_PIECE) } else { piece };
                    client.pause(failure, &mut tries).await?;
                }
            }
        }
    }

    /// Downloads the next piece. Returns whether the file is complete.
    async fn transfer_once(&mut self, job: &Job<'_>, piece: u64) -> Result<bool, Failure> {
        let Job { client, commit, name, about, partial } = *job;
        let open = File::options().create(true).truncate(false).write(true).open(partial);
        let mut file = open.map_err(Error::io("write", partial))?;
        let had = file.metadata().map_err(Error::io("read", partial))?.len();
        // Only a checksum can verify a file that was joined from two parts.
        let start = if had > about.size || !self.ranges || !is_checksum(&about.etag) { 0 } else { had };
        file.set_len(start).map_err(Error::io("write", partial))?;
        file.seek(SeekFrom::Start(start)).map_err(Error::io("write", partial))?;
        let report = |done: u64| {
            if let Some(listener) = &self.listener {
                listener(&HubDownload { file: name.to_string(), done, total: about.size });
            }
        };
        report(start);
        if start == about.size {
            return Ok(true);
        }
        let end = if self.ranges { start.saturating_add(piece).min(about.size) } else { about.size };
        let model = client.hf.model(&client.repository.owner, &client.repository.name);
        let range = (start > 0 || end < about.size).then_some(start..end);
        let asked = model.download_file_stream().filename(name).revision(commit).maybe_range(range).send();
        let (_, mut stream) = match timeout(client.settings.download_timeout, asked).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(client.failure(error)),
            Err(_) => return Err(client.stalled(name)),
        };
        let (mut done, mut reported) = (start, start);
        loop {
            let chunk = match timeout(client.settings.download_timeout, stream.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Err(client.interrupted(name, done, about.size, Some(error))),
                Ok(None) => break,
                Err(_) => return Err(client.stalled(name)),
            };
            done += chunk.len() as u64;
            if done > about.size {
                file.set_len(0).map_err(Error::io("write", partial))?;
                if start > 0 {
                    // The server ignores ranges and sends the file from its start.
                    self.ranges = false;
                    let problem = format!("the hub sends all of {name} again instead of the rest");
                    return Err(Failure::Retry(
                        client.repository.error(HubErrorKind::Busy, problem),
                        Some(Duration::ZERO),
                    ));
                }
                let problem = format!("the hub sends more than the {} bytes that it announced of {name}", about.size);
                return Err(client.repository.error(HubErrorKind::Damaged, problem).into());
            }
            file.write_all(&chunk).map_err(Error::io("write", partial))?;
            if done - reported >= about.size / 200 || done == about.size {
                reported = done;
                report(done);
            }
        }
        if done < end {
            return Err(client.interrupted(name, done, about.size, None));
        }
        if done == about.size {
            file.sync_all().map_err(Error::io("write", partial))?;
        }
        Ok(done == about.size)
    }
}
