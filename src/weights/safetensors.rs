//! The reader of safetensors: eight bytes of length, a header in JSON, and the tensors one after another.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;

use ::safetensors::SafeTensorError;
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{MAX_HEADER, MAX_NAMES, MAX_RANK, OpenFile, Weights, element_count, elements, quoted};
use crate::error::{Error, Result, shown};

/// The bytes before the header.
const PREFIX: u64 = 8;

/// Reads the header, validates it against the length of the file, then reads one tensor after the other.
pub(super) fn read(mut file: OpenFile) -> Result<Weights> {
    let (header, data_len) = read_header(&mut file)?;
    let mut tensors = BTreeMap::new();
    for (name, TensorInfo { dtype, shape, .. }) in in_file_order(&file, header.tensors, data_len)? {
        let data = elements::read(dtype, &mut file.reader, shape.iter().product()).map_err(|cause| {
            Error::weights_from(&file.path, format!("tensor {} could not be read", quoted(&name)), cause)
        })?;
        tensors.insert(name, data.into_tensor(&shape)?);
    }
    Ok(Weights::new(file.path, tensors, header.metadata.0))
}

/// The header, and the number of bytes after it.
fn read_header(file: &mut OpenFile) -> Result<(Header, u64)> {
    let failed = Error::io("read", &file.path);
    let mut prefix = [0; PREFIX as usize];
    if let Err(cause) = file.reader.read_exact(&mut prefix) {
        return Err(failed(cause));
    }
    let claimed = u64::from_le_bytes(prefix);
    let rest = file.len.saturating_sub(PREFIX);
    if claimed > MAX_HEADER {
        return Err(file.error(format!(
            "the safetensors header claims to be {claimed} bytes long, more than the {MAX_HEADER} that the format \
             allows; the file is damaged"
        )));
    }
    if claimed > rest {
        return Err(file.error(format!(
            "the safetensors header claims to be {claimed} bytes long, but only {rest} follow; the file is cut short \
             or damaged, fetch it again"
        )));
    }
    let mut text = vec![0; claimed as usize];
    if let Err(cause) = file.reader.read_exact(&mut text) {
        return Err(failed(cause));
    }
    let header = serde_json::from_slice(&text)
        .map_err(|cause| Error::weights_from(&file.path, "the safetensors header is not valid", cause))?;
    Ok((header, rest - claimed))
}

/// The tensors in the order of the file, validated: each can be read, and together they cover the data from its first
/// byte to its last, without overlap and without a gap.
fn in_file_order(
    file: &OpenFile,
    entries: BTreeMap<String, Entry>,
    data_len: u64,
) -> Result<Vec<(String, TensorInfo)>> {
    let mut infos = Vec::with_capacity(entries.len());
    for (name, Entry { dtype, shape: Shape(shape), data_offsets }) in entries {
        let Some(dtype) = elements::named(&dtype) else {
            let accepted = elements::READ.map(|dtype| dtype.to_string()).join(", ");
            let dtype = shown(&dtype);
            let problem = format!("elements of type {dtype} are not read; accepted are {accepted}");
            return Err(wrong(file, &name, &problem));
        };
        if element_count(&shape).is_none() {
            return Err(wrong(file, &name, &too_large(&shape)));
        }
        infos.push((name, TensorInfo { dtype, shape, data_offsets }));
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);
    if let Some((name, info)) = infos.iter().find(|(_, info)| info.data_offsets.1 as u64 > data_len) {
        let (start, end) = info.data_offsets;
        let problem = format!(
            "its bytes {start}..{end} lie outside the {data_len} bytes of data; the file is cut short or damaged, \
             fetch it again"
        );
        return Err(wrong(file, name, &problem));
    }
    let valid = Metadata::new(None, infos.clone()).map_err(|cause| invalid(file, &infos, cause))?;
    let end = valid.data_len() as u64;
    if end != data_len {
        return Err(file.error(format!(
            "the tensors of the safetensors header end at byte {end} of the data, but the file holds {data_len}; it \
             is damaged or something was appended to it"
        )));
    }
    Ok(infos)
}

