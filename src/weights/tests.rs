use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A folder, and a small file in it with several types and shapes.
pub(super) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(super) fn sample() -> BTreeMap<String, Tensor> {
    let cpu = &Device::Cpu;
    let f32s = Tensor::arange(0f32, 6., cpu).unwrap().reshape((2, 3)).unwrap();
    BTreeMap::from([
        ("a.weight".to_string(), f32s.clone()),
        ("b.double".to_string(), Tensor::new(&[0.1f64, -2.], cpu).unwrap()),
        ("c.transposed".to_string(), f32s.t().unwrap()),
        ("d.count".to_string(), Tensor::new(7i64, cpu).unwrap()),
        ("e.bytes".to_string(), Tensor::new(&[1u8, 2, 255], cpu).unwrap()),
        ("f.empty".to_string(), Tensor::zeros((0, 4), DType::F32, cpu).unwrap()),
    ])
}

/// A safetensors file made by hand: whatever header, whatever data.
fn raw(folder: &Path, header: &str, data: &[u8]) -> PathBuf {
    let path = folder.join("raw.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
    path
}

/// The error of reading this file.
pub(super) fn refusal(path: &Path) -> String {
    match Weights::read(path) {
        Err(error @ Error::Weights { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

pub(super) fn assert_same(a: &Tensor, b: &Tensor) {
    assert_eq!(a.dims(), b.dims());
    assert_eq!(a.dtype(), b.dtype());
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    assert_eq!(bits(a), bits(b));
}

#[test]
fn round_trip_keeps_values_types_and_metadata() {
    let dir = folder();
    let path = dir.path().join("w.safetensors");
    let tensors = sample();
    write(&path, &tensors, Some("{\"classes\":[\"a \\\"b\\\"\"]}")).unwrap();
    let read = Weights::read(&path).unwrap();
    assert_eq!(read.path, path);
    assert_eq!(read.tensors.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
    for (name, tensor) in &tensors {
        assert_same(tensor, &read.tensors[name]);
        assert!(read.tensors[name].is_contiguous());
    }
    assert_eq!(read.metadata[METADATA_KEY], "{\"classes\":[\"a \\\"b\\\"\"]}");
    assert_eq!(read.metadata["format"], "pt");

    let bytes = fs::read(&path).unwrap();
    write(&path, &read.tensors, Some("{\"classes\":[\"a \\\"b\\\"\"]}")).unwrap();
    assert_eq!(bytes, fs::read(&path).unwrap(), "the same content gives the same bytes");
}

#[test]
fn the_reference_implementation_agrees() {
    let dir = folder();
    let path = dir.path().join("w.safetensors");
    write(&path, &sample(), None).unwrap();
    let bytes = fs::read(&path).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), 6);
    assert_eq!(theirs.tensor("c.transposed").unwrap().shape(), [3, 2]);
    let values: Vec<u8> = [0f32, 3., 1., 4., 2., 5.].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(theirs.tensor("c.transposed").unwrap().data(), values);

    let again = ::safetensors::serialize(theirs.tensors(), None).unwrap();
    fs::write(&path, again).unwrap();
    let ours = Weights::read(&path).unwrap();
    for (name, tensor) in sample() {
        assert_same(&tensor, &ours.tensors[&name]);
    }
}

#[test]
fn narrow_types_are_widened() {
    let dir = folder();
    let header = r#"{
        "h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},
        "b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]},
        "i":{"dtype":"I32","shape":[1],"data_offsets":[8,12]},
        "s":{"dtype":"I16","shape":[1],"data_offsets":[12,14]},
        "u":{"dtype":"U16","shape":[1],"data_offsets":[14,16]},
        "c":{"dtype":"I8","shape":[1],"data_offsets":[16,17]},
        "t":{"dtype":"BOOL","shape":[3],"data_offsets":[17,20]}}"#;
    let data = [
        0x00, 0x3c, 0x00, 0xc0, // 1, -2
        0x80, 0x3f, 0x00, 0xc0, // 1, -2
        0xfe, 0xff, 0xff, 0xff, 0xfd, 0xff, 0xff, 0xff, 0xfc, 0, 1, 1,
    ];
    let read = Weights::read(&raw(dir.path(), header, &data)).unwrap();
    let f32s = |name: &str| read.tensors[name].to_vec1::<f32>().unwrap();
    let i64s = |name: &str| read.tensors[name].to_vec1::<i64>().unwrap();
    assert_eq!(f32s("h"), [1., -2.]);
    assert_eq!(f32s("b"), [1., -2.]);
    assert_eq!(i64s("i"), [-2]);
    assert_eq!(i64s("s"), [-3]);
    assert_eq!(i64s("u"), [65535]);
    assert_eq!(i64s("c"), [-4]);
    assert_eq!(i64s("t"), [0, 1, 1]);
}

#[test]
fn half_tensors_are_written_as_they_are() {
    let dir = folder();
    let path = dir.path().join("w.safetensors");
    let wide = Tensor::new(&[1f32, -0.5, 3.], &Device::Cpu).unwrap();
    let both = [DType::F16, DType::BF16].map(|dtype| (format!("{dtype:?}"), wide.to_dtype(dtype).unwrap()));
    write(&path, &BTreeMap::from(both), None).unwrap();
    let bytes = fs::read(&path).unwrap();
    let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("F16").unwrap().dtype(), ::safetensors::Dtype::F16);
    let read = Weights::read(&path).unwrap();
    for tensor in read.tensors.values() {
        assert_same(tensor, &wide);
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let dir = folder();
    let say = |header: &str, data: usize| refusal(&raw(dir.path(), header, &vec![0; data]));
    let entry = |rest: &str| format!("{{\"x\":{{{rest}}}}}");

    let text = say(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 7);
    assert!(text.contains("\"x\"") && text.contains("outside the 7 bytes"), "{text}");
    let text = say(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#), 9);
    assert!(text.contains("end at byte 8") && text.contains("holds 9"), "{text}");
    let text = say(&entry(r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#), 8);
    assert!(text.contains("needs 12 bytes"), "{text}");
    let text = say(&entry(r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#), 8);
    assert!(text.contains("8..0"), "{text}");
    let text = say(&entry(r#""dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]"#), 2);
    assert!(text.contains("\"x\"") && text.contains("F8_E4M3"), "{text}");
    for shape in ["[4611686018427387904,4]", "[18446744073709551615,18446744073709551615,0]", "[9223372036854775807]"] {
        let text = say(&entry(&format!(r#""dtype":"F32","shape":{shape},"data_offsets":[0,0]"#)), 0);
        assert!(text.contains("too large"), "{text}");
    }
    let text = say(&entry(&format!(r#""dtype":"F32","shape":[{}1],"data_offsets":[0,4]"#, "1,".repeat(16))), 4);
    assert!(text.contains("at most 16 lengths"), "{text}");
    for shape in ["[-1]", "[1.5]", "[18446744073709551616]", "7", "null"] {
        let text = say(&entry(&format!(r#""dtype":"F32","shape":{shape},"data_offsets":[0,4]"#)), 4);
        assert!(text.contains("header is not valid"), "{text}");
    }
    let two = |a: &str, b: &str, data| {
        let x = format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{a}}}"#);
        let y = format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{b}}}"#);
        say(&format!(r#"{{"x":{x},"y":{y}}}"#), data)
    };
    let text = two("[0,4]", "[2,6]", 6);
    assert!(text.contains("overlap"), "{text}");
    let text = two("[0,4]", "[0,4]", 4);
    assert!(text.contains("overlap"), "{text}");
    let text = two("[0,4]", "[5,9]", 9);
    assert!(text.contains("gap"), "{text}");
    let one = r#""x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    let text = say(&format!("{{{one},{one}}}"), 4);
    assert!(text.contains("occurs twice"), "{text}");
    let text = say(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0);
    assert!(text.contains("occurs twice"), "{text}");
    let text = say(&format!("{{\"x\":{}", "[".repeat(100_000)), 0);
    assert!(text.contains("header is not valid"), "{text}");
}

#[test]
fn claims_of_huge_headers_allocate_nothing() {
    let dir = folder();
    let path = dir.path().join("huge");
    for (claim, problem) in
        [(99_999_999u64, "only 2 follow"), (100_000_001, "more than the"), (1 << 40, "more than"), (u64::MAX, "more")]
    {
        fs::write(&path, [&claim.to_le_bytes()[..], b"{}"].concat()).unwrap();
        let text = refusal(&path);
        assert!(text.contains(problem), "{text}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let dir = folder();
    let path = dir.path().join("w");
    write(&path, &sample(), Some("{}")).unwrap();
    let bytes = fs::read(&path).unwrap();
    for n in 0..bytes.len() {
        fs::write(&path, &bytes[..n]).unwrap();
        let text = refusal(&path);
        assert!(text.contains(&*path.to_string_lossy()), "{text}");
    }
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let dir = folder();
    let path = dir.path().join("w.safetensors");
    let tar = |name: &[u8]| {
        let mut tar = vec![0; 512];
        tar[..name.len()].copy_from_slice(name);
        tar[257..262].copy_from_slice(b"ustar");
        tar
    };
    let (old, packed) = (tar(b"storages"), tar(b"weights/best.pth"));
    for (bytes, found) in [
        (&b""[..], "an empty file"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02", "torch.load"),
        (b"\x80\x02}q\x00.", "save_file"),
        (&old, "the tar archive of very old versions of torch.save"),
        (&packed, "a tar archive, 512 bytes long; unpack it"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5 file, as Keras"),
        (b"GGUF\x03\0\0\0\0\0", "GGUF"),
        (b"\x93NUMPY\x01\0v\0", "NumPy array"),
        (b"\x1c\0\0\0TFL3\x14\0", "TensorFlow Lite"),
        (b"\x08\x07\x12\x07pytorch\x1a", "ONNX"),
        (b"\x08\x01\x12\xc8\x01\x0a", "TensorFlow SavedModel"),
        (b"\x81\xa6params\x82\xa4head", "MessagePack file, as Flax"),
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG image"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0", "gzip archive, 10 bytes long; unpack it"),
        (b"Entry not found", "only the text \"Entry not found\""),
        (b"abc", "only the text"),
        (b"\x01\x02\x03", "too short"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a", r"begins with the bytes \x01\x02\x03\x04\x05\x06\x07\x08"),
        (b"{\"not\": \"an index\"}", "weight_map"),
    ] {
        fs::write(&path, bytes).unwrap();
        let text = refusal(&path);
        assert!(text.contains(found) && text.contains("w.safetensors"), "{text}");
    }
    assert!(refusal(dir.path()).contains("a folder"));
    let absent = Weights::read(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(&absent, Error::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound), "{absent}");
}

/// Two shards and their index, whose text is `map` with the shards' own names in it.
fn shards(dir: &Path, map: &str) -> PathBuf {
    let mut first = sample();
    let second = first.split_off("c");
    write(&dir.join("m-1.safetensors"), &first, None).unwrap();
    write(&dir.join("m-2.safetensors"), &second, None).unwrap();
    let path = dir.join("m.safetensors.index.json");
    fs::write(&path, format!("{{\n \"metadata\": {{\"total_size\": 1}}, \"weight_map\": {map}}}")).unwrap();
    path
}

#[test]
fn shards_are_one_file() {
    let dir = folder();
    let map = r#"{"a.weight":"m-1.safetensors","b.double":"m-1.safetensors","c.transposed":"m-2.safetensors"}"#;
    let read = Weights::read(&shards(dir.path(), map)).unwrap();
    assert_eq!(read.tensors.len(), 6);
    for (name, tensor) in sample() {
        assert_same(&tensor, &read.tensors[&name]);
    }
}

#[test]
fn bad_shards_are_refused() {
    let dir = folder();
    let say = |map: &str| refusal(&shards(dir.path(), map));
    let text = say(r#"{"a.weight":"m-1.safetensors","z":"m-3.safetensors","y":"m-4.safetensors"}"#);
    assert!(text.contains("missing") && text.contains("m-3.safetensors, m-4.safetensors"), "{text}");
    let text = say(r#"{"a.weight":"m-1.safetensors","c.transposed":"m-1.safetensors"}"#);
    assert!(text.contains("does not hold: c.transposed"), "{text}");
    let text = say(r#"{"a.weight":"m-1.safetensors","a.weight":"m-2.safetensors"}"#);
    assert!(text.contains("twice"), "{text}");
    let text = say(r#"{"a.weight":"m.safetensors.index.json"}"#);
    assert!(text.contains("index of shards itself"), "{text}");
    fs::copy(dir.path().join("m-1.safetensors"), dir.path().join("copy")).unwrap();
    let text = say(r#"{"a.weight":"m-1.safetensors","b.double":"copy"}"#);
    assert!(text.contains("earlier shard"), "{text}");
    let outside = dir.path().join("m-1.safetensors");
    for name in ["../m-1.safetensors", "..", ".", "", "./m-1.safetensors", "a/../m", "a\\\\b", "C:m", "a\\u0000b"]
        .into_iter()
        .chain(outside.to_str())
    {
        let text = say(&format!("{{\"a\":\"{name}\"}}"));
        assert!(text.contains("is refused"), "{name}: {text}");
    }
}

#[test]
fn what_cannot_be_written_is_said() {
    let dir = folder();
    let path = dir.path().join("w");
    let one = Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap();
    let error = write(&path, &BTreeMap::from([("__metadata__".to_string(), one.clone())]), None).unwrap_err();
    assert!(error.to_string().contains("__metadata__"), "{error}");
    let f8 = one.to_dtype(DType::F8E4M3).unwrap();
    let error = write(&path, &BTreeMap::from([("small".to_string(), f8)]), None).unwrap_err();
    assert!(error.to_string().contains("\"small\""), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Flips, cuts and repeats of the bytes of a good file.
pub(super) fn damage(bytes: &[u8], edits: &[(usize, u8)], len: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, value) in edits {
        let at = at % bytes.len();
        bytes[at] = value;
    }
    bytes.truncate(len.max(1));
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Data may change unseen, for the format has no checksum; but nothing panics, and errors name the file.
    #[test]
    fn damaged_files_never_panic(edits in prop::collection::vec((0usize..1000, any::<u8>()), 1..6), len in 1usize..2000) {
        let dir = folder();
        let path = dir.path().join("w");
        write(&path, &sample(), Some("{}")).unwrap();
        let bytes = damage(&fs::read(&path).unwrap(), &edits, len);
        fs::write(&path, bytes).unwrap();
        if let Err(error) = Weights::read(&path) {
            prop_assert!(error.to_string().contains(&*path.to_string_lossy()), "{}", error);
        }
    }
}
