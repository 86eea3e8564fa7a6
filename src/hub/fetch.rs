//! One file after the other: asked about, looked for in the cache, downloaded, verified.

use super::cache::{Cache, State, is_sha256, remove, sha256};
use super::settings::Settings;
use super::{Download, Listener, Repository, is_commit, is_plain};
use crate::error::{Error, HubError, Result};
use futures_util::StreamExt;
use hf_hub::{HFClient, HFError};
use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How much of a stored file is asked for at first, at least and at most. The store's client hands on whole blocks of
/// up to 64 MB and fetches several at a time: asked for a whole file over a slow line, it is silent for minutes, which
/// cannot be told from a line that is dead, and what it has fetched is lost when it is given up.
const PIECE: u64 = 16 << 20;
const LEAST_PIECE: u64 = 1 << 20;
const MOST_PIECE: u64 = 256 << 20;

/// Fetches files of one repository at one commit.
pub(super) struct Fetcher {
    settings: Settings,
    repository: Repository,
    cache: Cache,
    listener: Option<Listener>,
    /// Follows no redirection: what is asked about stands in the first answer.
    asker: Client,
    client: HFClient,
    commit: Option<String>,
    /// Why only the cache is used.
    cut_off: Option<String>,
    /// Whether a file was not found for that reason.
    missed: bool,
    /// Whether the server sends parts of files.
    ranges: bool,
}

/// What the hub says of a file.
#[derive(Debug, Clone)]
struct About {
    etag: String,
    commit: String,
    size: u64,
    /// Whether it comes from the store of large files.
    stored: bool,
}

enum Answer {
    File(About),
    /// There is no such file in this commit.
    Absent(Option<String>),
}