/// The error of the `safetensors` crate's validation, with the tensor at fault.
fn invalid(file: &OpenFile, infos: &[(String, TensorInfo)], cause: SafeTensorError) -> Error {
    if let SafeTensorError::InvalidOffset(name) = &cause
        && let Some(at) = infos.iter().position(|(of, _)| of == name)
    {
        let (start, end) = infos[at].1.data_offsets;
        let expected = at.checked_sub(1).map_or(0, |before| infos[before].1.data_offsets.1);
        let problem = if end < start {
            format!("its bytes {start}..{end} end before they begin; the file is damaged")
        } else {
            let what = if start < expected { "overlap the tensor before it" } else { "leave a gap before it" };
            format!("its bytes {start}..{end} {what}, which ends at {expected}; the file is damaged")
        };
        return wrong(file, name, &problem);
    }
    // The other errors name no tensor. All before the one at fault are valid, so it is the first that fails alone.
    let fails_alone = |(name, info): &&(String, TensorInfo)| {
        let (start, end) = info.data_offsets;
        let alone = TensorInfo { data_offsets: (0, end.saturating_sub(start)), ..info.clone() };
        Metadata::new(None, vec![(name.clone(), alone)]).is_err()
    };
    match (cause, infos.iter().find(fails_alone)) {
        (SafeTensorError::TensorInvalidInfo, Some((name, TensorInfo { dtype, shape, data_offsets: (start, end) }))) => {
            let bytes = shape.iter().product::<usize>() * elements::size(*dtype);
            let problem =
                format!("the shape {shape:?} of {dtype} needs {bytes} bytes, but its offsets are {start}..{end}");
            wrong(file, name, &problem)
        }
        (SafeTensorError::ValidationOverflow, Some((name, info))) => wrong(file, name, &too_large(&info.shape)),
        (cause, _) => Error::weights_from(&file.path, "the safetensors header is not valid", cause),
    }
}

fn wrong(file: &OpenFile, name: &str, problem: &str) -> Error {
    file.error(format!("tensor {}: {problem}", quoted(name)))
}

fn too_large(shape: &[usize]) -> String {
    format!("the shape {shape:?} is too large to be true; the file is damaged")
}

/// A header as it stands in the file, before validation.
struct Header {
    metadata: Unique<String>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// A shape of at most [`MAX_RANK`] lengths, so that a long list of zeros does not grow eightfold in memory.
struct Shape(Vec<usize>);

/// A map in which no key occurs twice; serde alone would let the last one win.
pub(super) struct Unique<T>(pub BTreeMap<String, T>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut metadata = None;
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if tensors.len() == MAX_NAMES {
                        return Err(A::Error::custom(format!("it has more than {MAX_NAMES} tensors")));
                    }
                    let again = if name == "__metadata__" {
                        metadata.replace(map.next_value()?).is_some()
                    } else {
                        let entry = map.next_value().map_err(|cause: A::Error| {
                            A::Error::custom(format!("tensor {}: {cause}", quoted(&name)))
                        })?;
                        tensors.insert(name.clone(), entry).is_some()
                    };
                    if again {
                        return Err(A::Error::custom(format!("{} occurs twice", quoted(&name))));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or(Unique(BTreeMap::new())), tensors })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lengths;
        impl<'de> Visitor<'de> for Lengths {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a shape of at most {MAX_RANK} lengths")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(length) = seq.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::invalid_length(MAX_RANK + 1, &self));
                    }
                    shape.push(length);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Lengths)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if pairs.len() == MAX_NAMES {
                        return Err(A::Error::custom(format!("it has more than {MAX_NAMES} names")));
                    }
                    if let Some(_first) = pairs.insert(key.clone(), value) {
                        return Err(A::Error::custom(format!("{} occurs twice", quoted(&key))));
                    }
                }
                Ok(Unique(pairs))
            }
        }
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}
