//! Connections to the hub for one repository. A client is immutable and does not use the cache.

use super::repository::Repository;
use super::settings::Settings;
use crate::error::{BoxError, HubErrorKind, Result};
use hf_hub::HFClient;

/// Asks the hub about one repository, and turns its refusals into errors.
pub(super) struct Client {
    pub settings: Settings,
    pub repository: Repository,
    /// For metadata requests. It follows no redirection, since the first response holds the metadata.
    pub http: reqwest::Client,
    /// For downloads and commits.
    pub hf: HFClient,
}

impl Client {
    pub fn new(settings: Settings, repository: Repository) -> Result<Self> {
        let failed =
            |cause: BoxError| repository.error_from(HubErrorKind::Refused, "the connection cannot be set up", cause);
        let agent = concat!("candle-finetune/", env!("CARGO_PKG_VERSION"));
        let http = reqwest::Client::builder().user_agent(agent).redirect(reqwest::redirect::Policy::none()).build();
        let http = http.map_err(|error| failed(error.into()))?;
        // The retries are ours, which honour Retry-After.
        let hf = HFClient::builder().endpoint(&settings.endpoint).user_agent(agent);
        let hf = hf.cache_enabled(false).retry_max_attempts(0);
        // Given no token, hf-hub searches for one in places that the settings rule out. No header can hold this one.
        let hf = hf.token(settings.token.as_deref().unwrap_or("\n"));
        let hf = hf.build().map_err(|error| failed(error.into()))?;
        Ok(Self { settings, repository, http, hf })
    }
}