/// Why something failed.
enum Failure {
    /// It may go better the next time, after a pause that the hub asks for.
    Again(Error, Option<Duration>),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
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
        let client = settings.token.iter().fold(client, |client, token| client.token(token));
        let client = client.build().map_err(|error| failed(error.into()))?;
        let cut_off = settings.offline.then(|| "it is set to work offline (HF_HUB_OFFLINE, Source::offline)".into());
        let commit = repository.commit();
        let cache = Cache::new(&settings.cache, &repository);
        let (missed, ranges) = (false, true);
        Ok(Self { settings, repository, cache, listener, asker, client, commit, cut_off, missed, ranges })
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
            State::Unproven(path, _) if self.cut_off.is_some() => return Ok(Some(path)),
            State::Unproven(path, size) => match self.about(&commit, name, about.take()).await? {
                Some(Answer::File(known)) if known.size == size && self.is_etag(&commit, name, &known.etag) => {
                    self.cache.remember(&commit, name, &known.etag)?;
                    return Ok(Some(path));
                }
                Some(Answer::File(known)) => {
                    self.cache.discard(&commit, name)?;
                    about = Some(known);
                }
                Some(Answer::Absent(_)) => return Ok(None),
                None => return Ok(Some(path)),
            },
            State::Damaged => {
                if let Some(reason) = &self.cut_off {
                    let path = self.cache.pointer(&commit, name);
                    let problem = format!("{} is damaged and cannot be fetched again: {reason}", path.display());
                    return Err(self.repository.error(HubError::Damaged, problem));
                }
                tracing::warn!(file = name, repository = %self.repository, "the cached file is damaged; fetching it again");
                self.cache.discard(&commit, name)?;
            }
            State::Missing if self.cache.is_absent(&commit, name) => return Ok(None),
            State::Missing => {}
        }
        match self.about(&commit, name, about).await? {
            Some(Answer::File(about)) => self.download(&commit, name, &about).await.map(Some),
            Some(Answer::Absent(_)) => {
                self.cache.remember_absent(&commit, name)?;
                Ok(None)
            }
            None => {
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

    /// What the client says, in our words.
    pub fn error(&self, error: HFError) -> Error {
        match self.failure(error) {
            Failure::Again(error, _) | Failure::Final(error) => error,
        }
    }

    /// Whether the hub has a file of this size and, as far as it tells, this checksum.
    pub async fn has(&self, name: &str, size: u64, sum: &str) -> Result<bool> {
        let answer = self.ask(&self.repository.revision, name).await?;
        let same = |about: &About| about.size == size && (!is_sha256(&about.etag) || about.etag == sum);
        Ok(matches!(answer, Answer::File(about) if same(&about)))
    }

    /// What came of it all: where something was missing for want of a network, that is what is said.
    pub fn judged<T>(&self, found: Result<T>) -> Result<T> {
        match (&self.cut_off, found) {
            (Some(reason), Err(Error::Weights { .. })) if self.missed => {
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
            None => self.ask(&revision, name).await,
            Some(reason) => Err(self.repository.error(HubError::Offline, reason)),
        };
        let (commit, about) = match asked {
            Ok(Answer::File(about)) => (about.commit.clone(), Some(about)),
            Ok(Answer::Absent(Some(commit))) => {
                self.cache.remember_absent(&commit, name)?;
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
        self.cache.remember_revision(&revision, &commit)?;
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
        match self.ask(commit, name).await {
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

    /// Asks about a file, several times if need be.
    async fn ask(&self, revision: &str, name: &str) -> Result<Answer> {
        let mut tries = 0;
        loop {
            match self.ask_once(revision, name).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.pause(failure, &mut tries).await?,
            }
        }
    }

    /// Waits before the next attempt, or gives up.
    async fn pause(&self, failure: Failure, tries: &mut u32) -> Result<()> {
        let (error, after) = match failure {
            Failure::Again(error, after) => (error, after),
            Failure::Final(error) => return Err(error),
        };
        *tries += 1;
        let pause = after.unwrap_or(self.settings.pause * 2u32.saturating_pow(*tries - 1));
        if *tries >= self.settings.attempts || pause > self.settings.longest_pause {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, tries, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn ask_once(&self, revision: &str, name: &str) -> Result<Answer, Failure> {
        let refused = |problem: String| self.repository.error(HubError::Refused, problem);
        let mut url = Url::parse(&self.settings.endpoint)
            .map_err(|error| refused(format!("{} is no address: {error}", self.settings.endpoint)))?;
        let Repository { owner, name: repository, .. } = &self.repository;
        url.path_segments_mut()
            .map_err(|()| refused(format!("{} is no address", self.settings.endpoint)))?
            .pop_if_empty()
            .extend([owner, repository, "resolve", revision, name]);
        // Repositories that were renamed answer with the new name.
        for _ in 0..10 {
            // A length is that of the file only if it is not compressed on the way.
            let request = self.asker.head(url.clone()).header(ACCEPT_ENCODING, "identity");
            let request = self.settings.token.iter().fold(request, |request, token| request.bearer_auth(token));
            let answer = match timeout(self.settings.patience, request.send()).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(self.unreachable(error)),
                Err(_) => {
                    let problem = format!("no answer within {:?}", self.settings.patience);
                    return Err(self.unreachable(problem));
                }
            };
            let (status, headers) = (answer.status(), answer.headers());
            if status.is_redirection()
                && let Some(place) = text(headers, LOCATION.as_str())
                && Url::parse(&place).is_err()
                && !place.starts_with("//")
            {
                url = url.join(&place).map_err(|error| refused(format!("{place} is no address: {error}")))?;
                continue;
            }
            if status.is_success() || status.is_redirection() {
                return Ok(Answer::File(self.described(name, headers)?));
            }
            let message = text(headers, "x-error-message").unwrap_or_default();
            return match (status, text(headers, "x-error-code").as_deref()) {
                (StatusCode::NOT_FOUND, Some("EntryNotFound")) => Ok(Answer::Absent(self.commit_in(headers)?)),
                (StatusCode::NOT_FOUND, None) if headers.contains_key("x-repo-commit") => {
                    Ok(Answer::Absent(self.commit_in(headers)?))
                }
                (status, code) => Err(self.refusal(status, code, &message, pause_in(headers))),
            };
        }
        Err(refused("the hub redirects without end".into()).into())
    }

    /// What the headers say of a file; none of it may lead out of the cache.
    fn described(&self, name: &str, headers: &HeaderMap) -> Result<About> {
        let refused = |problem: String| self.repository.error(HubError::Refused, problem);
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
        let etag = etag.ok_or_else(|| refused(format!("the hub gives {name} no etag; is that a hub?")))?;
        let etag = etag.strip_prefix("W/").unwrap_or(&etag).trim_matches('"').to_string();
        if !is_plain(&etag) {
            return Err(refused(format!("the hub's etag {etag:?} of {name} cannot name a file")));
        }
        let commit = self.commit_in(headers)?;
        let commit = commit.ok_or_else(|| refused(format!("the hub does not say of which commit {name} is")))?;
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let size = size.and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| refused(format!("the hub does not say how long {name} is")))?;
        Ok(About { etag, commit, size, stored: headers.contains_key("x-xet-hash") })
    }

    fn commit_in(&self, headers: &HeaderMap) -> Result<Option<String>> {
        match text(headers, "x-repo-commit") {
            Some(commit) if !is_commit(&commit) => {
                let problem = format!("the hub's commit {commit:?} has not 40 hexadecimal digits");
                Err(self.repository.error(HubError::Refused, problem))
            }
            commit => Ok(commit),
        }
    }

    /// Brings a file into the cache, unless another process has done so meanwhile.
    async fn download(&mut self, commit: &str, name: &str, about: &About) -> Result<PathBuf> {
        let _lock = self.cache.lock(&about.etag).await?;
        let blob = self.cache.blob(&about.etag);
        if blob.is_file() {
            if matches(&blob, about)? {
                return self.cache.link(commit, name, &about.etag);
            }
            remove(&blob)?;
        }
        let partial = self.cache.partial(&about.etag)?;
        for again in [true, false] {
            self.transfer(commit, name, about, &partial).await?;
            if matches(&partial, about)? {
                std::fs::rename(&partial, &blob).map_err(Error::io("rename", &partial))?;
                return self.cache.link(commit, name, &about.etag);
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
        let (mut tries, mut piece) = (0, if about.stored { PIECE } else { u64::MAX });
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
                    piece = if about.stored { (piece / 4).max(LEAST_PIECE) } else { piece };
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
        let open = File::options().create(true).append(true).open(partial);
        let mut file = open.map_err(Error::io("write", partial))?;
        let had = file.metadata().map_err(Error::io("read", partial))?.len();
        let start = if had > about.size || !self.ranges { 0 } else { had };
        if start != had {
            file.set_len(0).map_err(Error::io("write", partial))?;
        }
        let tell = |done: u64| {
            if let Some(listener) = &self.listener {
                listener(&Download { file: name.to_string(), done, total: about.size });
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

    fn stalled(&self, name: &str) -> Failure {
        let problem = format!("nothing of {name} came for {:?}", self.settings.stall);
        Failure::Again(self.repository.error(HubError::Busy, problem), None)
    }

    fn broken_off(&self, name: &str, done: u64, total: u64, cause: Option<HFError>) -> Failure {
        let failed = match cause {
            Some(HFError::Xet { .. }) => "the hub's store of large files failed",
            _ => "the connection broke off",
        };
        let problem = format!("{failed} at {done} of {total} bytes of {name}; the next try goes on there");
        Failure::Again(
            match cause {
                Some(cause) => self.repository.error_from(HubError::Busy, problem, cause),
                None => self.repository.error(HubError::Busy, problem),
            },
            None,
        )
    }

    fn unreachable(&self, cause: impl Into<crate::error::BoxError>) -> Failure {
        let problem = format!("the hub at {} cannot be reached", self.settings.endpoint);
        Failure::Again(self.repository.error_from(HubError::Offline, problem, chain(&*cause.into())), None)
    }

    /// An answer that is none.
    fn refusal(&self, status: StatusCode, code: Option<&str>, message: &str, after: Option<Duration>) -> Failure {
        let Repository { revision, .. } = &self.repository;
        let (id, endpoint) = (self.repository.id(), &self.settings.endpoint);
        let said = if message.is_empty() { String::new() } else { format!(" (the hub says: {message})") };
        let anonymous = self.settings.token.is_none();
        let token = if anonymous { "set HF_TOKEN or Source::token" } else { "check whose token it is" };
        let (kind, problem) = match (status.as_u16(), code) {
            (401 | 403 | 404, Some("RepoNotFound")) | (404, None) => {
                let there = format!("there is no repository {id} with a revision {revision} at {endpoint}");
                (HubError::NotFound, format!("{there}, or it is private ({token}){said}"))
            }
            (404, Some("RevisionNotFound")) => {
                (HubError::NotFound, format!("{id} has no branch, tag or commit {revision}{said}"))
            }
            (401 | 403, Some("GatedRepo")) => {
                let ask = format!("ask for access at {endpoint}/{id}, then {token}");
                (HubError::Denied, format!("access to it must be granted: {ask}{said}"))
            }
            (401, _) => (HubError::Denied, format!("the hub wants to know who asks: {token}{said}")),
            (403, _) => {
                let ask = format!("ask for access at {endpoint}/{id} and {token}");
                (HubError::Denied, format!("the hub forbids it (403): {ask}{said}"))
            }
            (408 | 429 | 500..=599, _) => {
                let wait = after.map_or_else(String::new, |after| format!(", asking for a pause of {after:?}"));
                let problem = format!("the hub went on answering {status}{wait}; try again later{said}");
                return Failure::Again(self.repository.error(HubError::Busy, problem), after);
            }
            _ => (HubError::Refused, format!("the hub answers {status}{said}")),
        };
        Failure::Final(self.repository.error(kind, problem))
    }

    /// What the client says, in our words.
    fn failure(&self, error: HFError) -> Failure {
        let (context, after) = match error {
            HFError::RateLimited { retry_after, context } => (context, retry_after),
            HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => {
                (context, None)
            }
            HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. } => (context, None),
            HFError::Request { source, .. } => return self.unreachable(source),
            error @ HFError::Xet { .. } => {
                let problem = "the hub's store of large files gave an error";
                return Failure::Again(self.repository.error_from(HubError::Busy, problem, chain(&error)), None);
            }
            error => {
                let problem = "the hub cannot be understood";
                return Failure::Final(self.repository.error_from(HubError::Refused, problem, error));
            }
        };
        let message = context.server_message.as_deref().unwrap_or_default();
        let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
        self.refusal(context.status, context.error_code.as_deref(), &message, after)
    }
}

/// Whether a file is the one that the hub speaks of, as far as can be told.
fn matches(path: &Path, about: &About) -> Result<bool> {
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    Ok(size == about.size && (!is_sha256(&about.etag) || sha256(path)? == about.etag.to_ascii_lowercase()))
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_string())
}

/// The pause that the hub asks for, in seconds.
fn pause_in(headers: &HeaderMap) -> Option<Duration> {
    Some(Duration::from_secs(text(headers, RETRY_AFTER.as_str())?.parse().ok()?))
}

/// An error with all that lies behind it, which the client leaves out of its own text.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
