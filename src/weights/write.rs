//! The writer of safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use candle_core::{CpuStorage, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};
use serde::Serialize;

#[cfg(test)]
use super::atomic::Os;
use super::atomic::{Disk, replace};
use super::{MAX_HEADER, elements};
use crate::error::{BoxError, Error, Result};

/// The key in the header's metadata under which this crate keeps its own, as one JSON text.
pub(crate) const METADATA_KEY: &str = "candle_finetune";

/// [`write_through`] the operating system.
#[cfg(test)]
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: Option<&str>) -> Result<()> {
    write_through(&mut Os, path, tensors, metadata)
}

/// Writes the tensors as a safetensors file, atomically (see [`replace`]), with `metadata`, a JSON text, under
/// [`METADATA_KEY`]. The same tensors and metadata give the same bytes. Every system call goes through `disk`.
pub(crate) fn write_through(
    disk: &mut impl Disk,
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<&str>,
) -> Result<()> {
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        let Some(dtype) = elements::of_tensor(tensor.dtype()) else {
            return Err(Error::weights(
                path,
                format!("tensor {name:?} of type {:?} cannot be written; convert it to f32 first", tensor.dtype()),
            ));
        };
        if name == "__metadata__" {
            return Err(Error::weights(path, "no tensor can be named \"__metadata__\" in a safetensors file"));
        }
        entries.push((name, dtype, tensor));
    }
    // Wide elements first, so that every tensor is aligned in a file that is mapped into memory.
    entries.sort_by_key(|(_, _, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let header = header(path, &entries, metadata)?;
    replace(disk, path, |out| {
        out.write(&header)?;
        entries.iter().try_for_each(|(_, _, tensor)| tensor_bytes(tensor, |bytes| out.write(bytes)))
    })
}

/// The header with its keys in alphabetical order. The order of [`Metadata`], a hash map, differs between processes.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    tensors: BTreeMap<String, &'a TensorInfo>,
}

/// The length of the JSON, then the JSON, padded to a multiple of eight bytes.
fn header(path: &Path, entries: &[(&String, Dtype, &Tensor)], metadata: Option<&str>) -> Result<Vec<u8>> {
    let mut infos = Vec::with_capacity(entries.len());
    let mut at = 0;
    for &(name, dtype, tensor) in entries {
        let end = at + tensor.elem_count() * elements::size(dtype);
        infos.push((name.clone(), TensorInfo { dtype, shape: tensor.dims().to_vec(), data_offsets: (at, end) }));
        at = end;
    }
    let failed = |cause: BoxError| Error::weights_from(path, "the header could not be made", cause);
    // The format's own validation: no reader will refuse the offsets.
    let valid = Metadata::new(None, infos).map_err(|cause| failed(cause.into()))?;
    // Readers in Python require "format", which names the framework of the tensors.
    let mut texts = BTreeMap::from([("format", "pt")]);
    texts.extend(metadata.map(|metadata| (METADATA_KEY, metadata)));
    let header = Header { metadata: texts, tensors: valid.tensors().into_iter().collect() };
    let mut text = serde_json::to_vec(&header).map_err(|cause| failed(cause.into()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER {
        return Err(Error::weights(
            path,
            format!("the header would have {} bytes, more than the {MAX_HEADER} of the format", text.len()),
        ));
    }
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok(header)
}

/// A tensor's little-endian bytes, in pieces of at most a mebibyte.
pub(crate) fn tensor_bytes(tensor: &Tensor, mut out: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::invalid("a tensor to write", "it did not become contiguous on the CPU"));
    };
    match storage {
        CpuStorage::F64(data) => each(out, &data[start..end], f64::to_le_bytes),
        CpuStorage::F32(data) => each(out, &data[start..end], f32::to_le_bytes),
        CpuStorage::F16(data) => each(out, &data[start..end], f16::to_le_bytes),
        CpuStorage::BF16(data) => each(out, &data[start..end], bf16::to_le_bytes),
        CpuStorage::I64(data) => each(out, &data[start..end], i64::to_le_bytes),
        CpuStorage::I32(data) => each(out, &data[start..end], i32::to_le_bytes),
        CpuStorage::I16(data) => each(out, &data[start..end], i16::to_le_bytes),
        CpuStorage::U32(data) => each(out, &data[start..end], u32::to_le_bytes),
        CpuStorage::U8(data) => out(&data[start..end]),
        _ => Err(Error::invalid("a tensor to write", format!("{:?} has no writer", tensor.dtype()))),
    }
}

fn each<T: WithDType, const N: usize>(
    mut out: impl FnMut(&[u8]) -> Result<()>,
    data: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
) -> Result<()> {
    let mut buffer = Vec::new();
    for piece in data.chunks((1 << 20) / N) {
        buffer.clear();
        buffer.extend(piece.iter().flat_map(|&x| to_bytes(x)));
        out(&buffer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
