//! Metadata of a sample, available without decoding it.

use super::Target;
use std::borrow::Cow;
use std::fmt;

/// Metadata of one sample of a [`Dataset`](crate::Dataset), available without reading it.
///
/// A wrapping dataset can forward it unchanged: [`split`](crate::split) keeps groups together, messages name the
/// right sample, and each sample is augmented in the same way in every fold. Change what should differ:
///
/// ```
/// use candle_finetune::{Dataset, Result, Sample, SampleInfo, Target};
///
/// /// Two classes out of many: cats, and everything else.
/// #[derive(Clone)]
/// struct Cats<D> {
///     all: D,
///     classes: Vec<String>,
/// }
///
/// impl<D: Dataset> Dataset for Cats<D> {
///     fn len(&self) -> usize {
///         self.all.len()
///     }
///     fn classes(&self) -> &[String] {
///         &self.classes
///     }
///     fn info(&self, i: usize) -> SampleInfo<'_> {
///         let mut info = self.all.info(i);
///         let is_cat = matches!(info.target, Target::Class(id) if self.all.classes()[id as usize] == "cat");
///         info.target = Target::Class(u32::from(!is_cat));
///         info
///     }
///     fn sample(&self, i: usize) -> Result<Sample> {
///         self.all.sample(i)
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SampleInfo<'a> {
    /// The index in the dataset that made this, which messages use for a sample without a name.
    pub index: usize,
    /// The target.
    pub target: Target,
    /// The sample's group, if it has one: samples of one group (frames of one video, photos of one patient) are never
    /// spread over training and validation.
    pub group: Option<u32>,
    /// The sample's name in messages: its file, if it has one. Borrowed where possible, so that a pass over all
    /// samples allocates nothing.
    pub name: Option<Cow<'a, str>>,
    /// The index that seeds the sample's augmentation, [`index`](Self::index) unless it was set. A part of a dataset
    /// keeps the index in the whole, so that a sample has the same views in every fold.
    pub augment_index: usize,
}

impl<'a> SampleInfo<'a> {
    /// Sample `index` of a dataset, with its target; no group and no name.
    pub fn new(index: usize, target: Target) -> Self {
        Self { index, target, group: None, name: None, augment_index: index }
    }

    /// Sets the group.
    pub fn group(mut self, group: u32) -> Self {
        self.group = Some(group);
        self
    }

    /// Sets the sample's name in messages.
    pub fn name(mut self, name: impl Into<Cow<'a, str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the index that seeds the augmentation.
    pub fn augment_index(mut self, index: usize) -> Self {
        self.augment_index = index;
        self
    }
}

/// The sample's name in messages, or `sample 5`.
impl fmt::Display for SampleInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "sample {}", self.index),
        }
    }
}
