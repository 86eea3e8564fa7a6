//! Metadata requests, and retries for all requests.

use super::answer::{About, Answer};
use super::checksum::matches;
use super::client::Client;
use super::failure::Failure;
use super::repository::{Repository, is_commit, is_file_name};
use crate::error::{HubErrorKind, Result};
use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// The timeout of a metadata request if the cache can serve instead.
const HURRY: Duration = Duration::from_secs(10);

impl Client {
    /// Whether the hub's file has the size, and the checksum if the hub gives one, of the file at `path`.
    pub async fn has(&self, revision: &str, name: &str, path: &Path) -> Result<bool> {
        match self.ask(revision, name, false).await? {
            Answer::File(about) => matches(path, &about),
            Answer::Absent(_) => Ok(false),
        }
    }

    /// Asks about a file, with retries; if `hurried`, at most twice and with a short timeout.
    pub async fn ask(&self, revision: &str, name: &str, hurried: bool) -> Result<Answer> {
        let mut tries = if hurried { self.settings.attempts.saturating_sub(2) } else { 0 };
        let limit = if hurried { self.settings.request_timeout.min(HURRY) } else { self.settings.request_timeout };
        loop {
            match self.ask_once(revision, name, limit).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => self.pause(failure, &mut tries).await?,
            }
        }
    }

    /// Waits before the next attempt, or gives up and returns the error.
    pub async fn pause(&self, failure: Failure, tries: &mut u32) -> Result<()> {
        let (error, after) = match failure {
            Failure::Retry(error, after) => (error, after),
            Failure::Final(error) => return Err(error),
        };
        *tries += 1;
        let pause = after.unwrap_or(self.settings.pause * 2u32.saturating_pow(*tries - 1));
        if *tries >= self.settings.attempts || pause > self.settings.longest_pause {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, tries, "retrying");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn ask_once(&self, revision: &str, name: &str, limit: Duration) -> Result<Answer, Failure> {
        let refused = |problem: String| self.repository.error(HubErrorKind::Refused, problem);
        let mut url = Url::parse(&self.settings.endpoint)
            .map_err(|error| refused(format!("{} is not an address: {error}", self.settings.endpoint)))?;
        let Repository { owner, name: repository, .. } = &self.repository;
        url.path_segments_mut()
            .map_err(|()| refused(format!("{} is not an address", self.settings.endpoint)))?
            .pop_if_empty()
            .extend([owner, repository, "resolve", revision, name]);
        // A renamed repository redirects to its new name.
        for _ in 0..10 {
            // The content length is the file's only without compression.
            let request = self.http.head(url.clone()).header(ACCEPT_ENCODING, "identity");
            let request = self.settings.token.iter().fold(request, reqwest::RequestBuilder::bearer_auth);
            let answer = match timeout(limit, request.send()).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(self.unreachable(error.without_url())),
                Err(_) => {
                    let problem = format!("no answer within {limit:?}");
                    return Err(self.unreachable(problem));
                }
            };
            let (status, headers) = (answer.status(), answer.headers());
            if status.is_redirection()
                && let Some(place) = text(headers, LOCATION.as_str())
                && Url::parse(&place).is_err()
                && !place.starts_with("//")
            {
                let next = url.join(&place).map_err(|error| refused(format!("{place} is not an address: {error}")))?;
                // The token is for this host only, and a relative address may be read as another one.
                if next.origin() != url.origin() {
                    return Err(refused(format!("the hub redirects to another host: {place:?}")).into());
                }
                url = next;
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
        Err(refused("the hub keeps redirecting".into()).into())
    }

    /// The facts about a file from the headers. None of them may become a path outside the cache.
    fn described(&self, name: &str, headers: &HeaderMap) -> Result<About> {
        let refused = |problem: String| self.repository.error(HubErrorKind::Refused, problem);
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
        let etag = etag.ok_or_else(|| refused(format!("the hub sends no etag for {name}; is this address a hub?")))?;
        let etag = etag.strip_prefix("W/").unwrap_or(&etag).trim_matches('"').to_string();
        if !is_file_name(&etag) {
            return Err(refused(format!("the hub's etag {etag:?} of {name} is not a valid file name")));
        }
        let commit = self.commit_in(headers)?;
        let commit = commit.ok_or_else(|| refused(format!("the hub does not name the commit of {name}")))?;
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let size = size.and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| refused(format!("the hub does not give the size of {name}")))?;
        Ok(About { etag, commit, size, stored: headers.contains_key("x-xet-hash") })
    }

    fn commit_in(&self, headers: &HeaderMap) -> Result<Option<String>> {
        match text(headers, "x-repo-commit") {
            Some(commit) if !is_commit(&commit) => {
                let problem = format!("the hub's commit {commit:?} is not 40 hexadecimal digits");
                Err(self.repository.error(HubErrorKind::Refused, problem))
            }
            commit => Ok(commit),
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_string())
}

/// The Retry-After of the hub, in seconds.
fn pause_in(headers: &HeaderMap) -> Option<Duration> {
    Some(Duration::from_secs(text(headers, RETRY_AFTER.as_str())?.parse().ok()?))
}
