//! Features that do not fit into memory, in a file.
//!
//! Reading is by position, and the system keeps what fits of the file in memory anyway: mapping it would save one copy
//! of a row, and needs unsafe code that holds only while nobody else shortens the file.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor, bail};
use half::{bf16, f16};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A file of rows of one shape and type, which goes when this does.
pub(super) struct FeatureFile {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
    shape: Vec<usize>,
    dtype: DType,
    row: usize,
}

impl FeatureFile {
    /// A new file in `dir` for rows like those of `features`.
    pub fn create(dir: &Path, features: &Tensor) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let (mut path, mut file) = (PathBuf::new(), None);
        for number in 0.. {
            path = dir.join(format!("features.{}.{number}.tmp", std::process::id()));
            match File::options().read(true).write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                opened => {
                    file = Some(opened.map_err(Error::io("create", &path))?);
                    break;
                }
            }
        }
        let Some(file) = file else { return Err(Error::invalid("cache_dir", "has no name left for a file")) };
        let shape: Vec<usize> = features.dims().iter().skip(1).copied().collect();
        let row = shape.iter().product::<usize>() * features.dtype().size_in_bytes();
        Ok(Self { path, file: Mutex::new(BufWriter::new(file)), shape, dtype: features.dtype(), row })
    }

    /// Writes rows behind those that are there.
    pub fn append(&self, features: &Tensor) -> Result<()> {
        let bytes = to_bytes(features)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A read may have been between.
        let written = file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&bytes));
        written.map_err(Error::io("write", &self.path))
    }

    /// These rows, in this order.
    pub fn rows(&self, numbers: impl Iterator<Item = usize>) -> Result<Tensor> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.flush().map_err(Error::io("write", &self.path))?;
        let file = file.get_mut();
        let (mut bytes, mut count) = (vec![], 0);
        for number in numbers {
            bytes.resize((count + 1) * self.row, 0);
            let into = &mut bytes[count * self.row..];
            let read = file.seek(SeekFrom::Start((number * self.row) as u64)).and_then(|_| file.read_exact(into));
            read.map_err(Error::io("read", &self.path))?;
            count += 1;
        }
        let shape: Vec<usize> = std::iter::once(count).chain(self.shape.iter().copied()).collect();
        Ok(from_bytes(&bytes, self.dtype, &shape)?)
    }
}

impl Drop for FeatureFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a file of kept features could not be removed");
        }
    }
}

fn to_bytes(t: &Tensor) -> candle_core::Result<Vec<u8>> {
    let t = t.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(match t.dtype() {
        DType::F32 => t.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => t.to_vec1::<f64>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F16 => t.to_vec1::<f16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::BF16 => t.to_vec1::<bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect(),
        other => bail!("features of {other:?} cannot be kept in a file"),
    })
}

fn from_bytes(bytes: &[u8], dtype: DType, shape: &[usize]) -> candle_core::Result<Tensor> {
    macro_rules! numbers {
        ($t:ty) => {{
            let (words, _) = bytes.as_chunks();
            Tensor::from_vec(words.iter().map(|w| <$t>::from_le_bytes(*w)).collect(), shape, &Device::Cpu)
        }};
    }
    match dtype {
        DType::F32 => numbers!(f32),
        DType::F64 => numbers!(f64),
        DType::F16 => numbers!(f16),
        DType::BF16 => numbers!(bf16),
        other => bail!("features of {other:?} cannot be kept in a file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_went_and_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            let all = (Tensor::arange(0f32, 60.0, &Device::Cpu).unwrap().sin().unwrap() * 3.0).unwrap();
            let all = all.reshape((5, 3, 2, 2)).unwrap().to_dtype(dtype).unwrap();
            let file = FeatureFile::create(&dir.path().join("new"), &all).unwrap();
            let second = FeatureFile::create(&dir.path().join("new"), &all).unwrap();
            file.append(&all.narrow(0, 0, 2).unwrap()).unwrap();
            file.append(&all.narrow(0, 2, 2).unwrap()).unwrap();
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert_eq!(file.rows([1].into_iter()).unwrap().dims(), &[1, 3, 2, 2]);
            file.append(&all.narrow(0, 4, 1).unwrap()).unwrap();
            let rows = file.rows([4, 0, 2].into_iter()).unwrap();
            assert_eq!((rows.dims(), rows.dtype()), (&[3, 3, 2, 2][..], dtype));
            let wanted = all.index_select(&Tensor::new(&[4u32, 0, 2], &Device::Cpu).unwrap(), 0).unwrap();
            assert_eq!(wide(&rows), wide(&wanted));
            let error = file.rows([5].into_iter()).unwrap_err().to_string();
            assert!(error.contains("features.") && error.contains("read"), "{error}");
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
