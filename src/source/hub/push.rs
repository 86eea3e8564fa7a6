//! Uploads.

use super::answer::Answer;
use super::cache::Cache;
use super::client::Client;
use super::remote::Remote;
use super::repository::{Repository, is_commit};
use super::runtime::with_runtime;
use super::settings::Settings;
use super::transfer::Downloader;
use crate::error::{Error, HubErrorKind, Result};
use hf_hub::repository::CommitOperation;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// The slowest upload that is waited for, in bytes per second.
const SLOWEST: u64 = 20_000;

/// The destination of an upload on the hub, with its options.
///
/// ```
/// use candle_finetune::HubUpload;
/// let to = HubUpload::to("me/ants-bees").create().private().message("Ants and bees");
/// ```
#[derive(Debug, Clone)]
pub struct HubUpload {
    remote: Remote,
    id: String,
    create: bool,
    private: bool,
    message: String,
}

impl HubUpload {
    /// The repository `owner/name`, or a branch of it as `owner/name@branch`.
    pub fn to(id: impl Into<String>) -> Self {
        let id = id.into();
        let remote = Remote::new(id.clone());
        Self { remote, id, create: false, private: false, message: "Upload of a predictor".into() }
    }

    /// Creates the repository if it does not exist.
    pub fn create(mut self) -> Self {
        self.create = true;
        self
    }

    /// Makes a repository that is created here private. An existing one stays as it is.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Sets the commit's message.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Sets the token. By default it comes from the environment, as for [`Source::hub`](crate::Source::hub).
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.remote.token = Some(token.into());
        self
    }

    /// Sets the hub's address, for a mirror or another hub.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.remote.endpoint = Some(url.into());
        self
    }

    /// The repository without a branch.
    pub(crate) fn id(&self) -> &str {
        let plain = self.id.strip_prefix("hf-hub:").unwrap_or(&self.id);
        plain.split('@').next().unwrap_or_default()
    }

    /// Checks before training what could fail after it: the repository's name, the token, whether the hub can be
    /// reached and the repository exists. With [`HubUpload::create`] the repository is created now, which also proves
    /// that the token may write; without, only the push itself shows whether the token may write.
    ///
    /// # Errors
    /// [`Error::Hub`], as [`Predictor::push_to_hub`](crate::Predictor::push_to_hub).
    pub fn check(&self) -> Result<()> {
        let (settings, repository) = self.resolve()?;
        if settings.token.is_none() {
            let problem = "a push needs a token; set HF_TOKEN, or log in with `hf auth login`";
            return Err(repository.error(HubErrorKind::Denied, problem));
        }
        with_runtime(move |runtime| {
            let client = Client::new(settings, repository)?;
            runtime.block_on(async {
                self.create_with(&client).await?;
                let revision = &client.repository.revision;
                match client.ask(revision, "README.md", false).await {
                    // A new repository has no files yet, and no branch either.
                    Err(Error::Hub { kind: HubErrorKind::NotFound, .. }) if self.create && revision == "main" => Ok(()),
                    answer => answer.map(drop),
                }
            })
        })
    }

    /// The settings and the repository. An error if nothing can be pushed there.
    fn resolve(&self) -> Result<(Settings, Repository)> {
        let settings = Settings::resolve(&self.remote, |name| std::env::var(name).ok())?;
        let repository = Repository::parse(&self.id, None)?;
        if settings.offline {
            let problem = "HF_HUB_OFFLINE is set, but a push needs the network";
            return Err(repository.error(HubErrorKind::Offline, problem));
        }
        if repository.commit().is_some() {
            return Err(repository.error(HubErrorKind::Refused, "a commit cannot be changed; push to a branch"));
        }
        Ok((settings, repository))
    }

    /// Creates the repository if [`HubUpload::create`] asks for it and it does not exist.
    async fn create_with(&self, client: &Client) -> Result<()> {
        if !self.create {
            return Ok(());
        }
        let id = client.repository.id();
        let request = client.hf.create_repository().repo_id(&id).repo_type(hf_hub::RepoTypeModel);
        let created =
            timeout(client.settings.request_timeout, request.private(self.private).exist_ok(true).send()).await;
        let slow = |_| client.repository.error(HubErrorKind::Busy, "creating the repository took too long; try again");
        created.map_err(slow)?.map_err(|error| client.error(error)).map(drop)
    }

    /// Uploads these files of a folder as one commit and checks that they arrived. Returns the commit's address. An
    /// existing model card is kept unless `is_ours` returns true for it.
    pub(crate) fn push(&self, folder: &Path, files: &[&str], is_ours: fn(&[u8]) -> bool) -> Result<String> {
        let (settings, repository) = self.resolve()?;
        // The card as it is now decides, not the one in the user's cache.
        let scratch = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let cache = Cache::new(scratch.path(), &repository);
        let address = format!("{}/{}", settings.endpoint, repository.id());
        let (create, message) = (self.create, self.message.clone());
        with_runtime(move |runtime| {
            let client = Client::new(settings, repository)?;
            let repository = &client.repository;
            runtime.block_on(async {
                self.create_with(&client).await?;
                let card = match client.ask(&repository.revision, "README.md", false).await {
                    Ok(Answer::File(about)) => {
                        let mut downloads = Downloader::new(None);
                        let path = downloads.download(&client, &cache, &about.commit, "README.md", &about).await?;
                        Some(std::fs::read(&path).map_err(Error::io("read", path))?)
                    }
                    Ok(Answer::Absent(_)) => None,
                    // It has just been created and is empty.
                    Err(Error::Hub { kind: HubErrorKind::NotFound, .. }) if create => None,
                    Err(error) => return Err(error),
                };
                let stays = |name: &str| name == "README.md" && card.as_ref().is_some_and(|card| !is_ours(card));
                let files: Vec<&str> = files.iter().copied().filter(|name| !stays(name)).collect();
                let mut bytes = 0;
                for name in &files {
                    let path = folder.join(name);
                    bytes += std::fs::metadata(&path).map_err(Error::io("read", path))?.len();
                }
                let adds = files.iter().map(|name| CommitOperation::add_file(*name, folder.join(name))).collect();
                let model = client.hf.model(&repository.owner, &repository.name);
                let commit = model.create_commit().operations(adds).commit_message(message);
                // An upload's progress is not visible here, so one that is slower than this counts as dead.
                let longest = client.settings.download_timeout + Duration::from_secs(bytes / SLOWEST);
                let commit = timeout(longest, commit.revision(&repository.revision).send()).await;
                let slow = |_| repository.error(HubErrorKind::Busy, "the upload took too long; try again");
                let commit = commit.map_err(slow)?.map_err(|error| client.error(error))?;
                let pushed = commit.commit_oid.clone().filter(|oid| is_commit(oid));
                let pushed = pushed.unwrap_or_else(|| repository.revision.clone());
                for name in files {
                    if !client.has(&pushed, name, &folder.join(name)).await? {
                        let problem = format!("{name} was uploaded, but the hub now has another file under this name");
                        return Err(repository.error(HubErrorKind::Damaged, problem));
                    }
                }
                Ok(commit.commit_url.unwrap_or(address))
            })
        })
    }
}
