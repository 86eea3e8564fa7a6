//! The element types that files hold, and what they become in memory.

use std::collections::TryReserveError;
use std::io::{self, Read};

use super::write::dtype_name;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

/// An element type in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U32,
    U16,
    U8,
    Bool,
}

impl Kind {
    /// The type of this name in a safetensors header.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "I64" => Self::I64,
            "I32" => Self::I32,
            "I16" => Self::I16,
            "I8" => Self::I8,
            "U32" => Self::U32,
            "U16" => Self::U16,
            "U8" => Self::U8,
            "BOOL" => Self::Bool,
            _ => return None,
        })
    }

    /// The type of this storage class of torch, as in `torch.HalfStorage`.
    pub fn from_torch_storage(class: &str) -> Option<Self> {
        Some(match class {
            "DoubleStorage" => Self::F64,
            "FloatStorage" => Self::F32,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::Bf16,
            "LongStorage" => Self::I64,
            "IntStorage" => Self::I32,
            "ShortStorage" => Self::I16,
            "CharStorage" => Self::I8,
            "ByteStorage" => Self::U8,
            "BoolStorage" => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes per element in the file.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Reads `count` little-endian elements into the type they have in memory.
    pub fn read(self, reader: &mut impl Read, count: usize) -> io::Result<Data> {
        Ok(match self {
            Self::F64 => Data::F64(fill(reader, count, f64::from_le_bytes)?),
            Self::F32 => Data::F32(fill(reader, count, f32::from_le_bytes)?),
            Self::F16 => Data::F32(fill(reader, count, |b| f16::from_le_bytes(b).to_f32())?),
            Self::Bf16 => Data::F32(fill(reader, count, |b| bf16::from_le_bytes(b).to_f32())?),
            Self::I64 => Data::I64(fill(reader, count, i64::from_le_bytes)?),
            Self::I32 => Data::I64(fill(reader, count, |b| i32::from_le_bytes(b).into())?),
            Self::I16 => Data::I64(fill(reader, count, |b| i16::from_le_bytes(b).into())?),
            Self::I8 => Data::I64(fill(reader, count, |b| i8::from_le_bytes(b).into())?),
            Self::U32 => Data::U32(fill(reader, count, u32::from_le_bytes)?),
            Self::U16 => Data::I64(fill(reader, count, |b| u16::from_le_bytes(b).into())?),
            Self::U8 => Data::U8(fill(reader, count, |[b]| b)?),
            Self::Bool => Data::I64(fill(reader, count, |[b]| i64::from(b != 0))?),
        })
    }
}

/// A tensor of this shape from its little-endian elements; half precision becomes f32.
pub(crate) fn read_tensor(reader: &mut impl Read, dtype: DType, shape: &[usize]) -> io::Result<Tensor> {
    let kind = dtype_name(dtype).and_then(Kind::from_safetensors);
    let kind = kind.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, format!("{dtype:?} has no reader")))?;
    kind.read(reader, shape.iter().product())?.into_tensor(shape).map_err(io::Error::other)
}

/// Elements in memory.
#[derive(Debug)]
pub(super) enum Data {
    F64(Vec<f64>),
    F32(Vec<f32>),
    I64(Vec<i64>),
    U32(Vec<u32>),
    U8(Vec<u8>),
}

impl Data {
    /// A tensor on the CPU without a copy. The shape has as many elements as there are.
    pub fn into_tensor(self, shape: &[usize]) -> candle_core::Result<Tensor> {
        match self {
            Self::F64(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::F32(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::I64(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::U32(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::U8(data) => Tensor::from_vec(data, shape, &Device::Cpu),
        }
    }
}

impl Data {
    /// Copies a strided view out, row by row. All of its elements lie in the data.
    pub fn gather(&self, offset: usize, shape: &[usize], stride: &[usize]) -> Result<Self, TryReserveError> {
        Ok(match self {
            Self::F64(data) => Self::F64(strided(data, offset, shape, stride)?),
            Self::F32(data) => Self::F32(strided(data, offset, shape, stride)?),
            Self::I64(data) => Self::I64(strided(data, offset, shape, stride)?),
            Self::U32(data) => Self::U32(strided(data, offset, shape, stride)?),
            Self::U8(data) => Self::U8(strided(data, offset, shape, stride)?),
        })
    }
}

fn strided<T: Copy>(data: &[T], offset: usize, shape: &[usize], stride: &[usize]) -> Result<Vec<T>, TryReserveError> {
    let mut out = Vec::new();
    if shape.contains(&0) {
        return Ok(out);
    }
    out.try_reserve_exact(shape.iter().product())?;
    let mut index = vec![0; shape.len()];
    let mut at = offset;
    loop {
        out.push(data[at]);
        // Counts up like the wheels of a meter, the last one fastest.
        let Some(axis) = (0..shape.len()).rev().find(|&axis| index[axis] + 1 < shape[axis]) else {
            return Ok(out);
        };
        for lower in axis + 1..shape.len() {
            at -= index[lower] * stride[lower];
            index[lower] = 0;
        }
        index[axis] += 1;
        at += stride[axis];
    }
}

/// Reads through a small buffer, so that the elements are the only large allocation.
fn fill<T, const N: usize>(reader: &mut impl Read, count: usize, from: impl Fn([u8; N]) -> T) -> io::Result<Vec<T>> {
    let mut data = Vec::new();
    data.try_reserve_exact(count).map_err(|cause| io::Error::new(io::ErrorKind::OutOfMemory, cause))?;
    let mut buffer = [0; 1 << 14];
    while data.len() < count {
        let n = (count - data.len()).min(buffer.len() / N);
        let bytes = &mut buffer[..n * N];
        reader.read_exact(bytes)?;
        data.extend(bytes.as_chunks().0.iter().map(|&element| from(element)));
    }
    Ok(data)
}
