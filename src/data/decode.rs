//! Decoding of image files.

mod jpeg;
mod size;
pub(super) mod sniff;
mod tiff;

use super::Image;
use crate::{BoxError, Error, Result};
use image::error::ImageError;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use sniff::Content;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The default limit on an image's pixels, the bound from which Pillow suspects an attack.
pub(super) const MAX_PIXELS: u64 = 178_956_970;

/// The supported formats, for messages.
pub(super) const FORMATS: &str = "JPEG, PNG, WebP, BMP, GIF or TIFF";

/// The most bytes before and after the pixels, such as profiles: 256 MiB.
const BESIDE_PIXELS: u64 = 256 << 20;

impl Image {
    /// Reads an image file as RGB: JPEG, PNG, WebP, BMP, GIF (the first frame) or TIFF (the first page), recognised by
    /// content.
    ///
    /// Applies the orientation from the metadata, converts gray to RGB and 16 bits to 8, and drops alpha. Format and
    /// size are checked at the beginning of the file, before the pixels are read.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::BrokenImage`] for a file that is damaged, truncated or not an
    /// image, pipes and devices included; [`Error::UnsupportedImage`] for an unsupported format or variant;
    /// [`Error::ImageTooLarge`] if the header announces more than 178 956 970 pixels.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        read(path.as_ref(), MAX_PIXELS)
    }

    /// As [`open`](Self::open), with another limit on width x height.
    ///
    /// ```no_run
    /// use candle_finetune::Image;
    /// let mosaic = Image::open_limited("mosaic.png", 1_000_000_000)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn open_limited(path: impl AsRef<Path>, max_pixels: u64) -> Result<Self> {
        read(path.as_ref(), max_pixels)
    }

    /// Decodes the bytes of an image file, as [`open`](Self::open) does.
    ///
    /// ```
    /// use candle_finetune::Image;
    /// assert!(Image::decode(b"no image").is_err());
    /// ```
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::decode_limited(bytes, MAX_PIXELS)
    }

    /// As [`decode`](Self::decode), with another limit on width x height.
    pub fn decode_limited(bytes: &[u8], max_pixels: u64) -> Result<Self> {
        decode(Cursor::new(bytes), bytes.len() as u64, max_pixels).map_err(|fault| fault.of("in memory"))
    }
}

/// Reads a file of at most `max_pixels`.
pub(super) fn read(path: &Path, max_pixels: u64) -> Result<Image> {
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    let named = |fault: Fault| fault.of(&path.display().to_string());
    if let Some(special) = sniff::special(metadata.file_type()) {
        return Err(named(Fault::Broken(special.into())));
    }
    let file = File::open(path).map_err(Error::io("read", path))?;
    decode(BufReader::with_capacity(1 << 16, file), metadata.len(), max_pixels).map_err(|fault| match fault {
        Fault::Io(cause) => Error::io("read", path)(cause),
        fault => named(fault),
    })
}

/// The error's text with its remedy, without the file name, which the caller prints.
pub(super) fn problem(error: Error) -> String {
    match error {
        Error::BrokenImage { cause, .. } => sniff::broken(cause),
        Error::UnsupportedImage { found, .. } => sniff::unsupported(&found),
        Error::Io { cause, .. } => cause.to_string(),
        Error::ImageTooLarge { width, height, limit, .. } => format!(
            "{width} x {height} pixels, more than the limit of {limit}; shrink it or raise the limit (`max_pixels`, \
             `--max-pixels`)"
        ),
        other => other.to_string(),
    }
}

/// Why a file cannot be decoded.
enum Fault {
    /// It is damaged, or not an image.
    Broken(BoxError),
    /// It is unsupported: what it is.
    Unsupported(String),
    TooLarge {
        width: u64,
        height: u64,
        limit: u64,
    },
    /// The system failed to read it.
    Io(std::io::Error),
}

impl Fault {
    fn broken(problem: impl Into<String>) -> Self {
        Self::Broken(problem.into().into())
    }

    fn of(self, image: &str) -> Error {
        let image = image.to_string();
        match self {
            Self::Broken(cause) => Error::BrokenImage { image, cause },
            Self::Unsupported(found) => Error::UnsupportedImage { image, found },
            Self::TooLarge { width, height, limit } => Error::ImageTooLarge { image, width, height, limit },
            Self::Io(cause) => Error::BrokenImage { image, cause: cause.into() },
        }
    }
}

impl From<std::io::Error> for Fault {
    /// Decoders and system share one error type: the system's errors have a number.
    fn from(error: std::io::Error) -> Self {
        if error.raw_os_error().is_some() { Self::Io(error) } else { Self::Broken(error.into()) }
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(error) => error.into(),
            ImageError::Unsupported(error) => Self::Unsupported(format!("an image of a rare kind ({error})")),
            error => Self::Broken(error.into()),
        }
    }
}

