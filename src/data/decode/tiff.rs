//! What the first directory of a TIFF says about its image, for messages.

use std::io::{Read, Seek, SeekFrom};

/// The most entries of a directory that are looked at.
const ENTRIES: usize = 512;

/// The kind of a TIFF image in words, as far as its directory tells: "a TIFF image with palette colours of 8 bit".
pub(super) fn kind(reader: &mut (impl Read + Seek)) -> Option<String> {
    reader.seek(SeekFrom::Start(0)).ok()?;
    let mut head = [0; 8];
    reader.read_exact(&mut head).ok()?;
    let little = head[0] == b'I';
    let number = |bytes: &[u8]| {
        let join = |n: u64, &byte: &u8| n << 8 | u64::from(byte);
        if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) }
    };
    reader.seek(SeekFrom::Start(number(&head[4..]))).ok()?;
    let mut count = [0; 2];
    reader.read_exact(&mut count).ok()?;
    let mut entries = vec![0; 12 * (number(&count) as usize).min(ENTRIES)];
    reader.read_exact(&mut entries).ok()?;
    // The values looked for are shorts. Where there are more than two, the entry holds their place instead.
    let mut value = |wanted: u64| {
        let entry = entries.chunks_exact(12).find(|entry| number(&entry[..2]) == wanted)?;
        let bytes = if number(&entry[2..4]) == 4 { 4 } else { 2 };
        if number(&entry[4..8]) * bytes <= 4 {
            return Some(number(&entry[8..8 + bytes as usize]));
        }
        reader.seek(SeekFrom::Start(number(&entry[8..]))).ok()?;
        let mut first = [0; 2];
        reader.read_exact(&mut first).ok()?;
        Some(number(&first))
    };
    let colours = match value(262) {
        Some(0 | 1) => "gray",
        Some(2) => "RGB",
        Some(3) => "palette",
        Some(5) => "CMYK",
        Some(6) => "YCbCr",
        Some(8..=10) => "L*a*b*",
        Some(32803) => "raw sensor",
        _ => "unknown",
    };
    let (bits, samples) = (value(258).unwrap_or(1), value(277).unwrap_or(1));
    let format = match value(339) {
        Some(2) => " signed",
        Some(3) => " floating-point",
        Some(5 | 6) => " complex",
        _ => "",
    };
    let compression = match value(259) {
        None | Some(1) => "",
        Some(2..=4) => ", compressed as a fax",
        Some(5) => ", compressed by LZW",
        Some(6) => ", compressed by old-style JPEG",
        Some(7) => ", compressed by JPEG",
        Some(8 | 32946) => ", compressed by deflate",
        Some(32773) => ", compressed by PackBits",
        Some(33003..=33005 | 34712) => ", compressed by JPEG 2000",
        Some(50000) => ", compressed by Zstandard",
        Some(50001) => ", compressed by WebP",
        Some(50002 | 52546) => ", compressed by JPEG XL",
        Some(_) => ", compressed in an unknown way",
    };
    let samples = if samples == 1 { "one sample".into() } else { format!("{samples} samples") };
    let planar = if value(284) == Some(2) { " in planes" } else { "" };
    Some(format!("a TIFF image with {colours} colours, {samples} of {bits} bit{format}{planar}{compression}"))
}
