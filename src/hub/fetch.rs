//! One file after the other: asked about, looked for in the cache, downloaded, verified.

use super::ask::{About, Answer};
use super::cache::{Cache, State};
use super::settings::Settings;
use super::transfer::matches;
use super::{Listener, Repository, is_plain};
use crate::error::{Error, HubError, Result};
use hf_hub::HFClient;
use reqwest::Client;
use std::path::PathBuf;

/// Fetches files of one repository at one commit.
pub(super) struct Fetcher {
    pub(super) settings: Settings,
    pub(super) repository: Repository,
    pub(super) cache: Cache,
    pub(super) listener: Option<Listener>,
    /// Follows no redirection: what is asked about stands in the first answer.
    pub(super) asker: Client,
    pub(super) client: HFClient,
    pub(super) commit: Option<String>,
    /// Why only the cache is used.
    pub(super) cut_off: Option<String>,
    /// Whether a file was not found for that reason.
    pub(super) missed: bool,
    /// Whether one that describes the weights was not.
    pub(super) unsaid: bool,
    /// Whether the server sends parts of files.
    pub(super) ranges: bool,
}

impl Fetcher {
    pub fn new(settings: Settings, repository: Repository, listener: Option<Listener>) -> Result<Self> {
        let failed = |cause: Box<dyn std::error::Error + Send + Sync>| {
            repository.error_from(HubError::Refused, "no connection can be set up", cause)
        };
        let agent = concat!("candle-finetune/", env!("CARGO_PKG_VERSION"));
        let asker = Client::builder().user_agent(agent).redirect(reqwest::redirect::Policy::none()).build();
        let asker = asker.map_err(|error| failed(error.into()))?;
        // Retries are made here, where a pause that the hub asks for is kept.
        let client = HFClient::builder().endpoint(&settings.endpoint).user_agent(agent);
        let client = client.cache_enabled(false).retry_max_attempts(0);
        // Without one it would look for tokens by itself, in places that the settings rule out. No header can hold this.
        let client = client.token(settings.token.as_deref().unwrap_or("\n"));
        let client = client.build().map_err(|error| failed(error.into()))?;
        let cut_off = settings.offline.then(|| "it is set to work offline (HF_HUB_OFFLINE, Source::offline)".into());
        let commit = repository.commit();
        let cache = Cache::new(&settings.cache, &repository);
        let (missed, unsaid, ranges) = (false, false, true);
        Ok(Self { settings, repository, cache, listener, asker, client, commit, cut_off, missed, unsaid, ranges })
    }

    /// The path of a file of the repository, verified; `None` if it has no such file.
    pub async fn get(&mut self, name: &str) -> Result<Option<PathBuf>> {
        if !is_plain(name) {
            return Err(self.repository.error(HubError::Refused, format!("the file name {name:?} is refused")));
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
            State::Good(path) => return Ok(Some(path)),
            State::Unproven(path, found) => match self.about(&commit, name, about.take()).await? {
                Some(Answer::File(known)) if self.is_etag(&commit, name, &known.etag) && matches(&path, &known)? => {
                    self.cache.remember(&commit, name, &known.etag, &found);
                    return Ok(Some(path));
                }
                Some(Answer::File(known)) => about = Some(known),
                Some(Answer::Absent(_)) => return Ok(None),
                None => {
                    tracing::warn!(
                        file = name,
                        "another program put this into the cache; only the hub could verify it"
                    );
                    return Ok(Some(path));
                }
            },
            State::Damaged => {
                if let Some(reason) = &self.cut_off {
                    let path = self.cache.pointer(&commit, name);
                    let problem = format!("{} is damaged and cannot be fetched again: {reason}", path.display());
                    return Err(self.repository.error(HubError::Damaged, problem));
                }
                tracing::warn!(file = name, repository = %self.repository, "damaged in the cache; fetching it again");
            }
            State::Missing if self.cache.is_absent(&commit, name) => return Ok(None),
            State::Missing => {}
        }
        match self.about(&commit, name, about).await? {
            Some(Answer::File(about)) => self.download(&commit, name, &about).await.map(Some),
            Some(Answer::Absent(_)) => {
                self.cache.remember_absent(&commit, name);
                Ok(None)
            }
            None => {
                // Without a description, what it says would be guessed. (An index of shards only says where weights are.)
                self.unsaid |= name.ends_with("config.json");
                self.missed = true;
                Ok(None)
            }
        }
    }

    pub fn id(&self) -> String {
        self.repository.id()
    }

    pub fn client(&self) -> &HFClient {
        &self.client
    }

    /// What came of it all: where something was missing for want of a network, that is what is said.
    pub fn judged<T>(&self, found: Result<T>) -> Result<T> {
        match (&self.cut_off, found) {
            (Some(reason), found) if self.unsaid || (self.missed && matches!(found, Err(Error::Weights { .. }))) => {
                let folder = self.cache.folder().display();
                let problem = format!("is not, or not wholly, in the cache at {folder}, and {reason}");
                Err(self.repository.error(HubError::Offline, problem))
            }
            (_, found) => found,
        }
    }

    fn is_etag(&self, commit: &str, name: &str, etag: &str) -> bool {
        self.cache.etag(commit, name).is_none_or(|own| own == etag)
    }

    /// The commit that the revision is now, or was when there was a network.
    async fn resolve(&mut self, name: &str) -> Result<(Option<String>, Option<About>)> {
        let revision = self.repository.revision.clone();
        let asked = match self.cut_off.clone() {
            // Where the cache can serve, a hub that is silent is not waited for.
            None => self.ask(&revision, name, self.cache.commit_of(&revision).is_some()).await,
            Some(reason) => Err(self.repository.error(HubError::Offline, reason)),
        };
        let (commit, about) = match asked {
            Ok(Answer::File(about)) => (about.commit.clone(), Some(about)),
            Ok(Answer::Absent(Some(commit))) => {
                self.cache.remember_absent(&commit, name);
                (commit, None)
            }
            Ok(Answer::Absent(None)) => return Ok((None, None)),
            Err(error) => {
                let Error::Hub { kind: HubError::Offline | HubError::Busy, problem, cause, .. } = &error else {
                    return Err(error);
                };
                let Some(commit) = self.cache.commit_of(&revision) else {
                    let problem = format!("{problem}; nor is it in the cache at {}", self.cache.folder().display());
                    return Err(match cause {
                        Some(cause) => self.repository.error_from(HubError::Offline, problem, cause.to_string()),
                        None => self.repository.error(HubError::Offline, problem),
                    });
                };
                if self.cut_off.is_none() {
                    tracing::warn!(%error, commit, "using what the cache has");
                    self.cut_off = Some(problem.clone());
                }
                self.commit = Some(commit.clone());
                return Ok((Some(commit), None));
            }
        };
        self.cache.remember_revision(&revision, &commit);
        self.commit = Some(commit.clone());
        Ok((Some(commit), about))
    }

    /// What the hub says of a file of the commit, if it can be asked.
    async fn about(&mut self, commit: &str, name: &str, known: Option<About>) -> Result<Option<Answer>> {
        if let Some(known) = known {
            return Ok(Some(Answer::File(known)));
        }
        if self.cut_off.is_some() {
            return Ok(None);
        }
        match self.ask(commit, name, false).await {
            Ok(Answer::File(about)) if about.commit != commit => {
                let problem = format!("the hub answers for commit {} when asked about {commit}", about.commit);
                Err(self.repository.error(HubError::Refused, problem))
            }
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_offline() && self.cache.pointer(commit, name).exists() => {
                self.cut_off = Some(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
