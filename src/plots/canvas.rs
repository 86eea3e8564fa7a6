//! Pixels to draw on.

use crate::data::Image;
use crate::error::Result;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

pub(super) type Colour = [u8; 3];

pub(super) const WHITE: Colour = [255; 3];
pub(super) const TEXT: Colour = [40; 3];

/// The height of a line of text in pixels.
pub(super) const LINE: usize = FONT.1.val();

const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);

/// The width of a text in pixels.
pub(super) fn text_width(text: &str) -> usize {
    text.chars().count() * get_raster_width(FONT.0, FONT.1)
}

/// The beginning of a text that fits into `width` pixels.
pub(super) fn fitted(text: &str, width: usize) -> String {
    let most = width / get_raster_width(FONT.0, FONT.1);
    if text.chars().count() <= most {
        return text.to_string();
    }
    let kept: String = text.chars().take(most.saturating_sub(2)).collect();
    kept + &"..".chars().take(most).collect::<String>()
}

/// An RGB image to draw on, white at first.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

impl Canvas {
    pub fn new(height: usize, width: usize) -> Self {
        Self { width, height, bytes: WHITE.repeat(height * width) }
    }

    /// Over these pixels.
    pub fn over(image: Image) -> Result<Self> {
        let image = image.to_channels(3)?;
        Ok(Self { width: image.width(), height: image.height(), bytes: image.into_bytes() })
    }

    pub fn into_image(self) -> Result<Image> {
        Image::new(self.height, self.width, 3, self.bytes)
    }

    /// Mixes a colour into a pixel; pixels outside are left out.
    pub fn blend(&mut self, y: usize, x: usize, colour: Colour, share: f32) {
        if y < self.height && x < self.width {
            let at = (y * self.width + x) * 3;
            for (byte, level) in self.bytes[at..at + 3].iter_mut().zip(colour) {
                *byte = (f32::from(*byte) * (1.0 - share) + f32::from(level) * share).round() as u8;
            }
        }
    }

    /// Draws an RGB image.
    pub fn paste(&mut self, image: &Image, top: usize, left: usize) {
        for (y, row) in image.bytes().chunks_exact(image.width() * 3).enumerate() {
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                self.blend(top + y, left + x, [pixel[0], pixel[1], pixel[2]], 1.0);
            }
        }
    }

    /// Draws the outline of a box, `thick` pixels wide, inside of it.
    pub fn outline(&mut self, [top, left, height, width]: [usize; 4], thick: usize, colour: Colour) {
        for y in 0..height {
            for x in 0..width {
                if y.min(height - 1 - y).min(x).min(width - 1 - x) < thick {
                    self.blend(top + y, left + x, colour, 1.0);
                }
            }
        }
    }

    /// Draws one line of text. Characters that the font lacks become question marks.
    pub fn text(&mut self, text: &str, top: usize, left: usize, colour: Colour) {
        let advance = get_raster_width(FONT.0, FONT.1);
        for (i, c) in text.chars().enumerate() {
            let Some(glyph) = get_raster(c, FONT.0, FONT.1).or_else(|| get_raster('?', FONT.0, FONT.1)) else {
                continue;
            };
            for (y, row) in glyph.rows().enumerate() {
                for (x, &level) in row.iter().enumerate().filter(|(_, level)| **level > 0) {
                    self.blend(top + y, left + i * advance + x, colour, f32::from(level) / 255.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_drawn_in_their_place_and_the_rest_stays() {
        let mut canvas = Canvas::new(LINE, text_width("i i"));
        canvas.text("i i", 0, 0, [0; 3]);
        let image = canvas.into_image().unwrap();
        let advance = image.width() / 3;
        let ink = |from: usize| {
            let pixels = (0..LINE).flat_map(|y| (from..from + advance).map(move |x| (y, x)));
            pixels.map(|(y, x)| 255 - u32::from(image.pixel(y, x)[0])).sum::<u32>()
        };
        assert!(ink(0) > 500 && ink(advance) == 0 && ink(0) == ink(2 * advance));
    }

    #[test]
    fn texts_are_cut_and_strange_letters_replaced() {
        let width = text_width("abcdef");
        assert_eq!(fitted("abcdef", width), "abcdef");
        assert_eq!(fitted("abcdefg", width), "abcd..");
        assert_eq!(fitted("abcdefg", 0), "");
        let draw = |text: &str| {
            let mut canvas = Canvas::new(LINE, text_width(text));
            canvas.text(text, 0, 0, TEXT);
            canvas.into_image().unwrap()
        };
        assert!(draw("\u{6f22}") == draw("?") && draw("\u{e9}") != draw("?"));
    }

    #[test]
    fn what_is_outside_is_left_out() {
        let mut canvas = Canvas::new(4, 4);
        canvas.outline([1, 1, 2, 9], 1, [0; 3]);
        canvas.paste(&Image::from_rgb8(2, 2, vec![7; 12]).unwrap(), 3, 3);
        let image = canvas.into_image().unwrap();
        let row = |y: usize| (0..4).map(|x| image.pixel(y, x)[0]).collect::<Vec<_>>();
        assert_eq!([row(0), row(1), row(2), row(3)], [[255; 4], [255, 0, 0, 0], [255, 0, 0, 0], [255, 255, 255, 7]]);
    }
}
