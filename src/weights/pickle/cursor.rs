//! The bytes of a pickle, taken from the front.

use super::Problem;

pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let bytes = self.bytes[self.at..].get(..len).ok_or("the pickle ends too early")?;
        self.at += len;
        Ok(bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| "the pickle ends too early".into())
    }

    /// The length that follows an instruction for text or bytes.
    pub fn length(&mut self, op: u8) -> Result<usize, Problem> {
        let len = match op {
            0x8c | b'U' | b'C' => self.array::<1>()?[0].into(),
            b'X' | b'T' | b'B' | 0x8b => u32::from_le_bytes(self.array()?).into(),
            _ => u64::from_le_bytes(self.array()?),
        };
        usize::try_from(len).map_err(|_| "a length is too large to be true".into())
    }

    pub fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&b| b == b'\n').ok_or("the pickle ends too early")?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| "the name of a global is not UTF-8".into())
    }
}
