//! Recognises what a file is by its first bytes, its extension or its file type.

use crate::error::unsupported as unsupported_text;
use image::ImageFormat;
use std::fs::FileType;
use std::io::Read;
use std::path::Path;

/// How many bytes at the beginning of a file are read.
pub(in crate::data) const HEAD: usize = 1024;

/// The content of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::data) enum Content {
    /// An image of a supported format.
    Image(ImageFormat),
    /// An image or document of an unsupported format.
    Foreign(&'static str),
    /// Not an image: what it is and what may have happened.
    NoImage(&'static str),
    /// Not recognised.
    Unknown,
}

/// Why a file with this content cannot be read, and what to do about it.
pub(in crate::data) fn unsupported(found: &str) -> String {
    unsupported_text(found)
}

/// Why a file that is damaged or not an image cannot be read, and what to do about it.
pub(in crate::data) fn broken(cause: impl std::fmt::Display) -> String {
    format!("broken: {cause}; replace or remove it")
}

/// The kind of a directory entry that is neither a file nor a folder: opening it may block forever, and reading never
/// end.
pub(in crate::data) fn special(kind: FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("it is a named pipe and not a regular file");
        }
        if kind.is_socket() {
            return Some("it is a socket and not a regular file");
        }
        if kind.is_char_device() || kind.is_block_device() {
            return Some("it is a device and not a regular file");
        }
    }
    (!kind.is_file()).then_some("it is not a regular file")
}

/// The content of a file.
pub(in crate::data) fn file(path: &Path) -> std::io::Result<Content> {
    let mut head = Vec::with_capacity(HEAD);
    std::fs::File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(content(&head))
}

/// The content of a file that begins with these bytes: its first [`HEAD`], or all.
pub(in crate::data) fn content(head: &[u8]) -> Content {
    if let Some(format) = format(head) {
        return Content::Image(format);
    }
    if let Some(&(_, _, name)) =
        FOREIGN.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|h| h.starts_with(magic)))
    {
        return Content::Foreign(name);
    }
    let foreign = match head {
        [b'I', b'I', b'*', 0, ..] => Some("a raw photograph (CR2)"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => Some("an AVI video"),
        [b'P', b'1'..=b'7', b' ' | b'\n' | b'\t' | b'\r', ..] => Some("a PNM image"),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some(iso_media(head)),
        _ => None,
    };
    if let Some(foreign) = foreign {
        return Content::Foreign(foreign);
    }
    if !head.is_empty() && head.iter().all(|&byte| byte == 0) {
        return Content::NoImage("it holds zeros, as an interrupted download or copy leaves behind");
    }
    text(head)
}

fn format(head: &[u8]) -> Option<ImageFormat> {
    Some(match head {
        [0xFF, 0xD8, 0xFF, ..] => ImageFormat::Jpeg,
        [0x89, b'P', b'N', b'G', 13, 10, 0x1A, 10, ..] => ImageFormat::Png,
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => ImageFormat::Gif,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => ImageFormat::WebP,
        // Canon's raw photographs begin like a TIFF.
        [b'I', b'I', b'*', 0, _, _, _, _, b'C', b'R', ..] => return None,
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => ImageFormat::Tiff,
        // Two letters are too weak a signature: the size of a known header must follow.
        [b'B', b'M', rest @ ..]
            if matches!(rest.get(12..16), Some([12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0])) =>
        {
            ImageFormat::Bmp
        }
        _ => return None,
    })
}

