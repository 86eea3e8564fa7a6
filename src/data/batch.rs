//! Batches: the inputs and targets of one step.

use super::Target;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// Some samples, ready for the network: images, or the cached features of frozen blocks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Batch {
    /// The network's input.
    pub(crate) inputs: Inputs,
    /// The target of each sample.
    pub targets: Targets,
    /// The samples' indices in the dataset.
    pub indices: Vec<usize>,
}

/// A network's input: images, or features at which its trainable part starts.
#[derive(Debug, Clone)]
pub(crate) enum Inputs {
    /// Images (N, C, H, W), normalised, on the loader's device.
    Images(Tensor),
    /// The output of the frozen blocks, cached.
    Features {
        /// As it is at the freeze boundary.
        tensor: Tensor,
        /// The fingerprint of the blocks and weights that made it.
        made_by: u64,
    },
}

/// The end of the batch that begins at sample `from` of `total`.
///
/// A leftover single sample joins the previous batch: batch statistics need more than one value.
pub(crate) fn batch_end(from: usize, total: usize, batch_size: usize) -> usize {
    let end = from.saturating_add(batch_size).min(total);
    if batch_size > 1 && total - end == 1 { total } else { end }
}

/// The number of batches that [`batch_end`] makes.
pub(crate) fn batch_count(total: usize, batch_size: usize) -> usize {
    let size = batch_size.max(1);
    let joined = size > 1 && total > size && total % size == 1;
    total.div_ceil(size) - usize::from(joined)
}

impl Batch {
    /// A batch of images (N, C, H, W), normalised, with a target each.
    ///
    /// # Errors
    /// If the numbers of targets and of images differ.
    pub fn new(images: Tensor, targets: Targets) -> Result<Self> {
        let (n, _, _, _) = images.dims4()?;
        if n != targets.len() {
            return Err(Error::invalid("batch", format!("{n} images and {} targets", targets.len())));
        }
        Ok(Self { inputs: Inputs::Images(images), targets, indices: (0..n).collect() })
    }

    /// The images (N, C, H, W), normalised, on the loader's device.
    ///
    /// # Errors
    /// If the batch holds the cached features of frozen blocks instead: a session computes those once and skips the
    /// images. With [`FeatureCache::off`](crate::FeatureCache::off) every batch holds images.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FeatureCache, FineTuner, FreezePolicy, Optimizer, Phase, Plan};
    /// # use candle_finetune::{TensorDataset, candle_core::{Device, Tensor}};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 12288.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((4, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3)).freeze(FreezePolicy::Backbone)]);
    /// let tuner = FineTuner::new(backbone).plan(plan); // freezes the backbone
    /// let mut session = tuner.cache(&FeatureCache::off()).session(&train)?;
    /// session.next_phase()?;
    /// session.next_epoch()?;
    /// let batch = session.next_batch()?.unwrap();
    /// assert_eq!(batch.images()?.dims(), [4, 3, 32, 32]); // an error with the default cache
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn images(&self) -> Result<&Tensor> {
        match &self.inputs {
            Inputs::Images(images) => Ok(images),
            Inputs::Features { .. } => Err(Error::invalid(
                "batch",
                "holds cached features of the frozen blocks, not images; switch the cache off to get images \
                 (`FineTuner::cache(&FeatureCache::off())`)",
            )),
        }
    }

