//! Encoding of image files.

use super::Image;
use crate::weights::write_bytes;
use crate::{Error, Result};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use std::path::Path;

impl Image {
    /// Saves it as a PNG file: gray (1 channel), gray with alpha (2), RGB (3) or RGB with alpha (4). The file is
    /// replaced atomically.
    ///
    /// ```
    /// use candle_finetune::Image;
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("red.png");
    /// let red = Image::from_rgb8(2, 1, vec![255, 0, 0, 255, 0, 0])?;
    /// red.save_png(&path)?;
    /// assert_eq!(Image::open(&path)?, red);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for another number of channels, and if the file cannot be written.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes(path.as_ref(), &self.png()?)
    }

    /// The bytes of a PNG file.
    fn png(&self) -> Result<Vec<u8>> {
        let wrong = |problem: String| Error::invalid("PNG", problem);
        let colour = match self.channels() {
            1 => ExtendedColorType::L8,
            2 => ExtendedColorType::La8,
            3 => ExtendedColorType::Rgb8,
            4 => ExtendedColorType::Rgba8,
            channels => return Err(wrong(format!("an image of {channels} channels; PNG files have 1 to 4"))),
        };
        let (Ok(width), Ok(height)) = (u32::try_from(self.width()), u32::try_from(self.height())) else {
            return Err(wrong(format!("{} x {} pixels are too many for PNG", self.height(), self.width())));
        };
        let encode = |filter: FilterType| {
            let mut bytes = vec![];
            let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Default, filter);
            encoder.write_image(self.bytes(), width, height, colour).map_err(|error| wrong(error.to_string()))?;
            Ok::<_, Error>(bytes)
        };
        // Differences of neighbours are small in photographs, and repetitions common in drawings.
        let (photograph, drawing) = (encode(FilterType::Adaptive)?, encode(FilterType::NoFilter)?);
        Ok(if drawing.len() < photograph.len() { drawing } else { photograph })
    }

    /// A small file of an RGB image, with its media type: PNG, or JPEG where that is less than half as large.
    #[cfg(feature = "plots")]
    pub(crate) fn encoded(&self) -> Result<(&'static str, Vec<u8>)> {
        let wrong = |problem: String| Error::invalid("JPEG", problem);
        let (Ok(width), Ok(height)) = (u16::try_from(self.width()), u16::try_from(self.height())) else {
            return Err(wrong(format!("{} x {} pixels are too many for JPEG", self.height(), self.width())));
        };
        let mut jpeg = vec![];
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 85);
        let colour = ExtendedColorType::Rgb8;
        let written = encoder.write_image(self.bytes(), width.into(), height.into(), colour);
        written.map_err(|error| wrong(error.to_string()))?;
        let png = self.png()?;
        Ok(if png.len() <= 2 * jpeg.len() { ("image/png", png) } else { ("image/jpeg", jpeg) })
    }
}
