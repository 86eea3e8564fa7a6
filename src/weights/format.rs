//! The format of a file, recognised by its content, since extensions are often wrong.

use super::{OpenFile, quoted};
use crate::error::{Error, Result};

/// The formats that are read.
pub(super) enum Format {
    Safetensors,
    Index,
    Zip,
}

/// The first bytes of what `torch.save` wrote before it wrote zips: a pickle of torch's magic number.
const LEGACY_TORCH: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The remedy for weights of another framework.
pub(super) const CONVERT: &str = "load it in Python with the library that wrote it, and save the PyTorch model's \
                                  state dict with safetensors.torch.save_file";

/// Files that are often mistaken for weights: an offset, the bytes there, what the file is, and the remedy.
const OTHERS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "fetch it with `git lfs pull`"),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes", CONVERT),
    (0, b"GGUF", "a GGUF file", CONVERT),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", CONVERT),
    (4, b"TFL3", "a TensorFlow Lite model", CONVERT),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"\x1f\x8b\x08", "a gzip archive", UNPACK),
    (0, b"BZh", "a bzip2 archive", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz archive", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"\x89PNG", "a PNG image", NAME_THE_WEIGHTS),
    (0, b"\xff\xd8\xff", "a JPEG image", NAME_THE_WEIGHTS),
    (0, b"GIF8", "a GIF image", NAME_THE_WEIGHTS),
    (0, b"RIFF", "a RIFF file, a WebP image for one", NAME_THE_WEIGHTS),
    (0, b"II*\0", "a TIFF image", NAME_THE_WEIGHTS),
    (0, b"MM\0*", "a TIFF image", NAME_THE_WEIGHTS),
    (0, b"%PDF", "a PDF", NAME_THE_WEIGHTS),
    (0, b"\x7fELF", "a program", NAME_THE_WEIGHTS),
];

/// Entries of the tar archives that `torch.save` wrote before version 0.1.10.
const TORCH_TAR: [&[u8]; 4] = [b"sys_info", b"pickle", b"storages", b"tensors"];

const UNPACK: &str = "unpack it and name the file of weights inside";
const NAME_THE_WEIGHTS: &str = "name the file of weights";

/// Recognises the format by the first bytes. Rewinds the file.
pub(super) fn of(file: &mut OpenFile) -> Result<Format> {
    let start = file.start(512)?;
    let text = start.trim_ascii_start();
    let (found, remedy) = match &start[..] {
        [] => ("an empty file".into(), "fetch it again"),
        [b'P', b'K', 3 | 5, 4 | 6, ..] => return Ok(Format::Zip),
        bytes if bytes.starts_with(LEGACY_TORCH) => return Err(pickled(file, "the legacy pickle of torch.save")),
        // The highest byte of a header's length is always zero, of text never.
        [_, _, _, _, _, _, _, high, ..] if text.starts_with(b"{") && *high != 0 && start[..8].is_ascii() => {
            return Ok(Format::Index);
        }
        [_, _, _, _, _, _, _, _, b'{', ..] => return Ok(Format::Safetensors),
        [0x80, 2..=5, ..] => return Err(pickled(file, "a bare Python pickle")),
        bytes => match OTHERS.iter().find(|(at, magic, ..)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic))) {
            Some((_, b"ustar", ..)) if TORCH_TAR.iter().any(|name| bytes.starts_with(name)) => {
                return Err(pickled(file, "the tar archive of very old versions of torch.save"));
            }
            Some(&(_, _, found, remedy)) => (found.into(), remedy),
            None => unmarked(bytes, text),
        },
    };
    Err(file.error(format!(
        "unrecognised weights file: this is {found}, {} bytes long; {remedy}. Accepted are safetensors, an index of \
         safetensors shards (*.index.json), and the zip format of torch.save (.pth, .pt, .bin)",
        file.len
    )))
}

/// Formats without magic bytes.
fn unmarked(bytes: &[u8], text: &[u8]) -> (String, &'static str) {
    let tag = |b: u8| matches!(b, 0x12 | 0x1a | 0x22 | 0x3a | 0x42);
    match bytes {
        // Protocol buffers: field 1 is a version; a text or a message follows.
        [8, 1, 0x12, ..] => ("a TensorFlow SavedModel".into(), CONVERT),
        [8, 2..=64, next, ..] if tag(*next) => ("an ONNX model".into(), CONVERT),
        // A map whose first key is a short text.
        [0x81..=0x8f, 0xa1..=0xbf, ..] | [0xde, _, _, 0xa1..=0xbf, ..] => {
            ("a MessagePack file, as Flax writes".into(), CONVERT)
        }
        _ if text.starts_with(b"<") => {
            ("a web page or XML (was an error page downloaded instead?)".into(), "fetch the file again")
        }
        _ if text.len() < 400 && text.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            let text = String::from_utf8_lossy(text);
            (format!("only the text {}", quoted(text.trim())), "fetch the file again")
        }
        _ if bytes.len() < 9 => ("a file too short for any of them".into(), "fetch the file again"),
        _ => {
            let start = bytes[..8].escape_ascii();
            (format!("of an unknown format (it begins with the bytes {start})"), NAME_THE_WEIGHTS)
        }
    }
}

fn pickled(file: &OpenFile, found: &str) -> Error {
    file.error(format!(
        "this is {found}, which is not read, because a pickle is a program. Convert it in Python, from a source you \
         trust: `state = torch.load(\"old.pth\", map_location=\"cpu\", weights_only=True)`, then \
         `torch.save(state, \"new.pth\")`, or `safetensors.torch.save_file` for a plain state dict"
    ))
}