    /// The cached features, if it has any; `made_by` is the fingerprint of the blocks whose features are needed, where
    /// features are cached at all.
    ///
    /// # Errors
    /// If other blocks or weights made them: those of another phase.
    pub(crate) fn features_of(&self, made_by: Option<u64>) -> Result<Option<&Tensor>> {
        match &self.inputs {
            Inputs::Images(_) => Ok(None),
            Inputs::Features { made_by: of, .. } if Some(*of) != made_by => {
                let problem = "belongs to another phase, which freezes other blocks; ask for a new batch";
                Err(Error::invalid("batch", problem))
            }
            Inputs::Features { tensor, .. } => Ok(Some(tensor)),
        }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are no samples; the loader never makes such a batch.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// The targets of a batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Targets {
    /// One class per sample.
    Classes(Vec<u32>),
    /// Probabilities (N, classes), f32: at least one sample of the batch has a soft target.
    Soft(Tensor),
    /// Zeros and ones (N, classes), f32: any number of classes per sample.
    Labels(Tensor),
}

impl Targets {
    /// Joins targets. `name` gives the name of sample `k` of these in an error.
    pub(crate) fn join(
        targets: &[Target],
        classes: usize,
        name: impl Fn(usize) -> String,
        device: &Device,
    ) -> Result<Self> {
        for (k, target) in targets.iter().enumerate() {
            check_target(target, classes, || name(k))?;
        }
        let ids: Vec<u32> =
            targets.iter().filter_map(|t| if let Target::Class(class) = t { Some(*class) } else { None }).collect();
        if ids.len() == targets.len() {
            return Ok(Self::Classes(ids));
        }
        let many = targets.iter().filter(|t| matches!(t, Target::Labels(_))).count();
        if many != 0 && many != targets.len() {
            return Err(Error::bad_sample(
                name(0),
                "some samples of its batch have one class or probabilities, others a list of labels; use one kind",
            ));
        }
        let mut rows = vec![0f32; targets.len() * classes];
        for (row, target) in rows.chunks_exact_mut(classes.max(1)).zip(targets) {
            match target {
                Target::Class(class) => row[*class as usize] = 1.0,
                Target::Soft(probabilities) => row.copy_from_slice(probabilities),
                Target::Labels(labels) => labels.iter().for_each(|&label| row[label as usize] = 1.0),
            }
        }
        let rows = Tensor::from_vec(rows, (targets.len(), classes), device)?;
        Ok(if many == 0 { Self::Soft(rows) } else { Self::Labels(rows) })
    }

    /// A row per sample (N, classes), f32: single classes as one-hot rows, others as they are.
    pub fn dense(&self, classes: usize, device: &Device) -> Result<Tensor> {
        match self {
            Self::Classes(ids) => {
                let mut rows = vec![0f32; ids.len() * classes];
                for (k, &id) in ids.iter().enumerate() {
                    if id as usize >= classes {
                        return Err(out_of_range(format!("target {k} of the batch"), id, classes));
                    }
                    rows[k * classes + id as usize] = 1.0;
                }
                Ok(Tensor::from_vec(rows, (ids.len(), classes), device)?)
            }
            Self::Soft(rows) | Self::Labels(rows) => Ok(rows.to_device(device)?),
        }
    }

