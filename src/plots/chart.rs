//! The accuracy of the probes after each stage, as lines.

use super::canvas::{Canvas, Colour, LINE, TEXT, fitted, text_width};
use crate::advisor::{Evidence, StageProbe};
use crate::data::{Image, resized};
use crate::error::{Error, Result};
use crate::input_spec::Interpolation;
use plotters::prelude::{
    BitMapBackend, ChartBuilder, Circle, Color, IntoDrawingArea, LineSeries, PathElement, RGBColor,
};

/// The height of the picture and the least width of the lines, in pixels.
const HEIGHT: usize = 380;
const LEAST_WIDTH: usize = 500;

/// Margins: top, right, bottom, left.
const MARGINS: [usize; 4] = [44, 216, 34, 44];

/// The width of a stage is at most this, and longer names are cut.
const WIDEST_STAGE: usize = 130;

/// Lines are drawn so many times larger, and then shrunk: that smooths them. Texts are drawn at their size.
const FINER: usize = 3;

const GRAY: Colour = [150; 3];

/// A line of the chart: what it is, its colour, whether its points are filled, and its value for a stage.
type Series = (&'static str, Colour, bool, fn(&StageProbe) -> f64);

const SERIES: [Series; 4] = [
    ("ridge, 4 x 4 cells", [31, 119, 180], false, |stage| stage.grid.ridge),
    ("ridge, mean", [31, 119, 180], true, |stage| stage.mean.ridge),
    ("neighbours, 4 x 4 cells", [214, 96, 20], false, |stage| stage.grid.neighbours),
    ("neighbours, mean", [214, 96, 20], true, |stage| stage.mean.neighbours),
];

/// The texts of the chart with their places: top and left in pixels.
type Texts = Vec<(String, usize, usize, Colour)>;

impl Evidence {
    /// The accuracy of the probes after each stage as a line plot, 380 pixels high and 760 wide, or more for many
    /// stages: ridge regression and nearest neighbours, each on the mean over all pixels (filled points) and on the means
    /// over 4 x 4 cells (hollow ones). The gray line is the accuracy of always naming the largest class.
    ///
    /// Lines that rise to the last stage say that the network's features fit the images; a peak before it, that later
    /// stages are specialised on other images.
    ///
    /// ```
    /// use candle_finetune::{Advisor, Backbone, ImageFolder, candle_core::Device};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion/train");
    /// let data = ImageFolder::open(folder)?;
    /// let advice = Advisor::new(&Backbone::embedded(&Device::Cpu)?).advise(&data)?;
    /// let picture = advice.evidence.draw_probes()?;
    /// // picture.save_png("probes.png")?;
    /// # assert_eq!((picture.height(), picture.width()), (380, 760));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if nothing was measured.
    pub fn draw_probes(&self) -> Result<Image> {
        if self.stages.is_empty() {
            return Err(Error::invalid("probes", "there are none; the evidence has no stages"));
        }
        let longest = self.stages.iter().map(|stage| text_width(&stage.stage)).max().unwrap_or(0);
        let room = (longest + 16).min(WIDEST_STAGE);
        let (height, width) = (HEIGHT, MARGINS[1] + MARGINS[3] + LEAST_WIDTH.max(room * self.stages.len()));
        let mut bytes = vec![255; height * width * 3 * FINER * FINER];
        let mut texts = vec![];
        self.draw_lines(width, &mut bytes, &mut texts).map_err(|problem| Error::invalid("probes", problem))?;
        let fine = Image::new(height * FINER, width * FINER, 3, bytes)?;
        let mut canvas = Canvas::over(resized(&fine, height, width, Interpolation::Bilinear))?;
        for (text, top, left, colour) in texts {
            canvas.text(&text, top, left, colour);
        }
        canvas.into_image()
    }

    /// Draws the lines into `bytes`, and notes the texts.
    fn draw_lines(&self, width: usize, bytes: &mut [u8], texts: &mut Texts) -> std::result::Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let fine = |pixels: usize| (pixels * FINER) as u32;
        let [top, right, bottom, left] = MARGINS;
        let root = BitMapBackend::with_buffer(bytes, (fine(width), fine(HEIGHT))).into_drawing_area();
        let count = self.stages.len();
        // Without label areas: plotters has no letters here.
        let mut chart = ChartBuilder::on(&root)
            .margin_top(fine(top))
            .margin_right(fine(right))
            .margin_bottom(fine(bottom))
            .margin_left(fine(left))
            .build_cartesian_2d(-0.5..count as f64 - 0.5, 0.0..1.0)
            .map_err(|e| failed(&e))?;
        let colour = |[r, g, b]: Colour| RGBColor(r, g, b);
        let span = [-0.5, count as f64 - 0.5];

        for tenths in [0, 2, 4, 6, 8, 10] {
            let y = f64::from(tenths) / 10.0;
            let line = PathElement::new(span.map(|x| (x, y)), colour([225; 3]).stroke_width(FINER as u32));
            chart.draw_series([line]).map_err(|e| failed(&e))?;
            let at = chart.backend_coord(&(span[0], y)).1 as usize / FINER;
            texts.push((format!("{y:.1}"), at - LINE / 2, left - text_width("0.0") - 8, TEXT));
        }
        let guess = self.size.most as f64 / self.size.samples.max(1) as f64;
        let line = PathElement::new(span.map(|x| (x, guess)), colour(GRAY).stroke_width(FINER as u32));
        chart.draw_series([line]).map_err(|e| failed(&e))?;

        let room = (width - left - right) / count;
        for (i, stage) in self.stages.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(i as f64, 0.0));
            let name = fitted(&stage.stage, room.saturating_sub(8));
            let middle = x as usize / FINER;
            texts.push((name.clone(), y as usize / FINER + 8, middle.saturating_sub(text_width(&name) / 2), TEXT));
        }

        let dot = |at: (i32, i32), paint: Colour, filled: bool| {
            let size = 4 * FINER as i32;
            let inner = if filled { paint } else { [255; 3] };
            root.draw(&Circle::new(at, size, colour(paint).filled()))
                .and_then(|()| root.draw(&Circle::new(at, size - FINER as i32 * 3 / 2, colour(inner).filled())))
                .map_err(|e| failed(&e))
        };
        let mut ends = vec![(guess, "largest class", GRAY, None)];
        for (name, paint, filled, value) in SERIES {
            let points: Vec<(f64, f64)> = self.stages.iter().enumerate().map(|(i, s)| (i as f64, value(s))).collect();
            ends.extend(points.last().map(|(_, y)| (*y, name, paint, Some(filled))));
            let stroke = colour(paint).stroke_width(2 * FINER as u32);
            chart.draw_series(LineSeries::new(points.iter().copied(), stroke)).map_err(|e| failed(&e))?;
            points.iter().try_for_each(|at| dot(chart.backend_coord(at), paint, filled))?;
        }
        // Each line's name stands at its end, or below the one above it.
        ends.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut free = 0;
        for (y, name, paint, filled) in ends {
            let at = (chart.backend_coord(&(span[1], y)).1 as usize / FINER).saturating_sub(LINE / 2).max(free);
            free = at + LINE;
            let from = width - right + 12;
            if let Some(filled) = filled {
                dot(((from * FINER) as i32, ((at + LINE / 2 + 1) * FINER) as i32), paint, filled)?;
            }
            texts.push((name.to_string(), at, from + 10, paint));
        }
        let title = format!("Accuracy of probes after each stage ({} images)", self.samples);
        texts.push((title, 12, left, TEXT));
        root.present().map_err(|e| failed(&e))
    }
}
