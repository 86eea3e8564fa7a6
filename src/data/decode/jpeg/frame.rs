//! Which variants of JPEG are decoded correctly. Those refused here differed from libjpeg's pixels.

use super::Fault;

/// A start of frame, and the coefficients its scans have delivered.
pub(super) struct Frame {
    marker: u8,
    bits: u8,
    pub width: u64,
    pub height: u64,
    components: Vec<Component>,
    scans: usize,
}

struct Component {
    id: u8,
    /// Sampling factors.
    horizontal: u8,
    vertical: u8,
    /// The coefficients that a progressive file has delivered to the last bit.
    complete: u64,
}

impl Frame {
    pub fn parse(marker: u8, segment: &[u8]) -> Result<Self, Fault> {
        let &[bits, h1, h0, w1, w0, count, ref rest @ ..] = segment else {
            return Err(Fault::broken("its frame header is too short"));
        };
        let component = |c: &[u8]| Component { id: c[0], horizontal: c[1] >> 4, vertical: c[1] & 15, complete: 0 };
        let components: Vec<Component> = rest.chunks_exact(3).map(component).collect();
        if components.len() != usize::from(count) {
            return Err(Fault::broken("the length of its frame header is wrong"));
        }
        let (width, height) = (u16::from_be_bytes([w1, w0]).into(), u16::from_be_bytes([h1, h0]).into());
        Ok(Self { marker, bits, width, height, components, scans: 0 })
    }

    /// Refuses variants that the decoder does not support or decodes incorrectly.
    pub fn check(&self) -> Result<(), Fault> {
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
            return Err(Fault::Unsupported("a JPEG whose height follows the image data".into()));
        }
        if self.width == 0
            || !self.components.iter().all(|c| (1..=4).contains(&c.horizontal) && (1..=4).contains(&c.vertical))
        {
            return Err(Fault::broken("its frame header is invalid"));
        }
        if !matches!(self.components.len(), 1 | 3 | 4) {
            return Err(Fault::Unsupported(format!("a JPEG of {} components", self.components.len())));
        }
        // The first component must have the highest resolution, and the others a whole fraction of it.
        let Component { horizontal, vertical, .. } = self.components[0];
        let fits = |c: &Component| horizontal % c.horizontal == 0 && vertical % c.vertical == 0;
        let rare = horizontal == 3 || horizontal * vertical > 8 || !self.components.iter().all(fits);
        if self.components.len() > 1 && rare {
            let factors: Vec<String> =
                self.components.iter().map(|c| format!("{}x{}", c.horizontal, c.vertical)).collect();
            return Err(Fault::Unsupported(format!("a JPEG with components sampled {}", factors.join(", "))));
        }
        Ok(())
    }

    /// Records a start of scan; refuses variants that are decoded incorrectly.
    pub fn scan(&mut self, segment: &[u8], tables: &Tables) -> Result<(), Fault> {
        let malformed = || Fault::broken("the header of its image data is invalid");
        let (&count, rest) = segment.split_first().ok_or_else(malformed)?;
        let (selectors, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(malformed)?;
        let &[first, last, bits, ..] = rest else { return Err(malformed()) };
        if last > 63 || first > last {
            return Err(malformed());
        }
        let (progressive, refines) = (self.marker == 0xC2, bits >> 4 > 0);
        self.scans += 1;
        if !progressive && (self.scans > 1 || usize::from(count) != self.components.len()) {
            return Err(Fault::Unsupported("a baseline JPEG with several scans".into()));
        }
        for selector in selectors.chunks_exact(2) {
            let component = self.components.iter_mut().find(|c| c.id == selector[0]).ok_or_else(malformed)?;
            let needs_dc = first == 0 && !(progressive && refines);
            let needs_ac = last > 0;
            if (needs_dc && !tables.has_dc(selector[1] >> 4)) || (needs_ac && !tables.has_ac(selector[1] & 15)) {
                let found = "a JPEG without its Huffman tables (a frame of a Motion JPEG video)";
                return Err(Fault::Unsupported(found.into()));
            }
            let refined_to = bits & 15;
            if refined_to == 0 {
                component.complete |= (u64::MAX >> (63 - last)) & (u64::MAX << first);
            }
        }
        Ok(())
    }

    /// At the end of the file: refuses missing scans.
    pub fn finish(&self) -> Result<(), Fault> {
        if self.scans == 0 {
            return Err(Fault::broken("it has no image data"));
        }
        if self.marker == 0xC2 && self.components.iter().any(|component| component.complete != u64::MAX) {
            return Err(Fault::Unsupported("a progressive JPEG that lacks some of its scans".into()));
        }
        Ok(())
    }
}

/// The Huffman tables that are defined, as bits.
#[derive(Default)]
pub(super) struct Tables {
    dc: u16,
    ac: u16,
}

impl Tables {
    /// Records the tables of a segment: a class and number, 16 counts, and that many symbols each.
    pub fn define(&mut self, mut segment: &[u8]) {
        while let [which, counts @ ..] = segment {
            let Some((counts, rest)) = counts.split_at_checked(16) else { return };
            let tables = if which >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            *tables |= 1 << (which & 15);
            let symbols: usize = counts.iter().map(|&count| usize::from(count)).sum();
            segment = rest.get(symbols..).unwrap_or_default();
        }
    }

    fn has_dc(&self, table: u8) -> bool {
        self.dc >> (table & 15) & 1 == 1
    }

    fn has_ac(&self, table: u8) -> bool {
        self.ac >> (table & 15) & 1 == 1
    }
}

/// The markers' declarations of the colour space.
#[derive(Default)]
pub(super) struct Colours {
    jfif: bool,
    /// Adobe's transform: 0 none, 1 YCbCr, 2 YCCK.
    adobe: Option<u8>,
}

impl Colours {
    pub fn note(&mut self, marker: u8, segment: &[u8]) {
        if marker == 0xE0 && segment.starts_with(b"JFIF\0") {
            self.jfif = true;
        } else if marker == 0xEE && segment.starts_with(b"Adobe") {
            self.adobe = segment.get(11).copied();
        }
    }

    /// Refuses contradictory markers, which decoders interpret differently.
    pub fn check(&self, frame: &Frame) -> Result<(), Fault> {
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        // JFIF is YCbCr, of one or three components.
        let contradict = match ids.len() {
            3 if ids == b"RGB" => self.jfif || matches!(self.adobe, Some(1 | 2)),
            3 => self.jfif && self.adobe == Some(0),
            4 => self.adobe == Some(1),
            _ => false,
        };
        if contradict {
            return Err(Fault::Unsupported("a JPEG whose markers contradict each other about its colours".into()));
        }
        Ok(())
    }
}
