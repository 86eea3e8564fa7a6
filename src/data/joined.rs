//! Two datasets as one.

use super::{Dataset, Sample, SampleInfo};
use crate::error::{Error, Result};
use std::sync::Arc;

/// The samples of one dataset, then those of another of the same classes: training and validation data, to cross-validate
/// over both. A clone is cheap.
///
/// ```
/// # use candle_finetune::{Dataset, TensorDataset, candle_core::{DType, Device, Tensor}};
/// use candle_finetune::Joined;
/// # let images = Tensor::zeros((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// # let train = TensorDataset::new(images, vec![0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// let all = Joined::new(&train, &valid)?;
/// assert_eq!(all.len(), train.len() + valid.len());
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct Joined {
    first: Arc<dyn Dataset>,
    second: Arc<dyn Dataset>,
}

impl Joined {
    /// Both datasets as one. Groups of equal number are one group.
    ///
    /// # Errors
    /// If their classes differ, or are in another order.
    pub fn new<A: Dataset + Clone + 'static, B: Dataset + Clone + 'static>(first: &A, second: &B) -> Result<Self> {
        Self::of(Arc::new(first.clone()), Arc::new(second.clone()))
    }

    /// As [`Joined::new`], compiled once for all kinds of datasets.
    pub(crate) fn of(first: Arc<dyn Dataset>, second: Arc<dyn Dataset>) -> Result<Self> {
        if first.classes() == second.classes() {
            return Ok(Self { first, second });
        }
        let problem = format!(
            "has other classes than the first ({} and {}), or has them in another order; open both with the same labels",
            second.classes().len(),
            first.classes().len()
        );
        Err(Error::invalid("second dataset", problem))
    }

    /// The dataset that holds sample `i`, and its index there.
    fn at(&self, i: usize) -> (&dyn Dataset, usize) {
        match i.checked_sub(self.first.len()) {
            None => (self.first.as_ref(), i),
            Some(i) => (self.second.as_ref(), i),
        }
    }
}

impl Dataset for Joined {
    fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    fn classes(&self) -> &[String] {
        self.first.classes()
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        let (dataset, i) = self.at(i);
        dataset.info(i)
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let (dataset, i) = self.at(i);
        dataset.sample(i)
    }

    fn fingerprint(&self, i: usize) -> Option<u64> {
        let (dataset, i) = self.at(i);
        dataset.fingerprint(i)
    }

    fn skipped(&self) -> Option<usize> {
        Some(self.first.skipped()? + self.second.skipped()?)
    }
}

impl std::fmt::Debug for Joined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Joined({} and {} samples)", self.first.len(), self.second.len())
    }
}
