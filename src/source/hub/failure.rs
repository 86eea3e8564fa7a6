//! Failures of the hub and of the connection, as errors with a remedy.

use super::client::Client;
use super::repository::Repository;
use crate::error::{BoxError, Error, HubErrorKind};
use hf_hub::HFError;
use reqwest::StatusCode;
use std::time::Duration;

/// Why an attempt failed.
pub(super) enum Failure {
    /// A retry may succeed, after the hub's Retry-After.
    Retry(Error, Option<Duration>),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Client {
    /// The error for a failure of hf-hub.
    pub fn error(&self, error: HFError) -> Error {
        match self.failure(error) {
            Failure::Retry(error, _) | Failure::Final(error) => error,
        }
    }

    pub fn stalled(&self, name: &str) -> Failure {
        let problem = format!("no data of {name} arrived for {:?}", self.settings.download_timeout);
        Failure::Retry(self.repository.error(HubErrorKind::Busy, problem), None)
    }

    pub fn interrupted(&self, name: &str, done: u64, total: u64, cause: Option<HFError>) -> Failure {
        let failed = match cause {
            Some(HFError::Xet { .. }) => "the hub's store of large files failed",
            _ => "the connection was lost",
        };
        let problem = format!("{failed} at {done} of {total} bytes of {name}; the next attempt resumes there");
        Failure::Retry(
            match cause {
                Some(cause) => self.repository.error_from(HubErrorKind::Busy, problem, chain(&cause)),
                None => self.repository.error(HubErrorKind::Busy, problem),
            },
            None,
        )
    }

    pub fn unreachable(&self, cause: impl Into<BoxError>) -> Failure {
        let problem = format!("the hub at {} cannot be reached", self.settings.endpoint);
        Failure::Retry(self.repository.error_from(HubErrorKind::Offline, problem, chain(&*cause.into())), None)
    }

    /// The failure for an answer without a file, from its status, the hub's error code and message, and the pause that
    /// the hub asks for.
    pub fn refusal(&self, status: StatusCode, code: Option<&str>, message: &str, after: Option<Duration>) -> Failure {
        let Repository { revision, .. } = &self.repository;
        let (id, endpoint) = (self.repository.id(), &self.settings.endpoint);
        let said = if message.is_empty() { String::new() } else { format!(" (the hub: {message})") };
        let anonymous = self.settings.token.is_none();
        let token = if anonymous { "set HF_TOKEN or Source::token" } else { "check whose token it is" };
        let (kind, problem) = match (status.as_u16(), code) {
            (401 | 403 | 404, Some("RepoNotFound")) | (404, None) => {
                let there = format!("there is no repository {id} with a revision {revision} at {endpoint}");
                (HubErrorKind::NotFound, format!("{there}, or it is private ({token}){said}"))
            }
            (404, Some("RevisionNotFound")) => {
                (HubErrorKind::NotFound, format!("{id} has no branch, tag or commit {revision}{said}"))
            }
            (401 | 403, Some("GatedRepo")) => {
                let ask = format!("ask for access at {endpoint}/{id}, then {token}");
                (HubErrorKind::Denied, format!("access is restricted: {ask}{said}"))
            }
            (401, _) => (HubErrorKind::Denied, format!("authentication required: {token}{said}")),
            (403, _) => {
                let ask = format!("ask for access at {endpoint}/{id} and {token}");
                (HubErrorKind::Denied, format!("access is forbidden (403): {ask}{said}"))
            }
            (408 | 429 | 500..=599, _) => {
                let wait = after.map_or_else(String::new, |after| format!(" and asks for a pause of {after:?}"));
                let problem = format!("the hub keeps answering {status}{wait}; try again later{said}");
                return Failure::Retry(self.repository.error(HubErrorKind::Busy, problem), after);
            }
            _ => (HubErrorKind::Refused, format!("the hub returned {status}{said}")),
        };
        Failure::Final(self.repository.error(kind, problem))
    }

    /// The failure that hf-hub reports.
    pub fn failure(&self, error: HFError) -> Failure {
        let (context, after) = match error {
            HFError::RateLimited { retry_after, context } => (context, retry_after),
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. }
            | HFError::EntryNotFound { context: Some(context), .. } => (context, None),
            HFError::Request { source, .. } => return self.unreachable(source.without_url()),
            error @ HFError::Xet { .. } => {
                let problem = "the hub's store of large files failed";
                return Failure::Retry(self.repository.error_from(HubErrorKind::Busy, problem, chain(&error)), None);
            }
            error => {
                let problem = "the answer of the hub cannot be understood";
                return Failure::Final(self.repository.error_from(HubErrorKind::Refused, problem, chain(&error)));
            }
        };
        let message = context.server_message.as_deref().unwrap_or_default();
        let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
        self.refusal(context.status, context.error_code.as_deref(), &message, after)
    }
}

/// An error with its chain of causes, which hf-hub leaves out of its own text.
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
    unsigned(&text)
}

/// A text without the query parts of its URLs, since a signed URL grants access to whoever reads it.
fn unsigned(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for (i, part) in text.split('?').enumerate() {
        let signed = i > 0 && kept.rsplit(char::is_whitespace).next().is_some_and(|word| word.contains("://"));
        let end = if signed { part.find([' ', ')', '"', '\n']).unwrap_or(part.len()) } else { 0 };
        kept.push_str(if i > 0 && !signed { "?" } else { "" });
        kept.push_str(&part[end..]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::unsigned;

    #[test]
    fn signatures_are_removed() {
        let text = "failed? (https://cdn.example/a/b?X-Sig=1&k=2) and https://x.example/?q, why?";
        assert_eq!(unsigned(text), "failed? (https://cdn.example/a/b) and https://x.example/ why?");
        assert_eq!(unsigned("nothing"), "nothing");
    }
}
