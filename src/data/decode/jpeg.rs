//! The structure of JPEG files: what has to be refused, and where the image ends.
//!
//! The decoder fills what is missing with gray, and decodes some rare kinds to other pixels than they have, without an
//! error. So the markers are read first (ITU-T T.81, annex B): they tell the kind, the size, and whether the end is there.

use super::{BESIDE_PIXELS, Fault, check_pixels};
use std::io::{BufRead, Read};

/// The bytes of a JPEG of at most `max_pixels`, up to its end marker. Phones append videos, which are not read.
pub(super) fn read(reader: impl BufRead, max_pixels: u64) -> Result<Vec<u8>, Fault> {
    let mut walk = Walk { reader, bytes: Vec::new(), most: BESIDE_PIXELS };
    let (mut frame, mut scans) = (None::<Frame>, 0usize);
    walk.take(2)?; // the start marker
    loop {
        let marker = walk.marker()?;
        match marker {
            0xD9 => break,
            // Start of frame, of all kinds.
            0xC0..=0xCF | 0xF7 if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                let found = Frame::parse(marker, walk.segment()?)?;
                if frame.is_some() {
                    return Err(Fault::broken("it has two frames"));
                }
                check_pixels(found.width, found.height, max_pixels)?;
                found.check()?;
                // Image data of 8 byte per pixel is more than any encoder needs.
                walk.most += found.width * found.height * 8;
                frame = Some(found);
            }
            0xDA => {
                let components = walk.segment()?.first().copied().unwrap_or_default();
                let Some(frame) = &frame else { return Err(Fault::broken("it has image data before a frame")) };
                scans += 1;
                frame.check_scan(scans, components)?;
            }
            // Segments without content.
            0x01 | 0xD0..=0xD8 => {}
            _ => {
                walk.segment()?;
            }
        }
    }
    match scans {
        0 => Err(Fault::broken("it has no image data")),
        _ => Ok(walk.bytes),
    }
}

/// A start of frame.
struct Frame {
    marker: u8,
    bits: u8,
    width: u64,
    height: u64,
    /// Horizontal and vertical sampling factors.
    components: Vec<(u8, u8)>,
}

impl Frame {
    fn parse(marker: u8, segment: &[u8]) -> Result<Self, Fault> {
        let &[bits, h1, h0, w1, w0, count, ref rest @ ..] = segment else {
            return Err(Fault::broken("its frame header is too short"));
        };
        let components: Vec<(u8, u8)> = rest.chunks_exact(3).map(|c| (c[1] >> 4, c[1] & 15)).collect();
        if components.len() != usize::from(count) {
            return Err(Fault::broken("its frame header has another length than it says"));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into());
        Ok(Self { marker, bits, width, height, components })
    }

    /// Refuses what is not decoded, or not rightly.
    fn check(&self) -> Result<(), Fault> {
        let kind = match self.marker {
            0xC0..=0xC2 => None,
            0xC3 => Some("a lossless JPEG"),
            0xF7 => Some("a JPEG-LS image"),
            0xC9..=0xCB => Some("a JPEG with arithmetic coding"),
            _ => Some("a hierarchical JPEG"),
        };
        if let Some(kind) = kind {
            return Err(Fault::Unsupported(kind.into()));
        }
        if self.bits != 8 {
            return Err(Fault::Unsupported(format!("a JPEG of {} bit", self.bits)));
        }
        if self.height == 0 {
            return Err(Fault::Unsupported("a JPEG that tells its height after the image data".into()));
        }
        let factors = |(h, v): &(u8, u8)| (1..=4).contains(h) && (1..=4).contains(v);
        if self.width == 0 || !self.components.iter().all(factors) {
            return Err(Fault::broken("its frame header makes no sense"));
        }
        let sampling = match self.components.as_slice() {
            [_] => true,
            [first, others @ ..] if matches!(others.len(), 2 | 3) => {
                matches!(first, (1 | 2 | 4, 1 | 2)) && others.iter().all(|&other| other == (1, 1))
            }
            _ => return Err(Fault::Unsupported(format!("a JPEG of {} components", self.components.len()))),
        };
        if !sampling {
            let factors: Vec<String> = self.components.iter().map(|(h, v)| format!("{h}x{v}")).collect();
            return Err(Fault::Unsupported(format!("a JPEG with components sampled {}", factors.join(", "))));
        }
        Ok(())
    }

    /// Refuses scans of some of the components, but in progressive files.
    fn check_scan(&self, scans: usize, components: u8) -> Result<(), Fault> {
        let all = usize::from(components) == self.components.len();
        if self.marker != 0xC2 && !(all && scans == 1) {
            return Err(Fault::Unsupported("a baseline JPEG with a scan per component".into()));
        }
        Ok(())
    }
}

/// Goes through the segments and keeps what it read.
struct Walk<R> {
    reader: R,
    bytes: Vec<u8>,
    /// The most bytes that are read.
    most: u64,
}

impl<R: BufRead> Walk<R> {
    /// Reads so many bytes and gives them.
    fn take(&mut self, count: usize) -> Result<&[u8], Fault> {
        let start = self.bytes.len();
        if (start + count) as u64 > self.most {
            return Err(self.too_long());
        }
        self.bytes.resize(start + count, 0);
        match self.reader.read_exact(&mut self.bytes[start..]) {
            Ok(()) => Ok(&self.bytes[start..]),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(truncated()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the segment behind a marker and gives its content, without the length.
    fn segment(&mut self) -> Result<&[u8], Fault> {
        let length = self.take(2)?;
        let length = u16::from_be_bytes([length[0], length[1]]);
        self.take(usize::from(length.saturating_sub(2)))
    }

    /// Reads on to the next marker, through image data, and gives it: 0xFF, then neither a stuffed zero, nor fill, nor a
    /// restart within the image data.
    fn marker(&mut self) -> Result<u8, Fault> {
        loop {
            let from = self.bytes.len() as u64;
            let left = self.most.saturating_sub(from);
            if left == 0 {
                return Err(self.too_long());
            }
            (&mut self.reader).take(left).read_until(0xFF, &mut self.bytes)?;
            if self.bytes.last() != Some(&0xFF) || self.bytes.len() as u64 == from {
                return Err(if self.bytes.len() as u64 == self.most { self.too_long() } else { truncated() });
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
