//! Pictures side by side, with captions.

use super::canvas::{Canvas, LINE, TEXT, fitted, text_width};
use crate::data::Image;
use crate::error::{Error, Result};

/// Pictures side by side, each under its caption, on white.
///
/// ```
/// use candle_finetune::{Image, PictureGrid};
///
/// let gray = Image::new(32, 48, 1, vec![128; 32 * 48])?;
/// let grid = PictureGrid::new(2).add(gray.clone(), "first").add(gray.clone(), "second").add(gray, "third").draw()?;
/// assert_eq!((grid.height(), grid.width(), grid.channels()), (124, 120, 3)); // two rows
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// Captions are in Latin letters; others become question marks. Rows and columns are as large as their largest picture.
#[derive(Debug, Clone)]
pub struct PictureGrid {
    columns: usize,
    gap: usize,
    pictures: Vec<(Image, String)>,
}

/// Longer captions than this do not widen their column, but are cut.
const WIDEST_CAPTION: usize = 240;

impl PictureGrid {
    /// A grid of so many columns, at least 1, with gaps of 8 pixels.
    pub fn new(columns: usize) -> Self {
        Self { columns, gap: 8, pictures: vec![] }
    }

    /// Sets the pixels between pictures.
    pub fn gap(mut self, pixels: usize) -> Self {
        self.gap = pixels;
        self
    }

    /// Adds a picture with its caption, which may be empty: to the right of the last one, or in a new row.
    pub fn add(mut self, picture: Image, caption: impl Into<String>) -> Self {
        self.pictures.push((picture, caption.into()));
        self
    }

    /// The grid as one RGB image.
    ///
    /// # Errors
    /// [`Error::Invalid`] without columns or pictures, and for pictures that are neither gray nor RGB.
    pub fn draw(self) -> Result<Image> {
        let Self { columns, gap, pictures } = self;
        if columns == 0 || pictures.is_empty() {
            let problem = format!("{} pictures in {columns} columns; at least one of each is needed", pictures.len());
            return Err(Error::invalid("picture grid", problem));
        }
        let columns = columns.min(pictures.len());
        let (mut widths, mut rows) = (vec![0; columns], vec![]);
        let mut heights = vec![];
        for row in pictures.chunks(columns) {
            for (width, (picture, caption)) in widths.iter_mut().zip(row) {
                *width = picture.width().max(text_width(caption).min(WIDEST_CAPTION)).max(*width);
            }
            let caption = if row.iter().any(|(_, caption)| !caption.is_empty()) { LINE + 2 } else { 0 };
            let tallest = row.iter().map(|(picture, _)| picture.height()).max().unwrap_or(0);
            heights.push(caption + tallest);
            rows.push((caption, row));
        }
        let total = |sizes: &[usize]| sizes.iter().sum::<usize>() + gap * (sizes.len() + 1);
        let mut canvas = Canvas::new(total(&heights), total(&widths));
        let mut top = gap;
        for ((caption_height, row), height) in rows.into_iter().zip(heights) {
            let mut left = gap;
            for ((picture, caption), &width) in row.iter().zip(&widths) {
                canvas.text(&fitted(caption, width), top, left, TEXT);
                canvas.paste(&picture.clone().to_channels(3)?, top + caption_height, left);
                left += width + gap;
            }
            top += height + gap;
        }
        canvas.into_image()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_as_large_as_their_largest_picture() {
        let gray =
            |height: usize, width: usize, level: u8| Image::new(height, width, 1, vec![level; height * width]).unwrap();
        let grid = PictureGrid::new(2).gap(1).add(gray(2, 3, 1), "").add(gray(1, 1, 2), "").add(gray(1, 2, 3), "");
        let image = grid.draw().unwrap();
        let rows: Vec<Vec<u8>> =
            (0..image.height()).map(|y| (0..image.width()).map(|x| image.pixel(y, x)[1]).collect()).collect();
        let w = 255;
        assert_eq!(rows, [[w; 7], [w, 1, 1, 1, w, 2, w], [w, 1, 1, 1, w, w, w], [w; 7], [w, 3, 3, w, w, w, w], [w; 7]]);
    }

    #[test]
    fn grids_that_cannot_be_drawn_are_refused() {
        let five = Image::new(1, 1, 5, vec![0; 5]).unwrap();
        for grid in [PictureGrid::new(3), PictureGrid::new(0).add(five.clone(), ""), PictureGrid::new(1).add(five, "")]
        {
            assert!(matches!(grid.draw(), Err(Error::Invalid { .. })));
        }
    }
}
