//! Untrusted files: damaged or hostile input is an error of a known kind with a message of bounded length, never a
//! panic, and takes bounded time and memory.

use candle_finetune::Error;
use candle_finetune::fuzzing::{
    READERS, Reader, complaint, description, header, index, pickle, weights, weights_at, wrapped,
};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The seeds of a target by name, with the crate's other fixtures.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut folders = vec![tests.join("seeds").join(target)];
    if target == "pth" {
        folders.push(tests.join("fixtures/pth"));
    }
    let mut seeds: Vec<_> = folders.iter().flat_map(|folder| files(folder)).collect();
    seeds.sort();
    let named = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap());
    seeds.into_iter().map(named).collect()
}

/// The files under a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = vec![];
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn refusal(outcome: candle_finetune::Result<usize>) -> String {
    assert_eq!(complaint(&outcome), None);
    outcome.unwrap_err().to_string()
}

/// Reproducible damage.
struct Damage(u64);

impl Damage {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len);
        start..(start + 1 + self.below(16)).min(len)
    }

    /// One to three changes: bytes set, flipped, removed, repeated or taken from another seed, numbers made extreme.
    fn done_to(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        const BYTES: [u8; 16] = *b"\0\x01\x7f\x80\xff\x85.(tQRhq\"{[";
        const TEXTS: [&[u8]; 8] = [
            b"-1",
            b"9223372036854775807",
            b"18446744073709551615",
            b"1e999",
            b"null",
            b"[]",
            b"{}",
            b"\xff\xff\xff\xff\xff\xff\xff\x7f",
        ];
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let range = self.range(bytes.len());
            let at = range.start;
            match self.below(8) {
                0 if !bytes.is_empty() => bytes[at] = BYTES[self.below(16)],
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 => drop(bytes.drain(range)),
                3 => drop(bytes.splice(at..at, bytes[range].to_vec())),
                4 => drop(bytes.splice(at..at, other[self.range(other.len())].to_vec())),
                5 => drop(bytes.splice(range, TEXTS[self.below(8)].to_vec())),
                6 => bytes.truncate(at),
                _ => {
                    // Makes the next number in the text huge, or removes it.
                    if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                        bytes.splice(at + digit..=at + digit, TEXTS[self.below(5)].to_vec());
                    }
                }
            }
        }
        bytes
    }
}

#[test]
fn seeds_are_read_or_refused() {
    for (target, reader) in READERS {
        let seeds = seeds(target);
        let (read, refused): (Vec<_>, Vec<_>) = seeds.iter().partition(|(name, bytes)| {
            let outcome = reader(bytes);
            assert_eq!(complaint(&outcome), None, "{target}/{name}");
            outcome.is_ok()
        });
        let names = |seeds: &[&(String, Vec<u8>)]| seeds.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        // The seed `call` would run a program if pickles were executed; its result is not a state dict.
        let expected: &[&str] = match target {
            "safetensors" | "header" => &[],
            "pth" => &["legacy.pth", "no_pickle"],
            "pickle" => &["call", "deep", "memo_bomb"],
            "index" => &["outside"],
            _ => &["deep", "unknown"],
        };
        assert_eq!(names(&refused), expected, "{target}");
        assert!(read.len() >= 3, "{target}: {:?}", names(&read));
    }
}

#[test]
fn damaged_seeds_are_errors() {
    for (target, reader) in READERS {
        let (mut damage, mut outcomes) = (Damage(1), [0; 2]);
        let seeds = seeds(target);
        let times = if matches!(target, "index" | "description") { 200 } else { 400 };
        for (name, bytes) in &seeds {
            for i in 0..times {
                let (_, other) = &seeds[damage.below(seeds.len())];
                let damaged = damage.done_to(bytes, other);
                let outcome = reader(&damaged);
                assert_eq!(complaint(&outcome), None, "{target}/{name}, change {i}: {}", damaged.escape_ascii());
                outcomes[usize::from(outcome.is_ok())] += 1;
            }
        }
        assert!(outcomes.iter().all(|&n| n > 20), "{target}: refused and read {outcomes:?}");
    }
}

/// A safetensors header of one tensor "x" with these offsets, and eight bytes of data.
fn offsets(of: &str) -> Vec<u8> {
    format!("\0\u{8}{{\"x\":{{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":{of}}}}}").into_bytes()
}

