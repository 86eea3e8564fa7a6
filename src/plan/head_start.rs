//! How the head starts.

use serde::{Deserialize, Serialize};

/// How the head starts: at random, or fitted in closed form to the features of the frozen network before the first
/// phase.
///
/// A fit costs one pass of the training images through the network, without augmentation, and some matrix products.
/// The features that it looks at take 512 MB at most; of more images it takes a sample, the same fraction of each
/// class. It is ridge regression, whose penalty is the best for samples that are left out (whole groups at a time), and
/// whose answers are scaled to logits. The validation of the fitted head counts as epoch 0
/// ([`Session::offer_start`](crate::Session::offer_start)): a training that makes it worse falls back to it.
///
/// The plan's version covers its serialised form.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{Device, Tensor}};
/// use candle_finetune::{FineTuner, HeadStart, Plan};
///
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// let plan = Plan::new(vec![]).head_start(HeadStart::Stages); // no phase: the fitted head is the result
/// let tuned = FineTuner::new(backbone).plan(plan).fit(&train, &valid)?;
/// assert_eq!(tuned.report.best_epoch, Some(0));
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum HeadStart {
    /// Randomly initialised, or the original classifier ([`Head::original`](crate::Head::original)).
    #[default]
    Random,
    /// A linear head, fitted to the network's features. With phases that train the backbone this is linear probing and
    /// then fine-tuning (Kumar et al. 2022, arXiv 2202.10054): no phase for the head alone is needed.
    Probe,
    /// A linear head over the features of all stages, of which the most useful columns are kept
    /// ([`HeadKind::Stages`](crate::HeadKind::Stages)). Its plan has no phases.
    Stages,
}

impl HeadStart {
    #[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
    pub(super) fn is_random(&self) -> bool {
        *self == Self::Random
    }
}
