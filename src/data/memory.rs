//! Datasets in memory.

use super::batch::{check_target, out_of_range};
use super::{Dataset, Image, Sample, SampleInfo, Target};
use crate::fingerprint::Fingerprint;
use crate::nn::checksum;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// Images in one tensor, with a label each. A clone is cheap.
///
/// ```
/// use candle_finetune::{Dataset, TensorDataset};
/// use candle_finetune::candle_core::{DType, Device, Tensor};
///
/// let images = Tensor::zeros((4, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let data = TensorDataset::new(images, vec![0, 1, 1, 0], vec!["cat".into(), "dog".into()])?;
/// assert_eq!(data.len(), 4);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TensorDataset {
    images: Tensor,
    targets: Arc<[Target]>,
    classes: Arc<[String]>,
}

impl TensorDataset {
    /// Images (N, C, H, W), f32, already normalised for the network, N labels, and the names of the classes.
    ///
    /// # Errors
    /// If the tensor has another shape or type, there are not as many labels as images or no classes, or a label is out
    /// of range.
    pub fn new(images: Tensor, labels: Vec<u32>, classes: Vec<String>) -> Result<Self> {
        Self::from_targets(images, labels.into_iter().map(Target::Class).collect(), classes)
    }

    /// As [`new`](Self::new), with targets of any kind.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_targets(images: Tensor, targets: Vec<Target>, classes: Vec<String>) -> Result<Self> {
        if images.rank() != 4 || !matches!(images.dtype(), DType::F32 | DType::F64) {
            return Err(Error::invalid(
                "images",
                format!("{:?} of {:?}; give (N, C, H, W) of f32, normalised", images.dims(), images.dtype()),
            ));
        }
        if images.dims()[0] != targets.len() {
            let problem = format!("{} for {} images; give one per image", targets.len(), images.dims()[0]);
            return Err(Error::invalid("labels", problem));
        }
        check_classes(&classes)?;
        for (i, target) in targets.iter().enumerate() {
            check_target(target, classes.len(), || format!("sample {i}"))?;
        }
        Ok(Self { images: images.detach(), targets: targets.into(), classes: classes.into() })
    }
}

impl Dataset for TensorDataset {
    fn len(&self) -> usize {
        self.targets.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, self.targets[i].clone())
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        Ok(Sample::Tensor(self.images.get(i)?))
    }

    fn fingerprint(&self, i: usize) -> Option<u64> {
        let image = self.images.get(i).ok()?;
        Some(Fingerprint::new("tensor sample").numbers(image.dims()).number(checksum(&image).ok()?).finish())
    }

    fn skipped(&self) -> Option<usize> {
        Some(0)
    }
}

/// Images in a vector, with a label each. A clone is cheap.
///
/// ```
/// use candle_finetune::{Dataset, Image, VecDataset};
///
/// let black = Image::from_rgb8(8, 8, vec![0; 8 * 8 * 3])?;
/// let white = Image::from_rgb8(8, 8, vec![255; 8 * 8 * 3])?;
/// let data = VecDataset::new(vec![(black, 0), (white, 1)], vec!["black".into(), "white".into()])?;
/// assert_eq!(data.len(), 2);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct VecDataset {
    images: Arc<[(Image, u32)]>,
    classes: Arc<[String]>,
}

impl VecDataset {
    /// Images with labels, and the names of the classes. The images may differ in size.
    ///
    /// # Errors
    /// If there are no classes, or a label is out of range.
    pub fn new(images: Vec<(Image, u32)>, classes: Vec<String>) -> Result<Self> {
        check_classes(&classes)?;
        for (i, &(_, label)) in images.iter().enumerate() {
            if label as usize >= classes.len() {
                return Err(out_of_range(format!("sample {i}"), label, classes.len()));
            }
        }
        Ok(Self { images: images.into(), classes: classes.into() })
    }
}

impl Dataset for VecDataset {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, Target::Class(self.images[i].1))
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        Ok(Sample::Image(self.images[i].0.clone()))
    }

    fn fingerprint(&self, i: usize) -> Option<u64> {
        let image = &self.images[i].0;
        let size = [image.width(), image.height(), image.channels()];
        Some(Fingerprint::new("image sample").numbers(&size).bytes(image.bytes()).finish())
    }

    fn skipped(&self) -> Option<usize> {
        Some(0)
    }
}

/// Refuses an empty list of classes. Names may repeat: two of ImageNet's labels are "crane". They must differ only
/// where a class is looked up by name.
fn check_classes(classes: &[String]) -> Result<()> {
    if classes.is_empty() {
        return Err(Error::invalid("classes", "are empty; give at least one name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn labels_out_of_range_are_named() {
        let images = Tensor::zeros((2, 1, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let names = vec!["a".to_string(), "b".to_string()];
        let error = TensorDataset::new(images.clone(), vec![0, 2], names.clone()).unwrap_err();
        assert_eq!(error.to_string(), "sample 1 has label 2, but there are 2 classes (labels count from 0)");
        let image = Image::new(1, 1, 1, vec![0]).unwrap();
        assert!(matches!(
            VecDataset::new(vec![(image, 7)], names.clone()),
            Err(Error::LabelOutOfRange { label: 7, classes: 2, .. })
        ));
        assert!(TensorDataset::new(images.clone(), vec![0], names.clone()).is_err());
        assert!(TensorDataset::new(images.get(0).unwrap(), vec![0], names).is_err());
        assert!(TensorDataset::new(images, vec![0, 0], vec![]).is_err());
    }

    #[test]
    fn two_classes_may_have_one_name() {
        let names = vec!["crane".to_string(), "crane".to_string()];
        let images = Tensor::zeros((2, 1, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(TensorDataset::new(images, vec![0, 1], names.clone()).unwrap().classes(), names);
        let image = Image::new(1, 1, 1, vec![0]).unwrap();
        assert_eq!(VecDataset::new(vec![(image, 1)], names.clone()).unwrap().classes(), names);
    }

    #[test]
    fn samples_come_back() {
        let images = Tensor::arange(0f32, 8.0, &Device::Cpu).unwrap().reshape((2, 1, 2, 2)).unwrap();
        let data = TensorDataset::new(images, vec![1, 0], vec!["a".into(), "b".into()]).unwrap();
        let Sample::Tensor(second) = data.sample(1).unwrap() else { panic!("no tensor") };
        assert_eq!(second.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(data.info(0).target, Target::Class(1));
    }
}
