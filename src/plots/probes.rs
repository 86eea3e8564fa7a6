//! The accuracy of the probes after each stage, as lines.

use super::canvas::{Colour, TEXT, fitted, text_width};
use super::chart::{BLUE, Chart, GRAY, ORANGE, PALE};
use crate::advisor::{Evidence, StageProbe};
use crate::data::Image;
use crate::error::{Error, Result};

/// The least width of the lines in pixels.
const LEAST_WIDTH: usize = 500;

/// Margins: top, right, bottom, left.
const MARGINS: [usize; 4] = [44, 216, 34, 44];

/// The width of a stage is at most this, and longer names are cut.
const WIDEST_STAGE: usize = 130;

/// A line of the chart: what it is, its colour, whether its points are filled, and its value for a stage.
type Series = (&'static str, Colour, bool, fn(&StageProbe) -> f64);

const SERIES: [Series; 4] = [
    ("ridge, 4 x 4 cells", BLUE, false, |stage| stage.grid.ridge),
    ("ridge, mean", BLUE, true, |stage| stage.mean.ridge),
    ("neighbours, 4 x 4 cells", ORANGE, false, |stage| stage.grid.neighbours),
    ("neighbours, mean", ORANGE, true, |stage| stage.mean.neighbours),
];

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
        let count = self.stages.len();
        let longest = self.stages.iter().map(|stage| text_width(&stage.stage)).max().unwrap_or(0);
        let across = LEAST_WIDTH.max((longest + 16).min(WIDEST_STAGE) * count);
        let [_, right, _, left] = MARGINS;
        let mut chart = Chart::new(left + across + right, MARGINS, (-0.5, count as f64 - 0.5), (0.0, 1.0));
        for tenths in [0, 2, 4, 6, 8, 10] {
            let y = f64::from(tenths) / 10.0;
            chart.level(y, &format!("{y:.1}"), PALE)?;
        }
        let guess = self.size.most as f64 / self.size.samples.max(1) as f64;
        chart.level(guess, "", GRAY)?;
        for (i, stage) in self.stages.iter().enumerate() {
            chart.below(&fitted(&stage.stage, (across / count).saturating_sub(8)), i as f64);
        }
        let mut ends = vec![(guess, "largest class", GRAY, None)];
        for (name, paint, filled, value) in SERIES {
            let points: Vec<(f64, f64)> = self.stages.iter().enumerate().map(|(i, s)| (i as f64, value(s))).collect();
            ends.extend(points.last().map(|(_, y)| (*y, name, paint, Some(filled))));
            chart.line(points.iter().copied(), paint, 2)?;
            points.iter().try_for_each(|&at| chart.dot(chart.place(at), paint, filled))?;
        }
        chart.names(ends)?;
        chart.text(&format!("Accuracy of probes after each stage ({} images)", self.samples), 12, left, TEXT);
        chart.into_image()
    }
}
