//! The features of some samples at some cuts of a network.

use super::cache::{FeatureCache, Part, Row};
use super::extractor::{Cut, FeatureExtractor, Output};
use super::key::RowKey;
use crate::data::{Batch, Dataset, Inputs, Targets, batch_end};
use crate::error::{Error, Result};
use crate::ops::is_finite;
use candle_core::{DType, Device, Tensor};
use std::sync::Arc;
use tracing::info_span;

/// The features of samples from a frozen network, at one or more cuts and for each of the fixed views, in memory or in
/// a file.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, TensorDataset, candle_core::{DType, Device, Tensor}};
/// use candle_finetune::{Cut, Dataset, FeatureCache, FeatureSet, FeatureExtractor};
/// use std::sync::Arc;
///
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = Tensor::zeros((3, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// # let data = TensorDataset::new(images, vec![0, 1, 0], vec!["a".into(), "b".into()])?;
/// let data: Arc<dyn Dataset> = Arc::new(data);
/// let extractor = FeatureExtractor::new(&backbone)?;
/// let cuts = [Cut::Stages { pooled: 1 }];
/// let set = FeatureSet::gather(&data, &[0, 2], 1, &extractor, &cuts, &FeatureCache::new())?.expect("room for 2 samples");
/// for (output, stage) in set.outputs().enumerate() {
///     println!("{stage}: {:?}", set.features(output, &[0, 1], 0)?.dims()); // stem: [2, 16] ... layer3: [2, 64]
/// }
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub struct FeatureSet {
    dataset: Arc<dyn Dataset>,
    /// Of the samples, in the dataset.
    indices: Vec<usize>,
    views: usize,
    gathered: Vec<Gathered>,
    /// The network's own type.
    dtype: DType,
    device: Device,
}

/// The rows of one output, by view and then in the order of the samples.
struct Gathered {
    output: Output,
    rows: Vec<Row>,
}

/// How many samples are computed at a time.
const SIZE: usize = 32;

impl FeatureSet {
    /// The features of the samples `indices` of a dataset, each in `views` views (1 without random augmentation), at
    /// each of the cuts: taken from `cache`, or computed in one pass through the network. `None` if
    /// the cache has no room for it, in memory or in a file.
    ///
    /// # Errors
    /// For a cut that the network does not have, an index beyond the dataset, a sample that cannot be read,
    /// [`Error::NotFinite`] for features that are infinite or NaN, and [`Error::Io`] if the cache's file fails.
    pub fn gather(
        dataset: &Arc<dyn Dataset>,
        indices: &[usize],
        views: usize,
        extractor: &FeatureExtractor<'_>,
        cuts: &[Cut],
        cache: &FeatureCache,
    ) -> Result<Option<Self>> {
        Self::gather_with(dataset, indices, views, extractor, cuts, cache, |_, _| {})
    }

    /// As [`FeatureSet::gather`]; `progress` gets how many of the missing samples and views are computed.
    pub(crate) fn gather_with(
        dataset: &Arc<dyn Dataset>,
        indices: &[usize],
        views: usize,
        extractor: &FeatureExtractor<'_>,
        cuts: &[Cut],
        cache: &FeatureCache,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Option<Self>> {
        let _span = info_span!("features", samples = indices.len(), views).entered();
        cache.check()?;
        if views == 0 || (views > 1 && !extractor.is_random()) {
            let problem = format!("{views}; at least 1, and more than 1 only with random augmentation");
            return Err(Error::invalid("views", problem));
        }
        if let Some(i) = indices.iter().find(|&&i| i >= dataset.len()) {
            return Err(Error::invalid("indices", format!("{i} of a dataset of {} samples", dataset.len())));
        }
        let total = indices.len();
        let outputs = extractor.outputs(cuts, cache.stored(extractor.dtype))?;
        let samples: Vec<Option<u64>> = indices.iter().map(|&i| dataset.fingerprint(i)).collect();
        let key = |output: &Output, at: usize| {
            let (view, k) = (at / total, at % total);
            let view = extractor.view(view, dataset.info(indices[k]).augment_index);
            Some(RowKey { extractor: output.made_by, sample: samples[k]?, view })
        };
        let keys: Vec<Vec<Option<RowKey>>> =
            outputs.iter().map(|output| (0..total * views).map(|at| key(output, at)).collect()).collect();
        let mut found: Vec<Vec<Option<Row>>> = keys.iter().map(|keys| cache.find(keys)).collect();
        let lacks = |found: &[Option<Row>], at: usize| found[at].is_none();
        let missing: Vec<usize> = (0..total * views).filter(|&at| found.iter().any(|rows| lacks(rows, at))).collect();
        let of_output: Vec<Vec<usize>> =
            found.iter().map(|rows| missing.iter().copied().filter(|&at| lacks(rows, at)).collect()).collect();
        let mut parts: Vec<Option<Part>> = outputs.iter().map(|_| None).collect();
        let loader = extractor.loader(dataset, SIZE);
        let mut done = 0;
        for view in missing.chunk_by(|a, b| a / total == b / total) {
            let order = view.iter().map(|at| indices[at % total]).collect();
            let mut places = view.iter();
            for batch in loader.batches(order, (view[0] / total) as u64, &extractor.device)? {
                let batch = batch?;
                let places: Vec<usize> = places.by_ref().take(batch.len()).copied().collect();
                let wanted: Vec<usize> =
                    (0..outputs.len()).filter(|&o| places.iter().any(|&at| lacks(&found[o], at))).collect();
                let made = extractor.run(batch.images()?, &wanted.iter().map(|&o| &outputs[o]).collect::<Vec<_>>())?;
                for (&o, features) in wanted.iter().zip(made) {
                    let stored = features.to_dtype(cache.stored(extractor.dtype))?;
                    if extractor.refuses_what_is_not_finite() {
                        check_finite(&features, &stored, dataset.as_ref(), &batch.indices)?;
                    }
                    let stored = only(stored, |row| lacks(&found[o], places[row]))?;
                    if parts[o].is_none() {
                        let row = stored.elem_count() / stored.dim(0)?.max(1) * stored.dtype().size_in_bytes();
                        parts[o] = cache.room(&stored, row.saturating_mul(of_output[o].len()))?;
                    }
                    let Some(part) = &mut parts[o] else { return Ok(None) };
                    part.append(stored)?;
                }
                done += batch.len();
                progress(done, missing.len());
            }
        }
        for (o, part) in parts.into_iter().enumerate() {
            let Some(part) = part else { continue };
            let part = cache.keep(part, &of_output[o].iter().map(|&at| keys[o][at]).collect::<Vec<_>>());
            for (number, &at) in of_output[o].iter().enumerate() {
                found[o][at] = Some(Row { part: Arc::clone(&part), number });
            }
        }
        let gathered = outputs.into_iter().zip(found);
        let gathered = gathered.map(|(output, rows)| Gathered { output, rows: rows.into_iter().flatten().collect() });
        Ok(Some(Self {
            dataset: dataset.clone(),
            indices: indices.to_vec(),
            views,
            gathered: gathered.collect(),
            dtype: extractor.dtype,
            device: extractor.device.clone(),
        }))
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The outputs of all cuts in their order, each by the name of the block or stage before it.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.gathered.iter().map(|gathered| gathered.output.name.as_str())
    }

    /// The features at output number `output` of the samples at the places `at` among those gathered, in view `view`
    /// (modulo the number of views): one row per sample, in the network's type and on its device.
    ///
    /// # Errors
    /// If there is no such output or sample, and [`Error::Io`] if the cache's file cannot be read.
    pub fn features(&self, output: usize, at: &[usize], view: usize) -> Result<Tensor> {
        self.rows(output, at, |_| view)
    }

    /// The same, with the view of each position in `at`.
    fn rows(&self, output: usize, at: &[usize], view: impl Fn(usize) -> usize) -> Result<Tensor> {
        let gathered = self.gathered(output)?;
        if let Some(beyond) = at.iter().find(|&&k| k >= self.len()) {
            return Err(Error::invalid("features", format!("of sample {beyond} of {}", self.len())));
        }
        // Some rows may be in memory and others in a file, which returns half precision as f32, on the CPU.
        let row = |(position, k): (usize, &usize)| {
            let first = view(position) % self.views.max(1) * self.len();
            Ok(gathered.rows[first + k].tensor()?.to_device(&self.device)?.to_dtype(self.dtype)?)
        };
        let rows: Vec<Tensor> = at.iter().enumerate().map(row).collect::<Result<_>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }

    fn gathered(&self, output: usize) -> Result<&Gathered> {
        let count = self.gathered.len();
        self.gathered.get(output).ok_or_else(|| Error::invalid("features", format!("of output {output} of {count}")))
    }

    /// The samples at the places `at` as a batch of features at the first output, instead of images; `view` gives the view
    /// of each position in `at`.
    pub(crate) fn batch(&self, at: &[usize], view: impl Fn(usize) -> usize) -> Result<Batch> {
        let tensor = self.rows(0, at, view)?;
        let indices: Vec<usize> = at.iter().map(|&k| self.indices[k]).collect();
        let targets: Vec<_> = indices.iter().map(|&i| self.dataset.info(i).target).collect();
        let classes = self.dataset.classes().len();
        let targets = Targets::join(&targets, classes, |k| self.dataset.info(indices[k]).to_string(), &self.device)?;
        let inputs = Inputs::Features { tensor, made_by: self.made_by()? };
        Ok(Batch { inputs, targets, indices })
    }

    /// The fingerprint of the features' origin, at the first output.
    pub(crate) fn made_by(&self) -> Result<u64> {
        Ok(self.gathered(0)?.output.made_by)
    }

    /// Bytes of all rows, in memory or in a file.
    pub fn bytes(&self) -> usize {
        self.gathered.iter().flat_map(|gathered| &gathered.rows).map(Row::bytes).sum()
    }

    /// The places of all samples in order, in the loader's batches: other batches might round differently.
    pub(crate) fn in_order(&self, size: usize) -> impl Iterator<Item = Vec<usize>> {
        let (total, mut from) = (self.len(), 0);
        std::iter::from_fn(move || {
            let end = batch_end(from, total, size);
            let places: Vec<usize> = (from..end).collect();
            from = end;
            (!places.is_empty()).then_some(places)
        })
    }
}

/// The rows for which `keep` is true, of which there is at least one.
fn only(features: Tensor, keep: impl Fn(usize) -> bool) -> Result<Tensor> {
    let rows = features.dim(0)?;
    let kept: Vec<usize> = (0..rows).filter(|&row| keep(row)).collect();
    if kept.len() == rows {
        return Ok(features);
    }
    let rows: Vec<Tensor> = kept.iter().map(|&row| features.narrow(0, row, 1)).collect::<candle_core::Result<_>>()?;
    Ok(Tensor::cat(&rows, 0)?)
}

/// Refuses features that are useless for training: not finite as computed, or as cached in a narrower type.
fn check_finite(computed: &Tensor, stored: &Tensor, dataset: &dyn Dataset, indices: &[usize]) -> Result<()> {
    if is_finite(stored)? {
        return Ok(());
    }
    if is_finite(computed)? {
        let problem = format!("{:?} cannot hold these features, which are too large; use BF16 or F32", stored.dtype());
        return Err(Error::invalid("feature cache's dtype", problem));
    }
    for (row, &i) in indices.iter().enumerate() {
        if !is_finite(&computed.get(row)?)? {
            return Err(Error::NotFinite {
                what: format!("the features of the frozen blocks for {}", dataset.info(i)),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
