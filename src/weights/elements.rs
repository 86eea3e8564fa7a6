//! The element types in files, and the types in memory that they are converted to.

use std::collections::TryReserveError;
use std::io::{self, Read};

use ::safetensors::Dtype;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as Unknown;

/// The element types that are read, of those that the format has.
pub(super) const READ: [Dtype; 12] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I64,
    Dtype::I32,
    Dtype::I16,
    Dtype::I8,
    Dtype::U32,
    Dtype::U16,
    Dtype::U8,
    Dtype::BOOL,
];

/// The element type of this name in a safetensors header, if it is read.
pub(super) fn named(name: &str) -> Option<Dtype> {
    let dtype: Result<Dtype, Unknown> = Dtype::deserialize(name.into_deserializer());
    dtype.ok().filter(|dtype| READ.contains(dtype))
}

/// The element type of this storage class of torch, as in `torch.HalfStorage`, if it is read.
pub(super) fn of_torch_storage(class: &str) -> Option<Dtype> {
    Some(match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// The element type in a file of tensors of this type, if they can be written.
pub(super) fn of_tensor(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::U32 => Dtype::U32,
        DType::U8 => Dtype::U8,
        _ => return None,
    })
}

/// Bytes per element of a type that is read, which are all whole bytes wide.
pub(super) fn size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// Reads `count` little-endian elements into the type that they have in memory.
pub(super) fn read(dtype: Dtype, reader: &mut impl Read, count: usize) -> io::Result<Data> {
    Ok(match dtype {
        Dtype::F64 => Data::F64(fill(reader, count, f64::from_le_bytes)?),
        Dtype::F32 => Data::F32(fill(reader, count, f32::from_le_bytes)?),
        Dtype::F16 => Data::F32(fill(reader, count, |b| f16::from_le_bytes(b).to_f32())?),
        Dtype::BF16 => Data::F32(fill(reader, count, |b| bf16::from_le_bytes(b).to_f32())?),
        Dtype::I64 => Data::I64(fill(reader, count, i64::from_le_bytes)?),
        Dtype::I32 => Data::I64(fill(reader, count, |b| i32::from_le_bytes(b).into())?),
        Dtype::I16 => Data::I64(fill(reader, count, |b| i16::from_le_bytes(b).into())?),
        Dtype::I8 => Data::I64(fill(reader, count, |b| i8::from_le_bytes(b).into())?),
        Dtype::U32 => Data::U32(fill(reader, count, u32::from_le_bytes)?),
        Dtype::U16 => Data::I64(fill(reader, count, |b| u16::from_le_bytes(b).into())?),
        Dtype::U8 => Data::U8(fill(reader, count, |[b]| b)?),
        Dtype::BOOL => Data::I64(fill(reader, count, |[b]| i64::from(b != 0))?),
        other => return Err(unread(&other)),
    })
}

/// A tensor of this shape from its little-endian elements; half precision becomes f32.
pub(crate) fn read_tensor(reader: &mut impl Read, dtype: DType, shape: &[usize]) -> io::Result<Tensor> {
    let stored = of_tensor(dtype).ok_or_else(|| unread(&dtype))?;
    read(stored, reader, shape.iter().product())?.into_tensor(shape).map_err(io::Error::other)
}

fn unread(dtype: &dyn std::fmt::Debug) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{dtype:?} has no reader"))
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
    /// A tensor on the CPU without a copy. The shape must match the data's length.
    pub fn into_tensor(self, shape: &[usize]) -> candle_core::Result<Tensor> {
        match self {
            Self::F64(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::F32(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::I64(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::U32(data) => Tensor::from_vec(data, shape, &Device::Cpu),
            Self::U8(data) => Tensor::from_vec(data, shape, &Device::Cpu),
        }
    }

    /// Copies a strided view out in row-major order. All of its elements must lie in the data.
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
        // The next index in row-major order: the last axis moves fastest.
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
