//! The reader of safetensors: eight bytes of length, a header in JSON, and the tensors one after another.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::elements::Kind;
use super::{MAX_HEADER, MAX_NAMES, MAX_RANK, Source, Weights, element_count, quoted};
use crate::error::{Error, Result, shown};

/// The bytes before the header.
const PREFIX: u64 = 8;

/// Reads the header, proves it against the length of the file, then reads tensor by tensor.
pub(super) fn read(mut source: Source) -> Result<Weights> {
    let (header, data_len) = read_header(&mut source)?;
    let mut tensors = BTreeMap::new();
    for Place { name, kind, shape, count } in places(&source, header.tensors, data_len)? {
        let data = kind.read(&mut source.file, count).map_err(|cause| {
            Error::weights_from(&source.path, format!("tensor {} could not be read", quoted(&name)), cause)
        })?;
        tensors.insert(name, data.into_tensor(&shape)?);
    }
    Ok(Weights::new(source.path, tensors, header.metadata.0))
}

/// The header, and the number of bytes after it.
fn read_header(source: &mut Source) -> Result<(Header, u64)> {
    let failed = Error::io("read", &source.path);
    let mut prefix = [0; PREFIX as usize];
    if let Err(cause) = source.file.read_exact(&mut prefix) {
        return Err(failed(cause));
    }
    let claimed = u64::from_le_bytes(prefix);
    let rest = source.len.saturating_sub(PREFIX);
    if claimed > MAX_HEADER {
        return Err(source.error(format!(
            "the safetensors header claims to be {claimed} bytes long, more than the {MAX_HEADER} that the format \
             allows; the file is damaged"
        )));
    }
    if claimed > rest {
        return Err(source.error(format!(
            "the safetensors header claims to be {claimed} bytes long, but only {rest} follow; the file is cut short \
             or damaged, fetch it again"
        )));
    }
    let mut text = vec![0; claimed as usize];
    if let Err(cause) = source.file.read_exact(&mut text) {
        return Err(failed(cause));
    }
    let header = serde_json::from_slice(&text)
        .map_err(|cause| Error::weights_from(&source.path, "the safetensors header is not valid", cause))?;
    Ok((header, rest - claimed))
}

/// A tensor whose place in the file has been proved.
struct Place {
    name: String,
    kind: Kind,
    shape: Vec<usize>,
    count: usize,
}

/// The tensors in the order of the file. Together they cover the data without overlap, without holes, to the end.
fn places(source: &Source, entries: BTreeMap<String, Entry>, data_len: u64) -> Result<Vec<Place>> {
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut places = Vec::new();
    let mut at = 0;
    for (name, Entry { dtype, shape: Shape(shape), data_offsets: (start, end) }) in entries {
        let wrong = |problem: String| Err(source.error(format!("tensor {}: {problem}", quoted(&name))));
        let Some(kind) = Kind::from_safetensors(&dtype) else {
            return wrong(format!(
                "elements of type {} are not read; accepted are F64, F32, F16, BF16, I64, I32, I16, I8, U32, U16, \
                 U8, BOOL",
                shown(&dtype)
            ));
        };
        let Some((count, bytes)) =
            element_count(&shape).and_then(|count| Some((count, count.checked_mul(kind.size())? as u64)))
        else {
            return wrong(format!("the shape {shape:?} is too large to be true"));
        };
        if end > data_len {
            return wrong(format!(
                "its bytes {start}..{end} lie outside the {data_len} bytes of data; the file is cut short or damaged, \
                 fetch it again"
            ));
        }
        if end.checked_sub(start) != Some(bytes) {
            return wrong(format!(
                "the shape {shape:?} of {dtype} needs {bytes} bytes, but its offsets are {start}..{end}"
            ));
        }
        if start != at {
            let what = if start < at { "overlap the tensor before it" } else { "leave a hole before it" };
            return wrong(format!("its bytes {start}..{end} {what}, which ends at {at}"));
        }
        at = end;
        places.push(Place { name, kind, shape, count });
    }
    if at != data_len {
        return Err(source.error(format!(
            "the tensors of the safetensors header end at byte {at} of the data, but the file holds {data_len}; it \
             is damaged or something was appended to it"
        )));
    }
    Ok(places)
}

/// A header as it stands in the file, nothing proved yet.
struct Header {
    metadata: Unique<String>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
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
