//! One stable hash: fingerprints of samples and settings, checksums of weights.

use std::hash::Hasher as _;
#[cfg(any(feature = "image", test))]
use std::io::{self, Read};
use twox_hash::XxHash3_64;

/// Builds the fingerprint of a sequence of values, 64 bits wide.
///
/// Equal sequences have equal fingerprints in every process, on every platform and in every version of the crate, so
/// that a fingerprint may be stored. Different sequences have different ones, except for one pair in 2^64. It is no
/// defence against someone who constructs two sequences with the same fingerprint on purpose.
///
/// The hash is XXH3 (64 bits, seed 0) over the bytes of the values: whole numbers and floats are little-endian, and
/// each part of variable length is followed by its length, so that `"ab", "c"` and `"a", "bc"` differ.
pub(crate) struct Fingerprint(XxHash3_64);

impl Fingerprint {
    /// The fingerprint of something of this kind, say "sample". Values of different kinds are never confused.
    pub fn new(kind: &str) -> Self {
        Self(XxHash3_64::new()).text(kind)
    }

    /// Adds a text.
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.write(bytes);
        self.number(bytes.len() as u64)
    }

    /// Adds a whole number.
    pub fn number(mut self, number: u64) -> Self {
        self.0.write(&number.to_le_bytes());
        self
    }

    /// Adds whole numbers.
    pub fn numbers(self, numbers: &[usize]) -> Self {
        let all = numbers.iter().fold(self, |print, &number| print.number(number as u64));
        all.number(numbers.len() as u64)
    }

    /// Adds the bits of floats: 0 and -0 differ, and so do NaNs of different bits.
    pub fn floats<T: Float>(mut self, floats: &[T]) -> Self {
        // A buffer on the stack: the hash is faster on long pieces, and the conversion is a copy on most processors.
        let mut buffer = [0; 1 << 12];
        let size = size_of::<T>();
        for piece in floats.chunks(buffer.len() / size) {
            let bytes = &mut buffer[..size_of_val(piece)];
            for (bytes, float) in bytes.chunks_exact_mut(size).zip(piece) {
                bytes.copy_from_slice(float.little_endian().as_ref());
            }
            self.0.write(bytes);
        }
        self.number(floats.len() as u64)
    }

    /// Adds all that a reader gives, as [`bytes`](Self::bytes) does with the same bytes.
    #[cfg(any(feature = "image", test))]
    pub fn contents(mut self, mut reader: impl Read) -> io::Result<Self> {
        let mut buffer = vec![0; 1 << 16];
        let mut length = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(self.number(length)),
                Ok(n) => {
                    self.0.write(&buffer[..n]);
                    length += n as u64;
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
    }

    /// The fingerprint of all that was added.
    pub fn finish(self) -> u64 {
        self.0.finish()
    }
}

/// A float whose bits can be hashed.
pub(crate) trait Float: Copy {
    /// Its bytes, the lowest first.
    fn little_endian(self) -> impl AsRef<[u8]>;
}

impl Float for f32 {
    fn little_endian(self) -> impl AsRef<[u8]> {
        self.to_le_bytes()
    }
}

impl Float for f64 {
    fn little_endian(self) -> impl AsRef<[u8]> {
        self.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fingerprints may be stored, so none may ever change. The values were also computed outside of the crate, and the
    /// first is XXH3's published value for no input.
    #[test]
    fn values_never_change() {
        assert_eq!(XxHash3_64::new().finish(), 0x2D06_8005_38D3_94C2);
        let long: Vec<f32> = (0..5000).map(|i| i as f32 * 0.5 - 7.0).collect();
        let pins = [
            (Fingerprint::new(""), 0xc77b_3abb_6f87_acd9),
            (Fingerprint::new("sample"), 0x8f4e_8486_5987_0608),
            (Fingerprint::new("sample").text("müll/a.png").number(7).number(u64::MAX), 0x4cdd_e13b_676a_07aa),
            (Fingerprint::new("sample").bytes(&[0, 1, 255]).numbers(&[3, 32, 32]), 0x716f_d260_814a_7c46),
            (Fingerprint::new("tensor").floats(&[0.0f32, -0.0, 1.5, f32::INFINITY]), 0x1b33_5dbb_ebf0_4a3b),
            (Fingerprint::new("tensor").floats(&[0.0f64, -0.0, 1.5, f64::INFINITY]), 0xf0ba_8b33_5778_3ad4),
            (Fingerprint::new("tensor").floats(&long), 0x8ff5_6f2e_0d28_fe6d),
        ];
        for (i, (print, pinned)) in pins.into_iter().enumerate() {
            assert_eq!(print.finish(), pinned, "{i}");
        }
    }

    #[test]
    fn values_do_not_run_into_each_other() {
        let of = |texts: &[&str]| texts.iter().fold(Fingerprint::new("k"), |print, text| print.text(text)).finish();
        let all = [
            of(&["ab", "c"]),
            of(&["a", "bc"]),
            of(&["abc"]),
            of(&["abc", ""]),
            of(&["", "abc"]),
            Fingerprint::new("kabc").finish(),
            Fingerprint::new("k").numbers(&[1, 2]).numbers(&[3]).finish(),
            Fingerprint::new("k").numbers(&[1]).numbers(&[2, 3]).finish(),
            Fingerprint::new("k").floats(&[0.0f32]).finish(),
            Fingerprint::new("k").floats(&[-0.0f32]).finish(),
            Fingerprint::new("k").floats(&[0.0f64]).finish(),
            Fingerprint::new("k").floats(&[0.0f32, 0.0]).finish(),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{i}");
        }
    }

    /// Every bit of a float counts, at every place, also beyond the first buffer.
    #[test]
    fn one_bit_changes_the_sum() {
        let floats: Vec<f32> = (0..3000).map(|i| i as f32).collect();
        let sum = |floats: &[f32]| Fingerprint::new("k").floats(floats).finish();
        let whole = sum(&floats);
        for at in [0, 1, 1023, 1024, 2047, 2999] {
            for bit in [0, 12, 31] {
                let mut changed = floats.clone();
                changed[at] = f32::from_bits(changed[at].to_bits() ^ (1 << bit));
                assert_ne!(sum(&changed), whole, "bit {bit} of {at}");
            }
        }
    }

    /// A reader that gives few bytes at a time, and is interrupted before each.
    struct Slow<'a>(&'a [u8], bool);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let n = self.0.len().min(7);
            (&mut self.0).take(n as u64).read(buffer)
        }
    }

    #[test]
    fn the_pieces_of_a_reader_do_not_matter() {
        let bytes: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        let slow = Fingerprint::new("file").contents(Slow(&bytes, false)).unwrap().finish();
        assert_eq!(slow, Fingerprint::new("file").bytes(&bytes).finish());
        assert_ne!(slow, Fingerprint::new("file").bytes(&bytes[1..]).finish());
    }
}