/// Decodes an image of `length` bytes and at most `max_pixels`.
fn decode(mut reader: impl BufRead + Seek, length: u64, max_pixels: u64) -> Result<Image, Fault> {
    let mut head = Vec::with_capacity(sniff::HEAD);
    (&mut reader).take(sniff::HEAD as u64).read_to_end(&mut head)?;
    reader.seek_relative(-(head.len() as i64))?;
    let format = match sniff::content(&head) {
        Content::Image(format) => format,
        Content::Foreign(found) => return Err(Fault::Unsupported(found.into())),
        Content::NoImage(problem) => return Err(Fault::broken(problem)),
        Content::Unknown if head.is_empty() => return Err(Fault::broken("the file is empty")),
        Content::Unknown => return Err(Fault::broken(format!("its content is none of {FORMATS}"))),
    };
    let image = match format {
        ImageFormat::Jpeg => {
            let bytes = jpeg::read(reader, max_pixels)?;
            pixels(format, Cursor::new(bytes), max_pixels)?
        }
        ImageFormat::Tiff => tiff(reader, max_pixels)?,
        _ => {
            // The decoders may read the whole file before they return the size.
            if let Some((width, height)) = size::of(format, &head) {
                check_pixels(width, height, max_pixels)?;
                if length > width.saturating_mul(height).saturating_mul(8).saturating_add(BESIDE_PIXELS) {
                    let found =
                        format!("an image of {width} x {height} pixels in a file of {length} bytes (an animation?)");
                    return Err(Fault::Unsupported(found));
                }
            }
            pixels(format, reader, max_pixels)?
        }
    };
    let rgb = image.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Image::new(height, width, 3, rgb.into_raw()).map_err(|error| Fault::Broken(error.into()))
}

/// Decodes a TIFF, whose decoder gives little detail on what it does not support.
fn tiff(mut reader: impl BufRead + Seek, max_pixels: u64) -> Result<DynamicImage, Fault> {
    let directory = tiff::Directory::read(&mut reader);
    reader.seek(SeekFrom::Start(0))?;
    let Some(directory) = directory else { return pixels(ImageFormat::Tiff, reader, max_pixels) };
    if directory.has_planes_of_tiles() {
        return Err(Fault::Unsupported(directory.kind()));
    }
    let image = pixels(ImageFormat::Tiff, reader, max_pixels).map_err(|fault| match fault {
        Fault::Unsupported(_) => Fault::Unsupported(directory.kind()),
        fault => fault,
    })?;
    if !(directory.is_premultiplied() && image.color().has_alpha()) {
        return Ok(image);
    }
    let mut image = image.into_rgba8();
    for image::Rgba([colours @ .., alpha]) in image.pixels_mut() {
        if *alpha > 0 {
            colours.iter_mut().for_each(|c| *c = (u32::from(*c) * 255 / u32::from(*alpha)).min(255) as u8);
        }
    }
    Ok(image.into())
}

fn check_pixels(width: u64, height: u64, limit: u64) -> Result<(), Fault> {
    if width.saturating_mul(height) > limit { Err(Fault::TooLarge { width, height, limit }) } else { Ok(()) }
}

/// Decodes the pixels and applies the orientation.
fn pixels(format: ImageFormat, reader: impl BufRead + Seek, max_pixels: u64) -> Result<DynamicImage, Fault> {
    // Some decoders panic on damaged files.
    let decode = AssertUnwindSafe(|| decoded(ImageReader::with_format(reader, format), max_pixels));
    catch_unwind(decode).unwrap_or_else(|_| Err(Fault::broken("its decoder panicked")))
}

fn decoded(mut reader: ImageReader<impl BufRead + Seek>, max_pixels: u64) -> Result<DynamicImage, Fault> {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(BESIDE_PIXELS);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    check_pixels(width.into(), height.into(), max_pixels)?;
    // No format decodes to more than 16 bytes per pixel (four channels of f32); twice that, for working memory.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some((u64::from(width) * u64::from(height)).saturating_mul(32).saturating_add(64 << 20));
    decoder.set_limits(limits)?;
    if matches!(decoder.color_type(), ColorType::Rgb32F | ColorType::Rgba32F) {
        // The file does not define which value is white.
        return Err(Fault::Unsupported("an image with floating-point samples".into()));
    }
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    if orientation != Orientation::NoTransforms {
        image.apply_orientation(orientation);
    }
    Ok(image)
}
