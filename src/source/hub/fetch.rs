//! The cache policy: when a file comes from the cache, when its metadata is requested, when it is downloaded.

use super::answer::{About, Answer};
use super::cache::{Cache, State};
use super::checksum::matches;
use super::client::Client;
use super::remote::Listener;
use super::repository::{Repository, is_file_name};
use super::transfer::Downloader;
use crate::error::{Error, HubErrorKind, Result};
use std::path::PathBuf;

/// Fetches files of one repository at one commit.
pub(super) struct Fetcher {
    client: Client,
    cache: Cache,
    downloads: Downloader,
    commit: Option<String>,
    /// Why only the cache is used, if it is.
    offline: Option<String>,
    /// Whether a file is missing because only the cache was used.
    missing: bool,
    /// Whether one of those describes the weights.
    missing_config: bool,
}

impl Fetcher {
    pub fn new(client: Client, listener: Option<Listener>) -> Self {
        let offline = "it is set to work offline (HF_HUB_OFFLINE, Source::offline)";
        Self {
            cache: Cache::new(&client.settings.cache, &client.repository),
            downloads: Downloader::new(listener),
            commit: client.repository.commit(),
            offline: client.settings.offline.then(|| offline.into()),
            missing: false,
            missing_config: false,
            client,
        }
    }

    /// The path of a file of the repository, verified; `None` if it has no such file.
    pub async fn get(&mut self, name: &str) -> Result<Option<PathBuf>> {
        if !is_file_name(name) {
            return Err(self
                .client
                .repository
                .error(HubErrorKind::Refused, format!("the file name {name:?} is refused")));
        }
        let mut about = None;
        let commit = match self.commit.clone() {
            Some(commit) => commit,
            None => match self.resolve(name).await? {
                (Some(commit), found) => {
                    about = found;
                    commit
                }
                (None, _) => return Ok(None),
            },
        };
        match self.cache.check(&commit, name)? {
            State::Verified(path) => return Ok(Some(path)),
            State::Unverified(path, metadata) => match self.about(&commit, name, about.take()).await? {
                Some(Answer::File(known)) if self.is_etag(&commit, name, &known.etag) && matches(&path, &known)? => {
                    self.cache.remember(&commit, name, &known.etag, &metadata);
                    return Ok(Some(path));
                }
                Some(Answer::File(known)) => about = Some(known),
                Some(Answer::Absent(_)) => return Ok(None),
                None => {
                    tracing::warn!(file = name, "another program cached this file; only the hub could verify it");
                    return Ok(Some(path));
                }
            },
            State::Damaged => {
                let repository = &self.client.repository;
                if let Some(reason) = &self.offline {
                    let path = self.cache.pointer(&commit, name);
                    let problem = format!("{} is damaged and cannot be downloaded again: {reason}", path.display());
                    return Err(repository.error(HubErrorKind::Damaged, problem));
                }
                tracing::warn!(file = name, %repository, "damaged in the cache; downloading it again");
            }
            State::Missing if self.cache.is_absent(&commit, name) => return Ok(None),
            State::Missing => {}
        }
        match self.about(&commit, name, about).await? {
            Some(Answer::File(about)) => {
                self.downloads.download(&self.client, &self.cache, &commit, name, &about).await.map(Some)
            }
            Some(Answer::Absent(_)) => {
                self.cache.remember_absent(&commit, name);
                Ok(None)
            }
            None => {
                // Without a config, its contents would be guessed. An index of shards only names the files of weights.
                self.missing_config |= name.ends_with("config.json");
                self.missing = true;
                Ok(None)
            }
        }
    }

    pub fn repository(&self) -> &Repository {
        &self.client.repository
    }

    /// The outcome of work on the files, with the real cause: if files are missing because only the cache was used, the
    /// error says so.
    pub fn explain<T>(&self, outcome: Result<T>) -> Result<T> {
        match (&self.offline, outcome) {
            (Some(reason), outcome)
                if self.missing_config || (self.missing && matches!(outcome, Err(Error::Weights { .. }))) =>
            {
                let folder = self.cache.folder().display();
                let problem = format!("is not, or not completely, in the cache at {folder}, and {reason}");
                Err(self.client.repository.error(HubErrorKind::Offline, problem))
            }
            (_, outcome) => outcome,
        }
    }

    fn is_etag(&self, commit: &str, name: &str, etag: &str) -> bool {
        self.cache.etag(commit, name).is_none_or(|own| own == etag)
    }

    /// The commit of the revision: from the hub, or from the cache if the hub is out of reach. With the hub's facts
    /// about the file, if it was asked.
    async fn resolve(&mut self, name: &str) -> Result<(Option<String>, Option<About>)> {
        let repository = &self.client.repository;
        let revision = &repository.revision;
        let answer = match &self.offline {
            // If the cache can serve, a silent hub is not waited for.
            None => self.client.ask(revision, name, self.cache.commit_of(revision).is_some()).await,
            Some(reason) => Err(repository.error(HubErrorKind::Offline, reason)),
        };
        let (commit, about) = match answer {
            Ok(Answer::File(about)) => (about.commit.clone(), Some(about)),
            Ok(Answer::Absent(Some(commit))) => {
                self.cache.remember_absent(&commit, name);
                (commit, None)
            }
            Ok(Answer::Absent(None)) => return Ok((None, None)),
            Err(error) => {
                let Error::Hub { kind: HubErrorKind::Offline | HubErrorKind::Busy, problem, cause, .. } = &error else {
                    return Err(error);
                };
                let Some(commit) = self.cache.commit_of(revision) else {
                    let problem = format!("{problem}; nor is it in the cache at {}", self.cache.folder().display());
                    return Err(match cause {
                        Some(cause) => repository.error_from(HubErrorKind::Offline, problem, cause.to_string()),
                        None => repository.error(HubErrorKind::Offline, problem),
                    });
                };
                if self.offline.is_none() {
                    tracing::warn!(%error, commit, "using the cache");
                    self.offline = Some(problem.clone());
                }
                self.commit = Some(commit.clone());
                return Ok((Some(commit), None));
            }
        };
        self.cache.remember_revision(revision, &commit);
        self.commit = Some(commit.clone());
        Ok((Some(commit), about))
    }

    /// The hub's metadata of a file of the commit; `None` if only the cache is used.
    async fn about(&mut self, commit: &str, name: &str, known: Option<About>) -> Result<Option<Answer>> {
        if let Some(known) = known {
            return Ok(Some(Answer::File(known)));
        }
        if self.offline.is_some() {
            return Ok(None);
        }
        match self.client.ask(commit, name, false).await {
            Ok(Answer::File(about)) if about.commit != commit => {
                let problem = format!("the hub returned commit {} for a request of {commit}", about.commit);
                Err(self.client.repository.error(HubErrorKind::Refused, problem))
            }
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_offline() && self.cache.pointer(commit, name).exists() => {
                self.offline = Some(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