    /// The class of each sample: the most probable one of soft targets, the first of several labels.
    pub fn classes(&self) -> Result<Vec<u32>> {
        match self {
            Self::Classes(ids) => Ok(ids.clone()),
            Self::Soft(rows) | Self::Labels(rows) => {
                Ok(rows.to_vec2::<f32>()?.iter().map(|row| largest(row) as u32).collect())
            }
        }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(ids) => ids.len(),
            Self::Soft(rows) | Self::Labels(rows) => rows.dims().first().copied().unwrap_or(0),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The first index of the largest value.
pub(crate) fn largest<T: PartialOrd>(row: &[T]) -> usize {
    let mut best = 0;
    for (i, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = i;
        }
    }
    best
}

pub(super) fn out_of_range(sample: String, label: u32, classes: usize) -> Error {
    Error::LabelOutOfRange { sample, label: label.into(), classes }
}

/// Refuses a target that does not fit the number of classes.
pub(crate) fn check_target(target: &Target, classes: usize, name: impl Fn() -> String) -> Result<()> {
    match target {
        Target::Class(class) if *class as usize >= classes => Err(out_of_range(name(), *class, classes)),
        Target::Labels(labels) => match labels.iter().find(|&&label| label as usize >= classes) {
            Some(&label) => Err(out_of_range(name(), label, classes)),
            None => Ok(()),
        },
        Target::Soft(p) if p.len() != classes => {
            Err(Error::bad_sample(name(), format!("{} probabilities for {classes} classes", p.len())))
        }
        Target::Soft(p) if !p.iter().all(|p| (0.0..=1.0).contains(p)) || (p.iter().sum::<f32>() - 1.0).abs() > 1e-3 => {
            Err(Error::bad_sample(name(), "the probabilities of its target are not 0 to 1 each with a sum of 1"))
        }
        Target::Class(_) | Target::Soft(_) => Ok(()),
    }
}

/// The input of one sample, as a worker makes it.
pub(super) enum Prepared {
    /// The values of a transformed image (C, H, W).
    Values(Vec<f32>),
    /// The tensor (C, H, W) of a dataset whose samples need no transform.
    Tensor(Tensor),
}

/// Joins the inputs of a batch; `(c, h, w)` is the shape of transformed images.
pub(super) fn join_images(
    inputs: Vec<Prepared>,
    (c, h, w): (usize, usize, usize),
    name: impl Fn(usize) -> String,
    device: &Device,
) -> Result<Tensor> {
    let n = inputs.len();
    if inputs.iter().all(|input| matches!(input, Prepared::Values(_))) {
        let mut all = Vec::with_capacity(n * c * h * w);
        for input in inputs {
            if let Prepared::Values(values) = input {
                all.extend_from_slice(&values);
            }
        }
        return Ok(Tensor::from_vec(all, (n, c, h, w), &Device::Cpu)?.to_device(device)?);
    }
    let mut tensors: Vec<Tensor> = Vec::with_capacity(n);
    for (k, input) in inputs.into_iter().enumerate() {
        let tensor = match input {
            Prepared::Values(values) => Tensor::from_vec(values, (c, h, w), &Device::Cpu)?.to_device(device)?,
            Prepared::Tensor(tensor) => tensor.to_device(device)?,
        };
        if tensor.rank() != 3 || !matches!(tensor.dtype(), DType::F32 | DType::F64) {
            let found = format!("a tensor {:?} of {:?}", tensor.dims(), tensor.dtype());
            return Err(Error::bad_sample(
                name(k),
                format!("{found}; a sample is (C, H, W) of f32, already normalised"),
            ));
        }
        if let Some(first) = tensors.first()
            && (first.dims() != tensor.dims() || first.dtype() != tensor.dtype())
        {
            let differ = format!("{:?} differs from {:?} of {}", tensor.dims(), first.dims(), name(0));
            return Err(Error::bad_sample(name(k), format!("{differ}; all samples need one shape and type")));
        }
        tensors.push(tensor);
    }
    Ok(Tensor::stack(&tensors, 0)?.detach())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(targets: &[Target]) -> Result<Targets> {
        Targets::join(targets, 3, |k| format!("sample {k}"), &Device::Cpu)
    }

    #[test]
    fn no_sample_is_left_alone() {
        for size in 1..6 {
            for total in 1..20 {
                let (mut from, mut lengths) = (0, vec![]);
                while from < total {
                    let end = batch_end(from, total, size);
                    lengths.push(end - from);
                    from = end;
                }
                assert_eq!(lengths.iter().sum::<usize>(), total);
                assert_eq!(lengths.len(), batch_count(total, size), "{total} by {size}");
                assert!(size == 1 || total == 1 || lengths.iter().all(|&n| n > 1 && n <= size + 1), "{lengths:?}");
            }
        }
    }

    #[test]
    fn kinds_of_targets() {
        assert!(matches!(join(&[Target::Class(2), Target::Class(0)]).unwrap(), Targets::Classes(ids) if ids == [2, 0]));
        let soft = join(&[Target::Class(2), Target::Soft(vec![0.25, 0.75, 0.0])]).unwrap();
        assert_eq!(soft.classes().unwrap(), [2, 1]);
        let Targets::Soft(rows) = soft else { panic!("not soft") };
        assert_eq!(rows.to_vec2::<f32>().unwrap(), [[0.0, 0.0, 1.0], [0.25, 0.75, 0.0]]);
        let many = join(&[Target::Labels(vec![0, 2]), Target::Labels(vec![])]).unwrap();
        let Targets::Labels(rows) = many else { panic!("not labels") };
        assert_eq!(rows.to_vec2::<f32>().unwrap(), [[1.0, 0.0, 1.0], [0.0; 3]]);
    }

    #[test]
    fn bad_targets_are_named() {
        let error = join(&[Target::Class(0), Target::Class(3)]).unwrap_err();
        assert_eq!(error.to_string(), "sample 1 has label 3, but there are 3 classes (labels count from 0)");
        assert!(matches!(join(&[Target::Labels(vec![1, 9])]), Err(Error::LabelOutOfRange { label: 9, .. })));
        for soft in [vec![0.5, 0.5], vec![0.5, 0.5, 0.5], vec![-0.5, 0.5, 1.0], vec![f32::NAN, 0.5, 0.5]] {
            assert!(matches!(join(&[Target::Soft(soft)]), Err(Error::BadSample { .. })));
        }
        assert!(matches!(join(&[Target::Class(0), Target::Labels(vec![0])]), Err(Error::BadSample { .. })));
    }
}
