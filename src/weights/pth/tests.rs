use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::error::Error;
use crate::weights::tests::{damage, folder, refusal};

mod containers;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pth").join(format!("{name}.pth"))
}

fn read(name: &str) -> BTreeMap<String, Tensor> {
    let read = Weights::read(&fixture(name)).unwrap();
    assert!(read.tensors.values().all(Tensor::is_contiguous));
    read.tensors
}

fn f32s(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A zip with these entries, stored.
fn packed(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The error of reading a zip with these entries.
fn refuses(entries: &[(&str, &[u8])]) -> String {
    let dir = folder();
    let path = dir.path().join("w.pth");
    fs::write(&path, packed(entries)).unwrap();
    refusal(&path)
}

/// The pickle of one tensor "w" over storage 0 of `count` f32, with its offset, shape and strides.
fn one_tensor(count: u32, offset: u32, shape: &[u32], stride: &[u32]) -> Vec<u8> {
    let int = |n: u32| [&b"\x8a\x05"[..], &n.to_le_bytes(), b"\x00"].concat();
    let tuple = |items: &[u32]| [b"(".to_vec(), items.iter().flat_map(|&n| int(n)).collect(), b"t".to_vec()].concat();
    [
        &b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("[..],
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu",
        &int(count),
        b"tQ",
        &int(offset),
        &tuple(shape),
        &tuple(stride),
        b"\x89NtRs.",
    ]
    .concat()
}

#[test]
fn state_dicts_of_both_protocols_are_read() {
    for name in ["state_dict", "protocol4"] {
        let tensors = read(name);
        let names: Vec<_> = tensors.keys().map(String::as_str).collect();
        let buffers = ["1.bias", "1.num_batches_tracked", "1.running_mean", "1.running_var", "1.weight"];
        assert_eq!(names, [&["0.bias", "0.weight"], &buffers[..]].concat());
        assert_eq!(tensors["0.weight"].dims(), [2, 3]);
        assert_eq!(f32s(&tensors["0.weight"]), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(f32s(&tensors["0.bias"]), [0.5, -1.5]);
        assert_eq!(f32s(&tensors["1.running_var"]), [1., 1.]);
        assert_eq!(tensors["1.num_batches_tracked"].to_scalar::<i64>().unwrap(), 7);
    }
}

#[test]
fn parameters_and_types_are_read() {
    let tensors = read("parameter");
    assert_eq!(f32s(&tensors["weight"]), [0., 1., 2., 3., 4., 5.]);
    assert_eq!(f32s(&tensors["frozen"]), [0., 1., 2.]);

    let tensors = read("half");
    for (name, dtype) in [("weight", DType::F32), ("other", DType::F32), ("double", DType::F64)] {
        assert_eq!(tensors[name].dtype(), dtype);
        assert_eq!(f32s(&tensors[name].to_dtype(DType::F32).unwrap()), [0., 1., 2., 3., 4., 5.]);
    }

    let tensors = read("integers");
    let expected: [(&str, &[i64]); 5] =
        [("i64", &[-1, 1 << 40]), ("i32", &[-2]), ("i16", &[-3]), ("i8", &[-4]), ("bool", &[1, 0])];
    for (name, values) in expected {
        assert_eq!(tensors[name].to_vec1::<i64>().unwrap(), values);
    }
    assert_eq!(tensors["u8"].to_vec1::<u8>().unwrap(), [255]);
}

#[test]
fn views_become_contiguous() {
    let tensors = read("views");
    let check = |name: &str, dims: &[usize], values: &[f32]| {
        assert_eq!(tensors[name].dims(), dims, "{name}");
        assert_eq!(f32s(&tensors[name]), values, "{name}");
    };
    check("transposed", &[3, 2], &[0., 3., 1., 4., 2., 5.]);
    check("column", &[2], &[1., 4.]);
    check("row", &[3], &[3., 4., 5.]);
    check("expanded", &[4], &[0.; 4]);
    check("scalar", &[], &[5.]);
    check("empty", &[0, 3], &[]);
    check("channels_last", &[1, 2, 3, 4], &(0..24).map(|i| i as f32).collect::<Vec<_>>());

    let tied = read("tied");
    assert_eq!(f32s(&tied["first"]), f32s(&tied["second"]));
}

#[test]
fn checkpoints_are_unwrapped() {
    let tensors = read("checkpoint");
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["module._orig_mod.bias", "module._orig_mod.weight"]);
    assert_eq!(f32s(&tensors["module._orig_mod.bias"]), [1., 2.]);
}

#[test]
fn training_checkpoints_are_read_whatever_lies_beside_the_weights() {
    // Of timm's saver: objects of many classes, the optimizer's state and both kinds of weights.
    let found = Weights::read(&fixture("training")).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    assert_eq!(f32s(&found.tensors["bias"]), [3., 4.], "the averaged ones, as in timm");
    assert_eq!(found.notes, ["weights of state_dict_ema (averaged, EMA); the file also has state_dict"]);
    // A dictionary of tensors and other things at once.
    let found = Weights::read(&fixture("flat")).unwrap();
    assert_eq!(found.tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    let others: Vec<_> = found.others.iter().map(|(name, what)| (name.as_str(), what.as_str())).collect();
    assert_eq!(
        others,
        [("args", "argparse.Namespace"), ("epoch", "a whole number"), ("scale", "numpy._core.multiarray.scalar")]
    );
}

#[test]
fn the_legacy_format_says_how_to_convert() {
    let text = refusal(&fixture("legacy"));
    assert!(text.contains("torch.load") && text.contains("save_file"), "{text}");
}

#[test]
fn what_is_no_state_dict_is_refused() {
    for (pickle, words) in [
        (&b"\x80\x02]."[..], "a list instead of a state dict"),
        (b"\x80\x02}.", "state dict is empty"),
        (b"\x80\x02}K\x01K\x02s.", "a whole number as a key"),
        (b"\x80\x02}X\x05\x00\x00\x00epochK\x02s.", "\"epoch\" (a whole number)"),
        (b"\x80\x02}X\x03\x00\x00\x00own}s.", "\"own\" (a dictionary)"),
        (b"\x80\x02}X\x03\x00\x00\x00net}s.", "state dict is empty"),
        (b"\x80\x02}X\x05\x00\x00\x00modelca\nNet\n)\x81s.", "\"model\" (a.Net)"),
        (b"\x80\x02ca\nNet\n)\x81}b.", "holds a.Net instead of a state dict"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.", "more than 4 times"),
        (b"\x80\x02cos\nsystem\n.", "holds os.system instead of a state dict"),
        (b"\x80\x02}X\x01", "ends too early"),
    ] {
        let text = refuses(&[("x/data.pkl", pickle)]);
        assert!(text.contains(words) && text.contains("w.pth"), "{text}");
    }
}

/// As in Python: keys that are set twice, and of dictionaries that have the name of a state dict alone.
#[test]
fn the_dictionary_with_tensors_is_the_state_dict() {
    let tensor = one_tensor(1, 0, &[1], &[1]);
    let body = &tensor[3..tensor.len() - 1];
    let entry =
        |name: &str, value: &[u8]| [b"X", &(name.len() as u32).to_le_bytes()[..], name.as_bytes(), value].concat();
    let full = [b"}", body].concat();
    let (ema, plain) = (entry("model_ema", b"}s"), entry("state_dict", &[&full[..], b"s"].concat()));
    let config = entry("model", &[b"}".to_vec(), entry("name", b"K\x01s"), b"s".to_vec()].concat());
    let net = entry("net", &[&full[..], b"s"].concat());
    for inside in [[body, body].concat(), [&ema[..], &plain].concat(), [&config[..], &net].concat()] {
        let pickle = [b"\x80\x02}", &inside[..], b"."].concat();
        let zip = packed(&[("x/data.pkl", &pickle), ("x/data/0", &[0, 0, 128, 63])]);
        let weights = Weights::from_bytes("w.pth", zip).unwrap();
        assert_eq!(weights.tensors.len(), 1, "{:?}", weights.notes);
        assert_eq!(f32s(&weights.tensors["w"]), [1.0]);
    }
}

#[test]
fn zips_that_are_no_checkpoints_are_refused() {
    let good = one_tensor(2, 0, &[2], &[1]);
    let data: &[u8] = &[0; 8];
    let say = |entries: &[(&str, &[u8])]| refuses(entries);
    for (text, words) in [
        (say(&[("arr_0", data)]), "no data.pkl"),
        (say(&[]), "no data.pkl"),
        (say(&[("data.pkl", &good)]), "no data.pkl"),
        (say(&[("x/data.pkl", &good), ("y/data.pkl", &good)]), "several data.pkl"),
        (say(&[("x/data.pkl", &good)]), "lacks the entry \"x/data/0\""),
        (say(&[("x/data.pkl", &good), ("y/data/0", data)]), "lacks the entry \"x/data/0\""),
        (
            say(&[("x/data.pkl", &good), ("x/data/0", &data[1..])]),
            "it has 7 bytes, but the pickle describes 2 elements",
        ),
        (say(&[("x/data.pkl", &good), ("x/data/0", &[0; 9])]), "it has 9 bytes, but the pickle describes 2 elements"),
        (say(&[("x/data.pkl", &good), ("x/data/0", data), ("x/byteorder", b"big")]), "byte order \"big\""),
    ] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn views_out_of_their_storage_are_refused() {
    let say = |offset, shape: &[u32], stride: &[u32]| {
        refuses(&[("x/data.pkl", &one_tensor(4, offset, shape, stride)), ("x/data/0", &[0; 16])])
    };
    let max = u32::MAX;
    for text in [
        say(1, &[4], &[1]),
        say(5, &[0], &[1]),
        say(4, &[], &[]),
        say(0, &[2], &[4]),
        say(0, &[2, 2], &[1]),
        say(0, &[max, max, max], &[1, 1, 1]),
        say(0, &[max, max], &[0, max]),
        say(max, &[2], &[max]),
    ] {
        assert!(text.contains("\"w\"") && text.contains("does not lie in its storage"), "{text}");
    }
    for text in [say(0, &[max], &[0]), say(0, &[1 << 30, 2], &[0, 1]), say(0, &[1; 17], &[1; 17])] {
        assert!(text.contains("refused: views") || text.contains("not at most 16 lengths"), "{text}");
    }
}

#[test]
fn compressed_entries_are_refused() {
    // The compression method in the local and the central header of the first entry: deflated.
    let mut bytes = packed(&[("x/data.pkl", b"\x80\x02}.")]);
    let central = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[8] = 8;
    bytes[central + 10] = 8;
    let dir = folder();
    let path = dir.path().join("w");
    fs::write(&path, bytes).unwrap();
    let text = refusal(&path);
    assert!(text.contains("x/data.pkl") && text.contains("compressed"), "{text}");
}

#[test]
fn a_changed_byte_of_a_storage_is_found() {
    let dir = folder();
    let path = dir.path().join("w");
    let mut bytes = packed(&[("x/data.pkl", &one_tensor(2, 0, &[2], &[1])), ("x/data/0", b"elements")]);
    fs::write(&path, &bytes).unwrap();
    assert_eq!(Weights::read(&path).unwrap().tensors["w"].dims(), [2]);
    let at = bytes.windows(8).position(|w| w == b"elements").unwrap();
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let text = refusal(&path);
    assert!(text.contains("data/0") && text.to_lowercase().contains("checksum"), "{text}");
}

#[test]
fn entries_over_the_same_bytes_are_refused() {
    // The second entry's central header is made to point to the first entry.
    let mut bytes = packed(&[("x/data.pkl", b"\x80\x02}."), ("x/data.two", b"\x80\x02}.")]);
    let central: Vec<_> = (0..bytes.len() - 4).filter(|&i| &bytes[i..i + 4] == b"PK\x01\x02").collect();
    bytes[central[1] + 42..central[1] + 46].fill(0);
    let dir = folder();
    let path = dir.path().join("w");
    fs::write(&path, &bytes).unwrap();
    let text = refusal(&path);
    assert!(text.contains("overlap"), "{text}");
}

#[test]
fn every_truncation_is_refused() {
    let bytes = fs::read(fixture("state_dict")).unwrap();
    let dir = folder();
    let path = dir.path().join("w.pth");
    for n in 0..bytes.len() {
        fs::write(&path, &bytes[..n]).unwrap();
        refusal(&path);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Checksums cover all that matters: a damaged file is refused or gives the very same tensors.
    #[test]
    fn damage_is_found(edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..5), cut in 0usize..4000) {
        let bytes = fs::read(fixture("views")).unwrap();
        let dir = folder();
        let path = dir.path().join("w.pth");
        fs::write(&path, damage(&bytes, &edits, if cut < 2000 { bytes.len() } else { cut - 2000 })).unwrap();
        match Weights::read(&path) {
            Ok(found) => {
                let expected = read("views");
                prop_assert_eq!(found.tensors.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (name, tensor) in &expected {
                    prop_assert_eq!(tensor.dims(), found.tensors[name].dims());
                    prop_assert_eq!(f32s(tensor), f32s(&found.tensors[name]));
                }
            }
            Err(error) => prop_assert!(error.to_string().contains("w.pth"), "{}", error),
        }
    }

    /// With right checksums around it, no pickle makes the reader panic.
    #[test]
    fn damaged_pickles_never_panic(edits in prop::collection::vec((any::<usize>(), any::<u8>()), 1..5), len in 1usize..400) {
        let pickle = damage(&one_tensor(4, 0, &[2, 2], &[1, 2]), &edits, len);
        let dir = folder();
        let path = dir.path().join("w.pth");
        fs::write(&path, packed(&[("x/data.pkl", &pickle), ("x/data/0", &[0; 16])])).unwrap();
        if let Err(error) = Weights::read(&path) {
            prop_assert!(matches!(error, Error::Weights { .. }), "{}", error);
        }
    }
}
