//! Image files to pixels.

use super::Image;
use crate::{BoxError, Error, Result};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use std::path::Path;

/// The most pixels an image may have unless told otherwise, the bound from which Pillow suspects an attack.
pub(super) const MAX_PIXELS: u64 = 178_956_970;

/// What [`ImageFormat`]s are read, for messages.
pub(super) const FORMATS: &str = "JPEG, PNG, WebP, BMP, GIF or TIFF";

impl Image {
    /// Reads an image file as RGB: JPEG, PNG, WebP, BMP, GIF (its first frame) or TIFF, told apart by content.
    ///
    /// The orientation that the camera noted is applied, gray becomes RGB, alpha is dropped, 16 bit become 8. A
    /// truncated file is an error, and so is one of more than 178 million pixels, told by its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        read(path.as_ref(), MAX_PIXELS)
    }

    /// Decodes the bytes of an image file, as [`open`](Self::open) does.
    ///
    /// ```
    /// use candle_finetune::Image;
    /// assert!(Image::decode(b"no image").is_err());
    /// ```
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        decode(bytes, MAX_PIXELS, || "in memory".into())
    }
}

/// Reads a file of at most `max_pixels`.
pub(super) fn read(path: &Path, max_pixels: u64) -> Result<Image> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    decode(&bytes, max_pixels, || path.display().to_string())
}

/// Decodes an image called `name()` of at most `max_pixels`.
fn decode(bytes: &[u8], max_pixels: u64, name: impl Fn() -> String) -> Result<Image> {
    let broken = |cause: BoxError| Error::BrokenImage { image: name(), cause };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| broken(e.into()))?;
    let Some(format) = reader.format() else {
        return Err(broken(format!("its content is none of {FORMATS}").into()));
    };
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(broken("the file ends within the image data (truncated)".into()));
    }
    let mut reader = reader;
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(256 << 20); // for what stands before the pixels, profiles and the like
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|e| broken(e.into()))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(Error::ImageTooLarge {
            image: name(),
            width: width.into(),
            height: height.into(),
            limit: max_pixels,
        });
    }
    // Sixteen bytes per pixel is the most any format decodes to (four channels of f32), twice for working memory.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some((u64::from(width) * u64::from(height)).saturating_mul(32) + (64 << 20));
    decoder.set_limits(limits).map_err(|e| broken(e.into()))?;
    let orientation = decoder.orientation().map_err(|e| broken(e.into()))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| broken(e.into()))?;
    if orientation != Orientation::NoTransforms {
        image.apply_orientation(orientation);
    }
    let rgb = image.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Image::new(height, width, 3, rgb.into_raw()).map_err(|e| broken(e.into()))
}

/// Whether a JPEG's end marker is there. The decoder fills what is missing with gray and says nothing.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2; // after the start marker
    loop {
        // To the next marker: 0xFF, then neither a stuffed zero, nor fill, nor a restart within the image data.
        while let Some(pair) = bytes.get(at..at + 2) {
            if pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xFF | 0x01 | 0xD0..=0xD7) {
                break;
            }
            at += 1;
        }
        let Some(&marker) = bytes.get(at + 1) else { return false };
        if marker == 0xD9 {
            return true;
        }
        let Some(length) = bytes.get(at + 2..at + 4) else { return false };
        at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
    }
}
