//! Images and labels, from disk or memory to batches.
//!
//! A [`Dataset`] names its classes and gives sample i; a [`Transform`] turns an image into the network's input; a
//! [`Loader`] runs both on its own threads, ahead of the consumer of the batches.

mod augment;
mod batch;
#[cfg(feature = "image")]
mod decode;
#[cfg(feature = "image")]
mod encode;
#[cfg(feature = "image")]
mod folder;
mod image;
mod info;
mod joined;
mod loader;
mod memory;
mod mix;
mod resample;
mod split;
mod strata;
mod transform;

pub use augment::Augment;
pub use batch::{Batch, Targets};
pub(crate) use batch::{Inputs, batch_count, batch_end, check_target, largest};
#[cfg(feature = "image")]
pub use folder::{CsvOptions, Duplicates, FolderLayout, FolderOptions, ImageFolder, Splits};
pub use image::Image;
pub use info::SampleInfo;
pub use joined::Joined;
pub use loader::{Batches, Loader};
pub use memory::{TensorDataset, VecDataset};
pub(crate) use mix::mix;
#[cfg(feature = "plots")]
pub(crate) use resample::resized;
pub(crate) use split::folds;
pub use split::{Subset, k_fold, split};
pub(crate) use strata::strata;
pub use transform::Transform;
#[cfg(feature = "plots")]
pub(crate) use transform::visible;

use crate::Result;
use candle_core::Tensor;
use std::sync::Arc;

/// The data that a network is trained or evaluated on: samples by index, each with its target.
///
/// Implement it for your own data. A type that is also `Clone + 'static` can be trained on directly; keep large
/// data in an [`Arc`], so that a clone is cheap. Several threads read samples at once.
///
/// ```
/// use candle_finetune::{Dataset, Image, Result, Sample, SampleInfo, Target};
///
/// /// Black and white squares.
/// #[derive(Clone)]
/// struct Squares {
///     classes: Vec<String>,
/// }
///
/// impl Dataset for Squares {
///     fn len(&self) -> usize {
///         100
///     }
///     fn classes(&self) -> &[String] {
///         &self.classes
///     }
///     fn info(&self, i: usize) -> SampleInfo<'_> {
///         SampleInfo::new(i, Target::Class((i % 2) as u32))
///     }
///     fn sample(&self, i: usize) -> Result<Sample> {
///         let level = if i % 2 == 0 { 0 } else { 255 };
///         Ok(Sample::Image(Image::new(8, 8, 3, vec![level; 8 * 8 * 3])?))
///     }
/// }
///
/// let squares = Squares { classes: vec!["black".into(), "white".into()] };
/// let (train, valid) = candle_finetune::split(&squares, 0.15, 0)?;
/// assert_eq!((train.len(), valid.len()), (84, 16));
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// # Wrappers
/// A dataset over another one forwards the four required methods; groups, names and augmentation travel within
/// [`SampleInfo`]. Each provided method has a default that is safe for every wrapper: without
/// [`skipped`](Self::skipped) the count in a report is unknown, and without [`fingerprint`](Self::fingerprint)
/// features are computed once more. To select samples, use [`Subset`].
pub trait Dataset: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// The names of the classes; the class id of a [`Target`] is the index into it.
    fn classes(&self) -> &[String];

    /// The metadata of sample `i`, without reading it: its target, group and name. `i` is below [`len`](Self::len).
    ///
    /// Splits call it for every sample, so it should read no file and allocate little.
    fn info(&self, i: usize) -> SampleInfo<'_>;

    /// Reads and decodes sample `i`, which is below [`len`](Self::len).
    fn sample(&self, i: usize) -> Result<Sample>;

    /// A hash of the result of [`sample`](Self::sample) for `i`: samples of equal fingerprints are taken to be the
    /// same, in any dataset.
    ///
    /// With it, runs, folds and strategies share the features of frozen blocks
    /// ([`FeatureCache`](crate::FeatureCache)); with `None`, the default, each run computes its own. A wrapper forwards
    /// it only if it returns the samples unchanged: otherwise it would get the features of the original ones.
    fn fingerprint(&self, i: usize) -> Option<u64> {
        let _ = i;
        None
    }

    /// How many samples were left out because they cannot be read; `None`, the default, if that is unknown. A run adds
    /// those of its training and its validation data, so two parts of one dataset must not both count the same sample.
    fn skipped(&self) -> Option<usize> {
        None
    }

    /// Whether there are no samples.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

macro_rules! forward_dataset {
    ($($pointer:ty),*) => {$(
        impl<D: Dataset + ?Sized> Dataset for $pointer {
            fn len(&self) -> usize {
                (**self).len()
            }
            fn classes(&self) -> &[String] {
                (**self).classes()
            }
            fn info(&self, i: usize) -> SampleInfo<'_> {
                (**self).info(i)
            }
            fn sample(&self, i: usize) -> Result<Sample> {
                (**self).sample(i)
            }
            fn fingerprint(&self, i: usize) -> Option<u64> {
                (**self).fingerprint(i)
            }
            fn skipped(&self) -> Option<usize> {
                (**self).skipped()
            }
            fn is_empty(&self) -> bool {
                (**self).is_empty()
            }
        }
    )*};
}
forward_dataset!(&D, Box<D>, Arc<D>);

/// The target of a sample: the label that training compares the network's output with.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// One class.
    Class(u32),
    /// A probability for each class.
    Soft(Vec<f32>),
    /// Any number of classes at once (multi-label).
    Labels(Vec<u32>),
}

/// The input of one sample.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Sample {
    /// An image, which the transform resizes, augments and normalises.
    Image(Image),
    /// A tensor (C, H, W), f32, already normalised for the network: neither transformed nor augmented.
    Tensor(Tensor),
}
