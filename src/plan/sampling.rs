//! How an epoch draws its samples.

use serde::{Deserialize, Serialize};

/// How an epoch draws its samples. Every epoch has as many draws as there are samples.
///
/// ```
/// use candle_finetune::{Optimizer, Phase, Plan, Sampling};
/// let plan = Plan::new(vec![Phase::new(5, Optimizer::adamw(1e-3))]).sampling(Sampling::Balanced);
/// # let _ = plan;
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Sampling {
    /// Each sample once.
    #[default]
    Shuffled,
    /// Each class equally often: samples of rare classes are drawn several times, some of frequent classes not at all. A
    /// sample with several labels counts for the rarest of them, and samples without labels form a class of their own.
    Balanced,
    /// Each sample in proportion to the weight of its class, in the order of the classes; of several labels, the largest
    /// weight. A class of weight 0 is left out. A sample without labels has the mean of the weights.
    Weighted(Vec<f64>),
}

impl Sampling {
    pub(crate) fn is_shuffled(&self) -> bool {
        *self == Self::Shuffled
    }
}
