//! The writer of safetensors.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};
use serde::Serialize;

use super::MAX_HEADER;
use super::atomic::{Disk, Os, replace};
use crate::{Error, Result};

/// The key of the header's free texts under which all of this crate's metadata stands, as one JSON text.
pub(crate) const METADATA_KEY: &str = "candle_finetune";

/// Writes the tensors as a safetensors file, atomically (see [`replace`]), with `metadata`, a JSON text, under
/// [`METADATA_KEY`]. The same tensors and metadata give the same bytes.
pub(crate) fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: Option<&str>) -> Result<()> {
    write_through(&mut Os, path, tensors, metadata)
}

/// As [`write`], with every call to the system passing through `disk`.
pub(crate) fn write_through(
    disk: &mut impl Disk,
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: Option<&str>,
) -> Result<()> {
    let mut entries = Vec::new();
    for (name, tensor) in tensors {
        let Some(dtype) = dtype_name(tensor.dtype()) else {
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
    // Wide elements first, so that every tensor is aligned for those who map the file into memory.
    entries.sort_by_key(|(_, _, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let header = header(path, &entries, metadata)?;
    replace(disk, path, |out| {
        out.write(&header)?;
        entries.iter().try_for_each(|(_, _, tensor)| tensor_bytes(tensor, |bytes| out.write(bytes)))
    })
}

#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    texts: BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'a str,
    shape: &'a [usize],
    data_offsets: (usize, usize),
}

/// The length, then the JSON, padded to a multiple of eight bytes.
fn header(path: &Path, entries: &[(&String, &str, &Tensor)], metadata: Option<&str>) -> Result<Vec<u8>> {
    // The format says whose layout the arrays have; readers in Python ask for it.
    let mut texts = BTreeMap::from([("format", "pt")]);
    texts.extend(metadata.map(|metadata| (METADATA_KEY, metadata)));
    let mut header = Header { texts, tensors: BTreeMap::new() };
    let mut at = 0;
    for (name, dtype, tensor) in entries {
        let end = at + tensor.elem_count() * tensor.dtype().size_in_bytes();
        header.tensors.insert(name, Entry { dtype, shape: tensor.dims(), data_offsets: (at, end) });
        at = end;
    }
    let mut text = serde_json::to_vec(&header)
        .map_err(|cause| Error::weights_from(path, "the header could not be made", cause))?;
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

pub(super) fn dtype_name(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::U32 => "U32",
        DType::U8 => "U8",
        _ => return None,
    })
}

/// A tensor's little-endian bytes, in pieces of at most a mebibyte.
pub(crate) fn tensor_bytes(tensor: &Tensor, mut out: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let tensor = tensor.to_device(&Device::Cpu)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::invalid("a tensor to write", "it did not become contiguous on the CPU"));
    };
    match storage {
        CpuStorage::F64(data) => elements(out, &data[start..end], f64::to_le_bytes),
        CpuStorage::F32(data) => elements(out, &data[start..end], f32::to_le_bytes),
        CpuStorage::F16(data) => elements(out, &data[start..end], f16::to_le_bytes),
        CpuStorage::BF16(data) => elements(out, &data[start..end], bf16::to_le_bytes),
        CpuStorage::I64(data) => elements(out, &data[start..end], i64::to_le_bytes),
        CpuStorage::I32(data) => elements(out, &data[start..end], i32::to_le_bytes),
        CpuStorage::I16(data) => elements(out, &data[start..end], i16::to_le_bytes),
        CpuStorage::U32(data) => elements(out, &data[start..end], u32::to_le_bytes),
        CpuStorage::U8(data) => out(&data[start..end]),
        _ => Err(Error::invalid("a tensor to write", format!("{:?} has no writer", tensor.dtype()))),
    }
}

fn elements<T: WithDType, const N: usize>(
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
