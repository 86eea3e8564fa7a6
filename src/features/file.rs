//! Features that exceed the memory budget, in a file.
//!
//! Rows are read at an offset, one reader at a time; the system's page cache holds what fits of the file. Mapping the
//! file would save one copy of a row, but is unsafe if another process truncates the file.

use crate::error::{Error, Result};
use crate::weights::{read_tensor, tensor_bytes};
use candle_core::{DType, Tensor};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tempfile::NamedTempFile;

/// A file of rows of one shape and type, deleted when this is dropped.
pub(super) struct FeatureFile {
    file: NamedTempFile,
    /// Held between seek and read: several runs may share the file.
    reading: Mutex<()>,
    /// The shape of one row, (1, ...).
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
        Ok(Self { file, reading: Mutex::new(()), shape, dtype: features.dtype(), rows: 0 })
    }

    fn seek(&self, row: usize) -> std::io::Result<u64> {
        let size = self.shape.iter().product::<usize>() * self.dtype.size_in_bytes();
        self.file.as_file().seek(SeekFrom::Start((row * size) as u64))
    }

    /// Appends rows.
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
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.seek(number).and_then(|_| read_tensor(&mut self.file.as_file(), self.dtype, &self.shape));
        read.map_err(Error::io("read", self.file.path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn rows_are_read_as_written_and_the_file_is_deleted() {
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
    fn a_folder_that_cannot_be_created_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        std::fs::write(&taken, "").unwrap();
        let rows = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let error = FeatureFile::create(&taken, &rows).err().unwrap().to_string();
        assert!(error.contains("taken"), "{error}");
    }
}