/// Formats by signature: offset, bytes, name.
const FOREIGN: [(usize, &[u8], &str); 42] = [
    (0, b"II+\0", "a BigTIFF image"),
    (0, b"MM\0+", "a BigTIFF image"),
    (0, b"IIRO", "a raw photograph (ORF)"),
    (0, b"IIRS", "a raw photograph (ORF)"),
    (0, b"IIU\0", "a raw photograph (RW2)"),
    (0, b"FUJIFILMCCD-RAW", "a raw photograph (RAF)"),
    (0, b"FOVb", "a raw photograph (X3F)"),
    (0, b"II\xBC", "a JPEG XR image"),
    (0, b"\0\0\0\x0CJXL \r\n", "a JPEG XL image"),
    (0, b"\xFF\x0A", "a JPEG XL image"),
    (0, b"\0\0\0\x0CjP  \r\n", "a JPEG 2000 image"),
    (0, b"\xFF\x4F\xFF\x51", "a JPEG 2000 image"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"gimp xcf", "a GIMP image (XCF)"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\xC5\xD0\xD3\xC6", "a PostScript document"),
    (128, b"DICM", "a DICOM image"),
    (0, b"SIMPLE  =", "a FITS image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\0\0\x01\0", "a Windows icon (ICO)"),
    (0, b"\0\0\x02\0", "a Windows cursor (CUR)"),
    (0, b"icns", "a macOS icon (ICNS)"),
    (0, b"qoif", "a QOI image"),
    (0, b"farbfeld", "a farbfeld image"),
    (0, b"BPG\xFB", "a BPG image"),
    (0, b"FLIF", "a FLIF image"),
    (0, b"\x8AMNG", "an MNG animation"),
    (0, b"AT&TFORM", "a DjVu document"),
    (0, b"\x1A\x45\xDF\xA3", "a Matroska or WebM video"),
    (0, b"\0\0\x01\xBA", "an MPEG video"),
    (0, b"\0\0\x01\xB3", "an MPEG video"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1F\x8B", "a gzip archive"),
    (0, b"7z\xBC\xAF", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xFD7zXZ", "an xz archive"),
];

/// Containers of ISO's base media format, by the brands that the file declares.
fn iso_media(head: &[u8]) -> &'static str {
    let length = head.first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
    let brands = &head[8..head.len().min(length.clamp(12, HEAD)).max(8)];
    let has = |wanted: &[&[u8]]| brands.chunks_exact(4).any(|brand| wanted.contains(&brand));
    if has(&[b"avif", b"avis"]) {
        "an AVIF image"
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"]) {
        "a HEIC image"
    } else if has(&[b"crx "]) {
        "a raw photograph (CR3)"
    } else if has(&[b"jxl "]) {
        "a JPEG XL image"
    } else {
        "a video (MP4 or QuickTime)"
    }
}

/// Text files in place of images.
fn text(head: &[u8]) -> Content {
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    let lower = head.to_ascii_lowercase();
    let (starts, has) = (
        |what: &str| lower.starts_with(what.as_bytes()),
        |what: &str| lower.windows(what.len()).any(|window| window == what.as_bytes()),
    );
    let is_text = !head.is_empty() && !head.iter().any(|&byte| byte < 32 && !byte.is_ascii_whitespace());
    if starts("version https://git-lfs") || starts("version https://hawser") {
        Content::NoImage("it is a Git LFS pointer and not the image itself; fetch the images with `git lfs pull`")
    } else if has("/annex/objects/") && is_text {
        Content::NoImage("it is a git-annex pointer and not the image itself; fetch the images with `git annex get`")
    } else if (starts("<?xml") || starts("<!--") || starts("<!doctype svg") || starts("<svg")) && has("<svg") {
        Content::Foreign("an SVG drawing")
    } else if starts("<!doctype html") || starts("<html") || starts("<head") || (starts("<!--") && has("<html")) {
        Content::NoImage("it is an HTML page; was an error page downloaded in its place?")
    } else if starts("<") && is_text {
        Content::NoImage("it is an XML or HTML text; was an error message downloaded in its place?")
    } else if (starts("{") || starts("[")) && is_text {
        Content::NoImage("it is a JSON text; was an error message downloaded in its place?")
    } else if is_text && std::str::from_utf8(head).is_ok_and(|_| head.len() > 3) {
        Content::NoImage("it is a text and not an image")
    } else {
        Content::Unknown
    }
}

/// Unsupported formats of images and documents, by extension in lower case.
pub(in crate::data) fn by_extension(extension: &str) -> Option<&'static str> {
    Some(match extension {
        "heic" | "heif" | "hif" => "a HEIC image",
        "avif" | "avifs" => "an AVIF image",
        "jxl" => "a JPEG XL image",
        "jp2" | "j2k" | "j2c" | "jpc" | "jpf" | "jpx" | "jpm" => "a JPEG 2000 image",
        "jxr" | "wdp" | "hdp" => "a JPEG XR image",
        "jls" => "a JPEG-LS image",
        "svg" | "svgz" => "an SVG drawing",
        "psd" | "psb" => "a Photoshop document (PSD)",
        "xcf" => "a GIMP image (XCF)",
        "ai" | "eps" | "ps" => "a PostScript document",
        "pdf" => "a PDF document",
        "djvu" => "a DjVu document",
        "dng" | "cr2" | "cr3" | "crw" | "nef" | "nrw" | "arw" | "srf" | "sr2" | "orf" | "raf" | "rw2" | "pef"
        | "srw" | "x3f" | "3fr" | "iiq" | "erf" | "mrw" | "kdc" | "dcr" | "mos" | "rwl" | "raw" => "a raw photograph",
        "dcm" | "dicom" => "a DICOM image",
        "nii" => "a NIfTI volume",
        "fit" | "fits" | "fts" => "a FITS image",
        "svs" | "ndpi" | "mrxs" | "scn" | "vms" | "vmu" | "bif" | "btf" | "tf8" | "czi" | "lif" | "nd2" => {
            "a microscope's slide or stack"
        }
        "ico" => "a Windows icon (ICO)",
        "cur" => "a Windows cursor (CUR)",
        "icns" => "a macOS icon (ICNS)",
        "tga" => "a TGA image",
        "dds" => "a DDS texture",
        "exr" => "an OpenEXR image",
        "hdr" => "a Radiance HDR image",
        "pbm" | "pgm" | "ppm" | "pnm" | "pam" => "a PNM image",
        "pcx" => "a PCX image",
        "qoi" => "a QOI image",
        "bpg" => "a BPG image",
        "mp4" | "m4v" | "mov" | "avi" | "mkv" | "webm" | "mpg" | "mpeg" | "wmv" | "3gp" | "mts" | "m2ts" | "flv" => {
            "a video"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_told_by_its_first_bytes() {
        let heic = [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice(), &[0; 64]].concat();
        let avif = [b"\0\0\0\x1Cftypmif1\0\0\0\0mif1avifmiaf".as_slice(), &[0; 64]].concat();
        let video = [b"\0\0\0\x18ftypmp42\0\0\0\0isommp42".as_slice(), &[0; 64]].concat();
        let dicom = [&[0; 128], b"DICM".as_slice()].concat();
        for (head, expected) in [
            (heic.as_slice(), "a HEIC image"),
            (&avif, "an AVIF image"),
            (&video, "a video (MP4 or QuickTime)"),
            (&dicom, "a DICOM image"),
            (b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", "a BigTIFF image"),
            (b"II*\0\x10\0\0\0CR\x02\0", "a raw photograph (CR2)"),
            (b"<?xml version=\"1.0\"?>\n<svg xmlns=", "an SVG drawing"),
            (b"\0\0\0\x0CJXL \r\n\x87\n", "a JPEG XL image"),
        ] {
            assert_eq!(content(head), Content::Foreign(expected));
        }
        for (head, expected) in [
            (&b"\n<!DOCTYPE html><html>"[..], "HTML page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
            (b"{\"error\": 404}", "JSON"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", "error message"),
            (b"Not Found", "text"),
            (&[0; 100], "zeros"),
        ] {
            let Content::NoImage(found) = content(head) else { panic!("{head:?}") };
            assert!(found.contains(expected), "{found}");
        }
        for head in [&b""[..], b"x", b"BM is text", &[1, 2, 3, 0xFF, 0, 7], b"\0\0\0\x18ftyp"] {
            let _ = content(head);
        }
        assert_eq!(content(b"\xFF\xD8\xFF\xE0"), Content::Image(ImageFormat::Jpeg));
        assert_eq!(by_extension("heic"), Some("a HEIC image"));
    }
}
