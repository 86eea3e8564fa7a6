//! Lines, points and texts over two axes, as an image.

use super::canvas::{Canvas, Colour, LINE, TEXT, text_width};
use crate::data::{Image, resized};
use crate::error::{Error, Result};
use crate::input_spec::Interpolation;
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, Circle, Color, DrawingArea, IntoDrawingArea, PathElement, RGBColor};

/// The height of a chart in pixels.
pub(super) const HEIGHT: usize = 380;

pub(super) const BLUE: Colour = [31, 119, 180];
pub(super) const ORANGE: Colour = [214, 96, 20];
pub(super) const GRAY: Colour = [150; 3];

/// Lines of the grid.
pub(super) const PALE: Colour = [225; 3];

/// Lines are drawn so many times larger, and then shrunk: that smooths them. Texts are drawn at their size.
const FINER: usize = 3;

/// A chart that is being drawn.
pub(super) struct Chart {
    width: usize,
    /// Around the axes: top, right, bottom, left.
    margins: [usize; 4],
    /// The values at the ends of the axes.
    x: (f64, f64),
    y: (f64, f64),
    bytes: Vec<u8>,
    /// With top and left in pixels.
    texts: Vec<(String, usize, usize, Colour)>,
}

impl Chart {
    pub fn new(width: usize, margins: [usize; 4], x: (f64, f64), y: (f64, f64)) -> Self {
        Self { width, margins, x, y, bytes: vec![255; HEIGHT * width * 3 * FINER * FINER], texts: vec![] }
    }

    /// Where a point is, in pixels from the left and from the top.
    pub fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let [top, right, bottom, left] = self.margins;
        let (width, height) = (self.width - left - right, HEIGHT - top - bottom);
        let share = |value: f64, (from, to): (f64, f64)| (value - from) / (to - from);
        (left as f64 + width as f64 * share(x, self.x), top as f64 + height as f64 * (1.0 - share(y, self.y)))
    }

    /// A line through points, so many pixels thick.
    pub fn line(&mut self, points: impl IntoIterator<Item = (f64, f64)>, colour: Colour, thick: usize) -> Result<()> {
        let places: Vec<(i32, i32)> = points.into_iter().map(|point| fine(self.place(point))).collect();
        let stroke = paint(colour).stroke_width((thick * FINER) as u32);
        self.area().draw(&PathElement::new(places, stroke)).map_err(failed)
    }

    /// A line from side to side at this height, with its label left of the axis.
    pub fn level(&mut self, y: f64, label: &str, colour: Colour) -> Result<()> {
        let ends = [self.x.0, self.x.1];
        self.line(ends.map(|x| (x, y)), colour, 1)?;
        let left = self.margins[3].saturating_sub(text_width(label) + 8);
        self.text(label, self.beside(y), left, TEXT);
        Ok(())
    }

    /// A point at a place in pixels from the left and from the top; hollow if it is not filled.
    pub fn dot(&mut self, place: (f64, f64), colour: Colour, filled: bool) -> Result<()> {
        let (at, size, inner) = (fine(place), 4 * FINER as i32, if filled { colour } else { [255; 3] });
        let area = self.area();
        area.draw(&Circle::new(at, size, paint(colour).filled())).map_err(failed)?;
        area.draw(&Circle::new(at, size - FINER as i32 * 3 / 2, paint(inner).filled())).map_err(failed)
    }

    /// A text, with its top and left in pixels.
    pub fn text(&mut self, text: &str, top: usize, left: usize, colour: Colour) {
        self.texts.push((text.to_string(), top, left, colour));
    }

    /// A text below the horizontal axis, around the value `x`.
    pub fn below(&mut self, text: &str, x: f64) {
        let (at, bottom) = self.place((x, self.y.0));
        self.text(text, bottom as usize + 8, (at as usize).saturating_sub(text_width(text) / 2), TEXT);
    }

    /// The names of lines right of the axis, each at the height of its line's end or below the one above it. `filled`:
    /// whether the line has points, and which.
    pub fn names(&mut self, mut ends: Vec<(f64, &str, Colour, Option<bool>)>) -> Result<()> {
        ends.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (from, mut free) = (self.width - self.margins[1] + 12, 0);
        for (y, name, colour, filled) in ends {
            let at = self.beside(y).max(free);
            free = at + LINE;
            if let Some(filled) = filled {
                self.dot((from as f64, (at + LINE / 2 + 1) as f64), colour, filled)?;
            }
            self.text(name, at, from + 10, colour);
        }
        Ok(())
    }

    /// The top of a text beside a height.
    fn beside(&self, y: f64) -> usize {
        (self.place((self.x.0, y)).1 as usize).saturating_sub(LINE / 2)
    }

    fn area(&mut self) -> DrawingArea<BitMapBackend<'_>, Shift> {
        let size = ((self.width * FINER) as u32, (HEIGHT * FINER) as u32);
        BitMapBackend::with_buffer(&mut self.bytes, size).into_drawing_area()
    }

    pub fn into_image(self) -> Result<Image> {
        let drawn = Image::new(HEIGHT * FINER, self.width * FINER, 3, self.bytes)?;
        let mut canvas = Canvas::over(resized(&drawn, HEIGHT, self.width, Interpolation::Bilinear))?;
        for (text, top, left, colour) in self.texts {
            canvas.text(&text, top, left, colour);
        }
        canvas.into_image()
    }
}

/// A place in the pixels that are shrunk.
fn fine((x, y): (f64, f64)) -> (i32, i32) {
    let pixel = |at: f64| (at * FINER as f64).round() as i32;
    (pixel(x), pixel(y))
}

fn paint([r, g, b]: Colour) -> RGBColor {
    RGBColor(r, g, b)
}

fn failed(problem: impl std::fmt::Display) -> Error {
    Error::invalid("chart", problem.to_string())
}
