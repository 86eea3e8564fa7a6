//! From this machine to the hub.

use super::ask::Answer;
use super::fetch::Fetcher;
use super::settings::Settings;
use super::{Remote, Repository, apart, is_commit};
use crate::error::{Error, HubError, Result};
use hf_hub::repository::CommitOperation;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// Bytes a second that an upload must make.
const SLOWEST: u64 = 20_000;

/// Where to put a predictor on the hub, and how.
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

    /// Lets nobody else see it. For one that is created here; one that is there stays as it is.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Sets the commit's message.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Sets the token; otherwise it is that of the environment, as for [`Source::hub`](crate::Source::hub).
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.remote.token = Some(token.into());
        self
    }

    /// Sets the hub's address, for a hub of one's own.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.remote.endpoint = Some(url.into());
        self
    }

    /// The repository without a branch.
    pub(crate) fn id(&self) -> &str {
        let plain = self.id.strip_prefix("hf-hub:").unwrap_or(&self.id);
        plain.split('@').next().unwrap_or_default()
    }

    /// Checks before a training what would fail after it: the name, the token, whether the hub can be reached and the
    /// repository is there. With [`HubUpload::create`] the repository is created now, which also proves that the token may
    /// write; without, that the token may write shows in the push alone.
    ///
    /// # Errors
    /// [`Error::Hub`], as [`Predictor::push_to_hub`](crate::Predictor::push_to_hub).
    pub fn check(&self) -> Result<()> {
        let (settings, repository) = self.resolve()?;
        let scratch = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let settings = Settings { cache: scratch.path().to_path_buf(), ..settings };
        if settings.token.is_none() {
            let problem = "nothing can be pushed without a token; set HF_TOKEN, or log in with `hf auth login`";
            return Err(repository.error(HubError::Denied, problem));
        }
        apart(move |runtime| {
            let fetcher = Fetcher::new(settings, repository.clone(), None)?;
            runtime.block_on(async {
                self.create_on(&fetcher, &repository).await?;
                match fetcher.ask(&repository.revision, "README.md", false).await {
                    // One that was just created has no files, and no branch either.
                    Err(Error::Hub { kind: HubError::NotFound, .. })
                        if self.create && repository.revision == "main" =>
                    {
                        Ok(())
                    }
                    answer => answer.map(drop),
                }
            })
        })
    }

    /// The hub's settings and the repository, if anything can be pushed there.
    fn resolve(&self) -> Result<(Settings, Repository)> {
        let settings = Settings::resolve(&self.remote, |name| std::env::var(name).ok())?;
        let repository = Repository::parse(&self.id, None)?;
        if settings.offline {
            let problem = "HF_HUB_OFFLINE is set, and nothing can be pushed without a network";
            return Err(repository.error(HubError::Offline, problem));
        }
        if repository.commit().is_some() {
            return Err(repository.error(HubError::Refused, "a commit never changes; push to a branch"));
        }
        Ok((settings, repository))
    }

    /// Creates the repository if that is wanted; one that is there already is fine.
    async fn create_on(&self, fetcher: &Fetcher, repository: &Repository) -> Result<()> {
        if !self.create {
            return Ok(());
        }
        let (client, id) = (fetcher.client().clone(), repository.id());
        let made = client.create_repository().repo_id(&id).repo_type(hf_hub::RepoTypeModel);
        let made = timeout(fetcher.settings.patience, made.private(self.private).exist_ok(true).send()).await;
        let slow = |_| repository.error(HubError::Busy, "creating it took too long; try again");
        made.map_err(slow)?.map_err(|error| fetcher.error(error)).map(drop)
    }

    /// Puts these files of a folder there as one commit, and looks whether they have arrived.
    /// A model card that is there stays, unless `is_ours` says that it may be replaced.
    pub(crate) fn push(&self, folder: &Path, files: &[&str], is_ours: fn(&[u8]) -> bool) -> Result<String> {
        let (mut settings, repository) = self.resolve()?;
        // What is there now decides, not what is known of it from earlier.
        let scratch = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        settings.cache = scratch.path().to_path_buf();
        let address = format!("{}/{}", settings.endpoint, repository.id());
        let (create, message) = (self.create, self.message.clone());
        apart(move |runtime| {
            let stall = settings.stall;
            let mut fetcher = Fetcher::new(settings, repository.clone(), None)?;
            let slow = |what: &str| repository.error(HubError::Busy, format!("{what} took too long; try again"));
            runtime.block_on(async {
                let client = fetcher.client().clone();
                self.create_on(&fetcher, &repository).await?;
                let card = match fetcher.ask(&repository.revision, "README.md", false).await {
                    Ok(Answer::File(about)) => {
                        let path = fetcher.download(&about.commit, "README.md", &about).await?;
                        Some(std::fs::read(&path).map_err(Error::io("read", path))?)
                    }
                    Ok(Answer::Absent(_)) => None,
                    // It was made a moment ago, and nothing is in it.
                    Err(Error::Hub { kind: HubError::NotFound, .. }) if create => None,
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
                let model = client.model(&repository.owner, &repository.name);
                let commit = model.create_commit().operations(adds).commit_message(message);
                // Nobody can tell here how far it is; so slow a line is taken for a dead one.
                let longest = stall + Duration::from_secs(bytes / SLOWEST);
                let commit = timeout(longest, commit.revision(&repository.revision).send()).await;
                let commit = commit.map_err(|_| slow("the upload"))?.map_err(|error| fetcher.error(error))?;
                let pushed = commit.commit_oid.clone().filter(|oid| is_commit(oid));
                let pushed = pushed.unwrap_or_else(|| repository.revision.clone());
                for name in files {
                    if !fetcher.has(&pushed, name, &folder.join(name)).await? {
                        let problem = format!("{name} was sent, but what the hub has of it now is another file");
                        return Err(repository.error(HubError::Damaged, problem));
                    }
                }
                Ok(commit.commit_url.unwrap_or(address))
            })
        })
    }
}
