//! An image in memory.

use crate::{Error, Result};

/// An image of 8 bits per channel: height x width x channels bytes, row by row, channels interleaved.
///
/// Any number of channels is possible: 3 are RGB, 1 is gray, 2 and 4 are gray and RGB with alpha.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    height: usize,
    width: usize,
    channels: usize,
    bytes: Vec<u8>,
}

impl Image {
    /// An image of `height` x `width` pixels of `channels` bytes each.
    ///
    /// # Errors
    /// If one of the three is zero, or their product is not the number of bytes.
    ///
    /// ```
    /// use candle_finetune::Image;
    /// let gray = Image::new(2, 3, 1, vec![0, 50, 100, 150, 200, 250])?;
    /// assert_eq!(gray.pixel(1, 0), [150]);
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn new(height: usize, width: usize, channels: usize, bytes: Vec<u8>) -> Result<Self> {
        let expected = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(channels));
        if expected != Some(bytes.len()) || bytes.is_empty() {
            return Err(Error::invalid(
                "Image::new",
                format!(
                    "{} bytes for {height} x {width} pixels of {channels} channels: \
                     give height * width * channels bytes, none of them zero",
                    bytes.len()
                ),
            ));
        }
        Ok(Self { height, width, channels, bytes })
    }

    /// An image whose byte count is known to be right.
    pub(super) fn from_parts(height: usize, width: usize, channels: usize, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(bytes.len(), height * width * channels);
        Self { height, width, channels, bytes }
    }

    /// An RGB image of `width` x `height` pixels of three bytes each.
    pub fn from_rgb8(width: usize, height: usize, bytes: Vec<u8>) -> Result<Self> {
        Self::new(height, width, 3, bytes)
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes per pixel.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes: height x width x channels.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The bytes: height x width x channels.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes of the pixel at row `y`, column `x`.
    ///
    /// # Panics
    /// If the pixel is outside of the image.
    pub fn pixel(&self, y: usize, x: usize) -> &[u8] {
        let start = (y * self.width + x) * self.channels;
        &self.bytes[start..start + self.channels]
    }

    /// The image with another number of channels: RGB from gray, gray from RGB (ITU-R 601-2 luma:
    /// 0.299 R + 0.587 G + 0.114 B), either with its alpha channel dropped.
    pub fn to_channels(self, channels: usize) -> Result<Self> {
        let Self { height, width, channels: from, bytes } = self;
        let bytes = match (from, channels) {
            (from, to) if from == to => bytes,
            (4, 3) => bytes.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
            (3 | 4, 1) => bytes.chunks_exact(from).map(|p| luma(p[0], p[1], p[2])).collect(),
            (1 | 2, 3) => bytes.chunks_exact(from).flat_map(|p| [p[0]; 3]).collect(),
            (2, 1) => bytes.chunks_exact(2).map(|p| p[0]).collect(),
            _ => {
                return Err(Error::invalid(
                    "image channels",
                    format!("an image of {from} channels cannot be converted to {channels}; only gray and RGB can"),
                ));
            }
        };
        Ok(Self { height, width, channels, bytes })
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} x {} x {})", self.height, self.width, self.channels)
    }
}

/// The gray level of a colour, with Pillow's rounding.
pub(super) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(Image::new(2, 2, 3, vec![0; 11]).is_err());
        assert!(Image::new(0, 2, 3, vec![]).is_err());
        assert!(Image::new(usize::MAX, 2, 3, vec![0; 6]).is_err());
        assert!(Image::from_rgb8(2, 1, vec![0; 6]).is_ok_and(|image| image.width() == 2 && image.height() == 1));
    }

    #[test]
    fn gray_and_colour_convert() {
        let rgb = Image::new(1, 3, 3, vec![255, 0, 0, 0, 255, 0, 0, 0, 255]).unwrap();
        let gray = rgb.clone().to_channels(1).unwrap();
        assert_eq!(gray.bytes(), [76, 150, 29]); // as Pillow's convert("L")
        assert_eq!(gray.clone().to_channels(3).unwrap().to_channels(1).unwrap(), gray);
        let rgba = Image::new(1, 1, 4, vec![1, 2, 3, 0]).unwrap();
        assert_eq!(rgba.to_channels(3).unwrap().bytes(), [1, 2, 3]);
        assert!(rgb.to_channels(5).is_err());
    }
}
