//! Features that do not fit into memory, in a file.
//!
//! Reading is from a place, one reader at a time, and the system keeps what fits of the file in memory anyway: mapping
//! it would save one copy of a row, and needs unsafe code that holds only while nobody else shortens the file.

use crate::error::{Error, Result};
use crate::weights::{read_tensor, tensor_bytes};
use candle_core::{DType, Tensor};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tempfile::NamedTempFile;

/// A file of rows of one shape and type, which goes when this does.
pub(super) struct FeatureFile {
    file: NamedTempFile,
    /// Held while a place is sought and read: several runs may share the file.
    place: Mutex<()>,
    /// Of one row, which counts as one.
    shape: Vec<usize>,
    dtype: DType,
    rows: usize,
}

impl FeatureFile {
    /// A new file in `dir` for rows like those of `features`.
    pub fn create(dir: &Path, features: &Tensor) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let file = tempfile::Builder::new().prefix("features-").suffix(".tmp").tempfile_in(dir);
        let file = file.map_err(Error::io("create a file for features in", dir))?;
        let shape = std::iter::once(1).chain(features.dims().iter().skip(1).copied()).collect();
        Ok(Self { file, place: Mutex::new(()), shape, dtype: features.dtype(), rows: 0 })
    }

    fn seek(&self, row: usize) -> std::io::Result<u64> {
        let size = self.shape.iter().product::<usize>() * self.dtype.size_in_bytes();
        self.file.as_file().seek(SeekFrom::Start((row * size) as u64))
    }

    /// Writes rows behind those that are there.
    pub fn append(&mut self, features: &Tensor) -> Result<()> {
        let failed = |cause| Error::io("write", self.file.path())(cause);
        self.seek(self.rows).map_err(failed)?;
        let mut file = self.file.as_file();
        tensor_bytes(features, |bytes| file.write_all(bytes).map_err(failed))?;
        self.rows += features.dim(0)?;
        Ok(())
    }

    /// Row `number`, as a tensor of one row; half precision becomes f32.
    pub fn row(&self, number: usize) -> Result<Tensor> {
        let _place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.seek(number).and_then(|_| read_tensor(&mut self.file.as_file(), self.dtype, &self.shape));
        read.map_err(Error::io("read", self.file.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_come_back_as_they_went_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let all = (Tensor::arange(0f32, 60.0, &Device::Cpu).unwrap().sin().unwrap() * 3.0).unwrap();
            let all = all.reshape((5, 3, 2, 2)).unwrap().to_dtype(dtype).unwrap();
            let mut file = FeatureFile::create(&dir.path().join("new"), &all).unwrap();
            let second = FeatureFile::create(&dir.path().join("new"), &all).unwrap();
            file.append(&all.narrow(0, 0, 2).unwrap()).unwrap();
            file.append(&all.narrow(0, 2, 2).unwrap()).unwrap();
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let check = |file: &FeatureFile, row: usize| {
                let tensor = file.row(row).unwrap();
                assert_eq!(tensor.dims(), [1, 3, 2, 2]);
                assert_eq!(wide(&tensor), wide(&all.narrow(0, row, 1).unwrap()), "{dtype:?} {row}");
            };
            check(&file, 1);
            file.append(&all.narrow(0, 4, 1).unwrap()).unwrap();
            [4, 0, 2].into_iter().for_each(|row| check(&file, row));
            let error = file.row(5).unwrap_err().to_string();
            assert!(error.contains("features-") && error.contains("read"), "{error}");
            drop((file, second));
            assert_eq!(std::fs::read_dir(dir.path().join("new")).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        std::fs::write(&taken, "").unwrap();
        let rows = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let error = FeatureFile::create(&taken, &rows).err().unwrap().to_string();
        assert!(error.contains("taken"), "{error}");
    }
}
