//! Cache keys.

/// The key of one row of features: equal keys mean equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RowKey {
    /// The extractor and the cut: the blocks, their weights, the input before them, and the type of what is stored.
    pub extractor: u64,
    /// The sample, by [`Dataset::fingerprint`](crate::Dataset::fingerprint).
    pub sample: u64,
    /// The random augmentation of the sample; 0 if there is none.
    pub view: u64,
}
