//! The settings that a session starts with.

use super::listener::Listener;
use super::position::Stop;
use crate::backbone::Backbone;
use crate::features::FeatureCache;
use crate::head::Head;
use crate::metrics::Metric;
use crate::plan::Plan;
use crate::strategy::Strategy;

/// Everything a session needs besides its training data.
pub(super) struct Setup {
    pub backbone: Backbone,
    pub head: Head,
    pub plan: Plan,
    pub strategy: Option<Strategy>,
    pub overrides: Vec<String>,
    /// Seconds that the advice took before the run.
    pub advice_seconds: f64,
    pub seed: u64,
    pub workers: Option<usize>,
    pub cache: FeatureCache,
    pub audit: bool,
    /// What chooses the best epoch, if it is set.
    pub metric: Option<Metric>,
    pub listener: Listener,
    /// Where each phase ends, if not with its epochs.
    pub stops: Option<Vec<Stop>>,
}
