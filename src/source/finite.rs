//! Checks that weights are finite.

use crate::error::{Error, Result, shown};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::path::Path;

/// Refuses a tensor with elements that are NaN or infinite, or would be infinite in the network's element type.
/// `variance`: whether it is a running variance, which must not be negative.
pub(crate) fn check_finite(path: &Path, name: &str, tensor: &Tensor, dtype: DType, variance: bool) -> Result<()> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let found = match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) => {
            let all = &all[start..end];
            let least = if variance { 0.0 } else { f32::MIN };
            // NaN is in no range. Counting all elements is faster than stopping at the first.
            let wrong = all.iter().filter(|v| !(least..=f32::MAX).contains(v)).count();
            if wrong == 0 { None } else { Some(faults(all.iter().map(|&v| f64::from(v)), f64::MAX, variance)) }
        }
        (Storage::Cpu(CpuStorage::F64(all)), Some((start, end))) => {
            let all = &all[start..end];
            let most = if dtype == DType::F32 { f64::from(f32::MAX) } else { f64::MAX };
            let least = if variance { 0.0 } else { -most };
            let wrong = all.iter().filter(|v| !(least..=most).contains(v)).count();
            if wrong == 0 { None } else { Some(faults(all.iter().copied(), most, variance)) }
        }
        _ => None,
    };
    let Some(found) = found else { return Ok(()) };
    let problem = format!(
        "tensor {}: {found}. The training that wrote it diverged, or the file is damaged: take an earlier checkpoint, or \
         download the file again",
        shown(name)
    );
    Err(Error::weights(path, problem))
}

/// The numbers of elements with each fault.
fn faults(all: impl Iterator<Item = f64>, most: f64, variance: bool) -> String {
    let (mut total, mut nan, mut infinite, mut large, mut negative) = (0usize, 0usize, 0usize, 0usize, 0usize);
    for v in all {
        nan += usize::from(v.is_nan());
        infinite += usize::from(v.is_infinite());
        large += usize::from(v.is_finite() && v.abs() > most);
        negative += usize::from(v.is_finite() && variance && v < 0.0);
        total += 1;
    }
    let counts = [
        (nan, "NaN"),
        (infinite, "infinite"),
        (large, "too large for f32"),
        (negative, "negative, which a running variance cannot be"),
    ];
    let are = |count| if count == 1 { "is" } else { "are" };
    let say = |&(count, what): &(usize, &str)| format!("{count} of {total} elements {} {what}", are(count));
    counts.iter().filter(|(count, _)| *count > 0).map(say).collect::<Vec<_>>().join(", ")
}
