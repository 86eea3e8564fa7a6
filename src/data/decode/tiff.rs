//! The first directory of a TIFF: facts about its image that the decoder does not expose.

use std::io::{Read, Seek, SeekFrom};

/// The most entries of a directory that are read.
const ENTRIES: usize = 512;

/// The values of a directory that are present.
pub(super) struct Directory {
    bits: Option<u64>,
    compression: Option<u64>,
    photometric: Option<u64>,
    samples: Option<u64>,
    planar: Option<u64>,
    tile_width: Option<u64>,
    extra_samples: Option<u64>,
    sample_format: Option<u64>,
}

impl Directory {
    /// The first directory of a file, if it can be read.
    pub fn read(reader: &mut (impl Read + Seek)) -> Option<Self> {
        let mut head = [0; 8];
        reader.seek(SeekFrom::Start(0)).ok()?;
        reader.read_exact(&mut head).ok()?;
        let little = head[0] == b'I';
        let number = |bytes: &[u8]| {
            let join = |n: u64, &byte: &u8| n << 8 | u64::from(byte);
            if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) }
        };
        let mut count = [0; 2];
        reader.seek(SeekFrom::Start(number(&head[4..]))).ok()?;
        reader.read_exact(&mut count).ok()?;
        let mut entries = vec![0; 12 * (number(&count) as usize).min(ENTRIES)];
        reader.read_exact(&mut entries).ok()?;
        // The first value of a tag. All are shorts or longs; values that do not fit into the entry are at an offset.
        let mut value = |tag: u64| {
            let entry = entries.chunks_exact(12).find(|entry| number(&entry[..2]) == tag)?;
            let size = if number(&entry[2..4]) == 4 { 4 } else { 2 };
            if number(&entry[4..8]) * size as u64 <= 4 {
                return Some(number(&entry[8..8 + size]));
            }
            let mut first = [0; 4];
            reader.seek(SeekFrom::Start(number(&entry[8..]))).ok()?;
            reader.read_exact(&mut first[..size]).ok()?;
            Some(number(&first[..size]))
        };
        Some(Self {
            bits: value(258),
            compression: value(259),
            photometric: value(262),
            samples: value(277),
            planar: value(284),
            tile_width: value(322),
            extra_samples: value(338),
            sample_format: value(339),
        })
    }

    /// Whether the colours are multiplied by alpha.
    pub fn is_premultiplied(&self) -> bool {
        self.extra_samples == Some(1)
    }

    /// Whether the decoder panics on this variant.
    pub fn has_planes_of_tiles(&self) -> bool {
        self.planar == Some(2) && self.tile_width.is_some()
    }

    /// A description for messages: "a TIFF image with palette colours, one sample of 8 bit".
    pub fn kind(&self) -> String {
        let colours = match self.photometric {
            Some(0 | 1) => "gray",
            Some(2) => "RGB",
            Some(3) => "palette",
            Some(5) => "CMYK",
            Some(6) => "YCbCr",
            Some(8..=10) => "L*a*b*",
            Some(32803) => "raw sensor",
            _ => "unknown",
        };
        let format = match self.sample_format {
            Some(2) => " signed",
            Some(3) => " floating-point",
            Some(5 | 6) => " complex",
            _ => "",
        };
        let compression = match self.compression {
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
        let samples = match self.samples.unwrap_or(1) {
            1 => "one sample".into(),
            samples => format!("{samples} samples"),
        };
        let (bits, planes) = (self.bits.unwrap_or(1), if self.planar == Some(2) { " in planes" } else { "" });
        let tiles = if self.tile_width.is_some() { " of tiles" } else { "" };
        format!("a TIFF image with {colours} colours, {samples} of {bits} bit{format}{planes}{tiles}{compression}")
    }
}
