//! Images and labels, on their way from disk or memory to batches.
//!
//! A [`Dataset`] names its classes and gives sample i; a [`Transform`] makes the network's input of an image; a
//! [`Loader`] runs both on threads of its own, ahead of whoever takes the batches.

mod augment;
mod batch;
#[cfg(feature = "image")]
mod decode;
#[cfg(feature = "image")]
mod folder;
mod image;
mod loader;
mod memory;
mod resample;
mod split;
mod transform;

pub use augment::Augment;
pub use batch::{Batch, Targets};
pub(crate) use batch::{Features, batch_count, batch_end, largest};
#[cfg(feature = "image")]
pub use folder::{Duplicates, FolderLayout, FolderOptions, ImageFolder, Splits};
pub use image::Image;
pub use loader::{Batches, Loader};
pub use memory::{TensorDataset, VecDataset};
pub use split::{Subset, k_fold, split};
pub use transform::Transform;

use crate::Result;
use candle_core::Tensor;
use std::sync::Arc;

/// What a network is trained or evaluated on: samples by index, each with its target.
///
/// Implement it for your own data. A type that is also `Clone + 'static` can be trained on directly; keep what is
/// large behind an [`Arc`], so that a clone is cheap. Samples are asked for from several threads at once.
///
/// ```
/// use candle_finetune::{Dataset, Image, Result, Sample, Target};
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
///     fn target(&self, i: usize) -> Target {
///         Target::Class((i % 2) as u32)
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
pub trait Dataset: Send + Sync {
    /// The number of samples.
    fn len(&self) -> usize;

    /// The names of the classes; the class id of a [`Target`] is the index into it.
    fn classes(&self) -> &[String];

    /// The target of sample `i`, which is below [`len`](Self::len). It should cost nothing.
    fn target(&self, i: usize) -> Target;

    /// Sample `i`, which is below [`len`](Self::len). Here images are read and decoded.
    fn sample(&self, i: usize) -> Result<Sample>;

    /// The group of sample `i`, if it has one: samples of one group (frames of one video, photos of one patient)
    /// are never spread over training and validation.
    fn group(&self, i: usize) -> Option<u32> {
        let _ = i;
        None
    }

    /// What to call sample `i` in messages: its file, where it has one.
    fn name(&self, i: usize) -> String {
        format!("sample {i}")
    }

    /// How many samples were left out because they cannot be read. A run adds up those of its training and its
    /// validation data, so two parts of one dataset must not both count the same.
    fn skipped(&self) -> usize {
        0
    }

    /// What sample `i` is, as a number: samples of equal fingerprints are taken to be the same, in whatever dataset.
    ///
    /// With it, what frozen blocks make of the sample is shared between runs, folds and strategies
    /// ([`FeatureCache`](crate::FeatureCache)); with `None`, each run computes that for itself.
    fn fingerprint(&self, i: usize) -> Option<u64> {
        let _ = i;
        None
    }

    /// The number that chance goes by when sample `i` is varied. A part of a dataset gives the number in the whole, so
    /// that a sample has the same views in every fold.
    fn origin(&self, i: usize) -> usize {
        i
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
            fn target(&self, i: usize) -> Target {
                (**self).target(i)
            }
            fn sample(&self, i: usize) -> Result<Sample> {
                (**self).sample(i)
            }
            fn group(&self, i: usize) -> Option<u32> {
                (**self).group(i)
            }
            fn name(&self, i: usize) -> String {
                (**self).name(i)
            }
            fn skipped(&self) -> usize {
                (**self).skipped()
            }
            fn fingerprint(&self, i: usize) -> Option<u64> {
                (**self).fingerprint(i)
            }
            fn origin(&self, i: usize) -> usize {
                (**self).origin(i)
            }
            fn is_empty(&self) -> bool {
                (**self).is_empty()
            }
        }
    )*};
}
forward_dataset!(&D, Box<D>, Arc<D>);

/// What a sample should be recognised as.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// One class.
    Class(u32),
    /// A probability for each class.
    Soft(Vec<f32>),
    /// Any number of classes at once.
    Labels(Vec<u32>),
}

/// What a network sees of one item.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Sample {
    /// An image, which the transform resizes, augments and normalises.
    Image(Image),
    /// A tensor (C, H, W), f32, already what the network wants: no transform, no augmentation is applied.
    Tensor(Tensor),
}
