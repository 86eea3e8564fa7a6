//! The structure of JPEG files: which are refused, and where the image ends.
//!
//! The decoder fills missing data with gray, and decodes some rare variants to wrong pixels without an error. So this
//! file reads the markers first (ITU-T T.81, annex B), which give the variant, the size, and whether the end is
//! present.

mod frame;

use super::{BESIDE_PIXELS, Fault, check_pixels};
use frame::{Colours, Frame, Tables};
use std::io::{BufRead, Read};

/// The bytes of a JPEG of at most `max_pixels`, up to its end marker. Phones append videos, which are not read.
pub(super) fn read(reader: impl BufRead, max_pixels: u64) -> Result<Vec<u8>, Fault> {
    let mut walk = Walk { reader, bytes: Vec::new(), between: 0, most: SLACK };
    let (mut frame, mut colours, mut tables) = (None::<Frame>, Colours::default(), Tables::default());
    walk.take(2)?; // the start marker
    loop {
        let marker = walk.marker()?;
        match marker {
            0xD9 => break,
            // Start of frame, all variants.
            0xC0..=0xCF | 0xF7 if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                let found = Frame::parse(marker, walk.segment()?)?;
                if frame.is_some() {
                    return Err(Fault::broken("it has two frames"));
                }
                check_pixels(found.width, found.height, max_pixels)?;
                found.check()?;
                // No encoder needs more than 8 bytes per pixel.
                walk.most = found.width * found.height * 8 + SLACK;
                frame = Some(found);
            }
            0xDA => {
                let segment = walk.segment()?;
                let Some(frame) = &mut frame else { return Err(Fault::broken("it has image data before a frame")) };
                colours.check(frame)?;
                frame.scan(segment, &tables)?;
            }
            0xC4 => tables.define(walk.segment()?),
            0xE0 | 0xEE => colours.note(marker, walk.segment()?),
            // Markers without a segment.
            0x01 | 0xD0..=0xD8 => {}
            _ => {
                walk.segment()?;
            }
        }
    }
    frame.ok_or_else(|| Fault::broken("it has no frame"))?.finish()?;
    Ok(walk.bytes)
}

/// The most bytes between segments besides those for pixels.
const SLACK: u64 = 1 << 20;

/// Walks through the segments and keeps the bytes read.
struct Walk<R> {
    reader: R,
    bytes: Vec<u8>,
    /// The bytes read between segments: image data, or garbage.
    between: u64,
    /// The limit on them.
    most: u64,
}

impl<R: BufRead> Walk<R> {
    /// Reads and returns this many bytes.
    fn take(&mut self, count: usize) -> Result<&[u8], Fault> {
        let start = self.bytes.len();
        if (start + count) as u64 > self.between + BESIDE_PIXELS {
            return Err(Fault::broken("it has more than 256 MiB beside its image data"));
        }
        self.bytes.resize(start + count, 0);
        match self.reader.read_exact(&mut self.bytes[start..]) {
            Ok(()) => Ok(&self.bytes[start..]),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(truncated()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the segment after a marker and returns its content, without the length.
    fn segment(&mut self) -> Result<&[u8], Fault> {
        let length = self.take(2)?;
        let length = u16::from_be_bytes([length[0], length[1]]);
        self.take(usize::from(length.saturating_sub(2)))
    }

    /// Reads through image data to the next marker and returns it: 0xFF followed by neither a stuffed zero, nor fill,
    /// nor a restart within the image data.
    fn marker(&mut self) -> Result<u8, Fault> {
        loop {
            let left = self.most - self.between;
            let read = (&mut self.reader).take(left).read_until(0xFF, &mut self.bytes)? as u64;
            self.between += read;
            if read == 0 || self.bytes.last() != Some(&0xFF) {
                return Err(if read == left { self.too_long() } else { truncated() });
            }
            let mut next = 0xFF;
            while next == 0xFF {
                next = self.take(1)?[0];
            }
            if !matches!(next, 0x00 | 0x01 | 0xD0..=0xD7) {
                return Ok(next);
            }
        }
    }

    fn too_long(&self) -> Fault {
        Fault::broken(format!("its image data does not end within {} bytes", self.most))
    }
}

fn truncated() -> Fault {
    Fault::broken("the file ends within the image data (truncated)")
}
