//! The Hugging Face hub: files of a repository, downloaded into the cache that Python's libraries share, each verified
//! before it is used; and uploads.

mod answer;
mod ask;
mod cache;
mod checksum;
mod client;
mod failure;
mod fetch;
mod push;
mod remote;
mod repository;
mod runtime;
mod settings;
mod transfer;

#[cfg(test)]
mod tests;

pub use push::HubUpload;
pub use remote::HubDownload;
pub(crate) use remote::Remote;

use crate::error::Result;
use client::Client;
use fetch::Fetcher;
use repository::Repository;
use settings::Settings;
use std::path::PathBuf;
use tokio::runtime::Runtime;

/// The files of a repository at one commit.
pub(crate) struct Files<'a> {
    fetcher: Fetcher,
    runtime: &'a Runtime,
}

impl Files<'_> {
    /// The path of a file in the cache, downloaded and verified if need be; `None` if the repository has no such file.
    pub fn get(&mut self, name: &str) -> Result<Option<PathBuf>> {
        self.runtime.block_on(self.fetcher.get(name))
    }

    /// `owner/name`.
    pub fn id(&self) -> String {
        self.fetcher.repository().id()
    }

    /// The repository's name in messages: `owner/name`, with `@revision` where it is not `main`.
    pub fn label(&self) -> String {
        self.fetcher.repository().to_string()
    }
}

impl Remote {
    /// Runs `work` with the repository's files. If it fails because files are missing offline, the error says so.
    pub fn with_files<T: Send>(&self, work: impl FnOnce(&mut Files<'_>) -> Result<T> + Send) -> Result<T> {
        self.with_settings(Settings::resolve(self, |name| std::env::var(name).ok())?, work)
    }

    fn with_settings<T: Send>(
        &self,
        settings: Settings,
        work: impl FnOnce(&mut Files<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        let repository = Repository::parse(&self.id, self.revision.as_deref())?;
        let listener = self.listener.clone();
        runtime::with_runtime(move |runtime| {
            let fetcher = Fetcher::new(Client::new(settings, repository)?, listener);
            let mut files = Files { fetcher, runtime };
            let outcome = work(&mut files);
            files.fetcher.explain(outcome)
        })
    }
}