#[test]
fn offsets_that_lie_are_refused() {
    assert_eq!(header(&offsets("[0,8]")).unwrap(), 1);
    for (of, words) in [
        ("[8,0]", "8..0"),
        ("[1,9]", "outside the 8 bytes"),
        ("[18446744073709551615,7]", "18446744073709551615..7"),
        ("[18446744073709551608,18446744073709551615]", "outside the 8 bytes"),
        ("[0,18446744073709551616]", "header is not valid"),
        ("[-8,0]", "header is not valid"),
        ("[0,4,4,8]", "header is not valid"),
    ] {
        let text = refusal(header(&offsets(of)));
        assert!(text.contains(words), "{of}: {text}");
    }
    let two = br#"00{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#;
    let text = refusal(header(&[b"\0\x03", &two[2..]].concat()));
    assert!(text.contains("overlap"), "{text}");
}

#[test]
fn headers_of_a_hundred_megabytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w");
    // A sparse file takes no disk. Its header length is true, one more than the maximum, or longer than the file.
    for (claim, len, words) in [
        (100_000_000u64, 100_000_008, "header is not valid"),
        (100_000_001, 100_000_009, "more than the 100000000"),
        (100_000_000, 1000, "only 992 follow"),
    ] {
        let mut file = File::create(&path).unwrap();
        file.write_all(&[&claim.to_le_bytes()[..], b"{"].concat()).unwrap();
        file.set_len(len).unwrap();
        let text = refusal(weights_at(&path));
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn more_names_than_any_network_has() {
    let entries: Vec<String> = (0..200_001).map(|i| format!("\"{i}\":\"\"")).collect();
    let text = refusal(header(format!("\0\0{{\"__metadata__\":{{{}}}}}", entries.join(",")).as_bytes()));
    assert!(text.contains("more than 200000 names"), "{text}");
    let text = refusal(index(format!("{{\"weight_map\":{{{}}}}}", entries.join(",")).as_bytes()));
    assert!(text.contains("more than 200000 names"), "{text}");
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let entries: Vec<String> = (0..200_001).map(|i| format!("\"{i}\":{entry}")).collect();
    let text = refusal(header(format!("\0\0{{{}}}", entries.join(",")).as_bytes()));
    assert!(text.contains("more than 200000 tensors"), "{text}");
}

#[test]
fn deep_nesting_overflows_no_stack() {
    let [open, close] = ["[", "]"].map(|bracket| bracket.repeat(100_000));
    for (reader, text) in [
        (header as Reader, format!("\0\0{{\"x\":{open}{close}}}")),
        (header, format!("\0\0{{\"__metadata__\":{open}{close}}}")),
        (index, format!("{{\"weight_map\":{open}{close}}}")),
        (index, format!("{{\"other\":{open}{close}}}")),
        (description, format!("{{\"architecture\":\"resnet18\",\"other\":{open}{close}}}")),
    ] {
        let error = refusal(reader(text.as_bytes()));
        let words = ["recursion limit", "invalid type", "missing field `weight_map`"];
        assert!(words.iter().any(|words| error.contains(words)), "{error}");
    }
    // 400,000 nested tuples, and 150,000 lists that would wait on the stack.
    let tuples = [b"\x80\x02)".to_vec(), vec![0x85; 400_000], b".".to_vec()].concat();
    assert!(refusal(pickle(&tuples)).contains("a tuple instead of a state dict"));
    let lists = [b"\x80\x02".to_vec(), vec![b']'; 150_000], vec![b'a'; 149_999], b".".to_vec()].concat();
    assert!(refusal(pickle(&lists)).contains("values on its stack"));
}

#[test]
fn memo_bombs_do_not_go_off() {
    // Each value holds the previous one twice: as tuples, as lists, and as dictionaries that a state dict may wrap.
    let [mut tuples, mut lists, mut dicts] = [b")q\x00".to_vec(), b"]q\x00".to_vec(), b"}q\x00".to_vec()];
    for i in 0..100u8 {
        tuples.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
        lists.extend([b']', b'(', b'h', i, b'h', i, b'e', b'q', i + 1]);
        let key = |name: &[u8]| [b"X\x05\x00\x00\x00", name].concat();
        dicts.extend(
            [b"}(".to_vec(), key(b"model"), vec![b'h', i], key(b"other"), vec![b'h', i, b'u', b'q', i + 1]].concat(),
        );
    }
    for (bomb, words) in [(tuples, "a tuple instead"), (lists, "a list instead"), (dicts, "wrapped more than 4 times")]
    {
        let text = refusal(pickle(&[b"\x80\x02", &bomb[..], b"."].concat()));
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn zip_bombs_do_not_go_off() {
    let good = wrapped(&seeds("pickle").into_iter().find(|(name, _)| name == "plain").unwrap().1).unwrap();
    assert_eq!(weights(&good).unwrap(), 1);
    let central = good.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    // The first entry, the pickle: method, compressed and uncompressed size, in the local and the central header.
    let changed = |method: u8, packed: Option<u32>, size: Option<u32>| {
        let mut bytes = good.clone();
        for (method_at, sizes_at) in [(8, 18), (central + 10, central + 20)] {
            bytes[method_at] = method;
            for (at, size) in [(sizes_at, packed), (sizes_at + 4, size)] {
                size.into_iter().for_each(|size| bytes[at..at + 4].copy_from_slice(&size.to_le_bytes()));
            }
        }
        refusal(weights(&bytes))
    };
    let huge = Some(u32::MAX - 1);
    // Deflate; then deflate, bzip2, LZMA and zstd with a declared size of four gigabytes.
    for (method, size) in [(8, None), (8, huge), (12, huge), (14, huge), (93, huge)] {
        let text = changed(method, None, size);
        assert!(text.contains("data.pkl\" is compressed"), "{text}");
    }
    assert!(changed(0, None, huge).contains("two lengths"));
    assert!(changed(0, huge, huge).contains("overlap"));
    // A terabyte, declared in the zip64 field.
    let mut bytes = good.clone();
    let name_len = usize::from(bytes[central + 28]);
    let field = [&b"\x01\x00\x10\x00"[..], &(1u64 << 40).to_le_bytes(), &(1u64 << 40).to_le_bytes()].concat();
    bytes[central + 20..central + 28].fill(0xff);
    bytes[central + 30] = field.len() as u8;
    bytes.splice(central + 46 + name_len..central + 46 + name_len, field);
    let end = bytes.windows(4).position(|w| w == b"PK\x05\x06").unwrap();
    bytes[end + 12] += 20;
    let text = refusal(weights(&bytes));
    assert!(text.contains("overlap"), "{text}");
    // More entries than bytes.
    let mut bytes = good.clone();
    let end = bytes.len() - 22;
    bytes[end + 8..end + 12].fill(0xfe);
    let text = refusal(weights(&bytes));
    assert!(text.contains("the zip is damaged"), "{text}");
}

#[test]
fn names_in_an_index_stay_in_its_folder() {
    for name in
        ["../a.safetensors", "..", "/a.safetensors", "/etc/passwd", "sub/../../a", "C:\\\\a", "\\\\\\\\host\\\\a", ""]
    {
        let text = refusal(index(format!("{{\"weight_map\":{{\"a\":\"{name}\"}}}}").as_bytes()));
        assert!(text.contains("is refused: a shard has a plain file name"), "{name}: {text}");
    }
}

#[test]
fn messages_are_short_and_command_no_terminal() {
    let long = "\u{7f}".repeat(1 << 20);
    let clear = "\\u001b[2J";
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,2]}"#;
    for (reader, text) in [
        (header as Reader, format!("\0\0{{\"{long}\":{entry}}}")),
        (header, format!("\0\0{{\"{clear}\":{entry}}}")),
        (header, format!("\0\0{{\"x\":\"{long}\"}}")),
        (header, format!("\0\0{{\"x\":{{\"dtype\":\"{clear}{long}\",\"shape\":[],\"data_offsets\":[0,0]}}}}")),
        (header, format!("\0\0{{\"{long}\":{entry},\"{long}\":{entry}}}")),
        (index, format!("{{\"weight_map\":{{\"a\":\"{long}\"}}}}")),
        (index, format!("{{\"weight_map\":{{\"a\":\"/{clear}\"}}}}")),
        (index, format!("{{\"weight_map\":{{\"{clear}{long}\":\"a.safetensors\"}}}}")),
        (description, format!("{{\"architecture\":\"{clear}\"}}")),
        (description, format!("{{\"model_type\":\"{clear}{long}\"}}")),
        (description, format!("{{\"architecture\":\"resnet18\",\"interpolation\":\"{clear}\u{7f}\"}}")),
    ] {
        let text = refusal(reader(text.as_bytes()));
        assert!(text.contains("\\u{"), "{text}");
    }
    let name = [&b"\x80\x02}X\x00\x00\x10\x00"[..], long.as_bytes(), b"K\x01s."].concat();
    assert!(refusal(pickle(&name)).contains("\\u{7f}"));
}

#[test]
fn nothing_takes_for_ever() {
    let start = Instant::now();
    // A name with a million prefixes.
    let name = "module.".repeat(1_000_000) + "w";
    let plain = seeds("pickle").into_iter().find(|(name, _)| name == "plain").unwrap().1;
    let at = plain.windows(6).position(|w| w == b"X\x01\x00\x00\x00w").unwrap();
    let named = [&b"X"[..], &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat();
    let long = [&plain[..at], &named, &plain[at + 6..]].concat();
    assert_eq!(pickle(&long).unwrap(), 1);
    // An architecture's name of three megabytes, similar to none.
    let name = "resnet".repeat(500_000);
    let error = description(format!("{{\"architecture\":\"{name}\"}}").as_bytes()).unwrap_err();
    assert!(matches!(&error, Error::UnknownArch { name, .. } if name.len() < 1000), "{error}");
    // A number of three million digits.
    let digits = "9".repeat(1_500_000);
    let config = format!("{{\"architecture\":\"resnet18\",\"crop_pct\":0.{digits}{digits}}}");
    assert_eq!(description(config.as_bytes()).unwrap(), 0);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn descriptions_without_end_are_refused() {
    let long = format!("{{\"a\":\"{}\"}}", "a".repeat(4_000_000));
    let text = refusal(description(long.as_bytes()));
    assert!(text.contains("too long for a description"), "{text}");
    #[cfg(unix)]
    {
        use candle_finetune::{Arch, Backbone, Source};
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("config.json")).unwrap();
        let loaded = Backbone::load(Source::dir(folder.path()).arch(Arch::RESNET18), &crate::support::CPU);
        let text = loaded.unwrap_err().to_string();
        assert!(text.contains("not a regular file"), "{text}");
    }
}

#[test]
fn nothing_of_a_pickle_is_run_and_what_needs_it_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let command = format!("touch {}", trace.display());
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let call = [&b"cos\nsystem\n"[..], &text(&command), b"\x85R"].concat();
    let plain = seeds("pickle").into_iter().find(|(name, _)| name == "plain").unwrap().1;
    // Its one tensor "w" without the pickle's beginning and end: a key and a value.
    let at = plain.windows(6).position(|w| w == b"X\x01\x00\x00\x00w").unwrap();
    let tensor = &plain[at..plain.len() - 2];
    let pickled = |entries: &[&[u8]]| [b"\x80\x02}(", &entries.concat()[..], b"u."].concat();
    // In place of the state dict, of its only tensor, and of a wrapped state dict.
    for bytes in [
        [b"\x80\x02", &call[..], b"."].concat(),
        pickled(&[&text("w"), &call]),
        pickled(&[&text("state_dict"), &call, &text("epoch"), b"K\x01"]),
    ] {
        let text = refusal(pickle(&bytes));
        assert!(text.contains("os.system"), "{text}");
    }
    // Beside a state dict, it is skipped.
    assert_eq!(pickle(&pickled(&[tensor, &text("hook"), &call])).unwrap(), 1);
    let wrapped = [&text("state_dict")[..], b"}(", tensor, b"u"].concat();
    assert_eq!(pickle(&pickled(&[&wrapped, &text("hook"), &call])).unwrap(), 1);
    assert!(!trace.exists(), "a command was run");
}

/// A folder of malicious or obfuscated pickles: all are refused, bare and inside a zip as torch.save writes it.
#[test]
fn a_collection_of_pickles_is_refused() {
    const VARIABLE: &str = "CANDLE_FINETUNE_PICKLES";
    let Some(folder) = std::env::var_os(VARIABLE) else {
        println!("skipped: {VARIABLE} names no folder of pickles; fuzz/README.md says where there is one");
        return;
    };
    let mut paths = files(Path::new(&folder));
    paths.retain(|path| path.extension().is_none_or(|e| e != "py"));
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    let reason = |outcome: candle_finetune::Result<usize>, path: &Path| {
        let text = refusal(outcome);
        text.replace(&*path.to_string_lossy(), "").trim_start_matches(": ").chars().take(110).collect::<String>()
    };
    for path in &paths {
        let name = path.strip_prefix(&folder).unwrap().display();
        println!("| {name} | {} |", reason(weights_at(path), path));
        let bytes = fs::read(path).unwrap();
        if !bytes.starts_with(b"PK") {
            println!("| {name}, as data.pkl | {} |", reason(pickle(&bytes), Path::new("not/there/in memory")));
        }
    }
    println!("{} files, all refused", paths.len());
}
