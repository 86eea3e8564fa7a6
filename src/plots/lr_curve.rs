//! The loss over the learning rate, as lines.

use super::canvas::{Colour, LINE, TEXT, text_width};
use super::chart::{BLUE, Chart, ORANGE, PALE};
use super::ticks::{Ticks, decades, drawable};
use crate::data::Image;
use crate::error::{Error, Result};
use crate::train::{LrCurve, LrPoint};

/// The width of the picture in pixels.
const WIDTH: usize = 760;

/// Margins at the top, right and bottom; the one at the left has room for the labels.
const MARGINS: [usize; 3] = [100, 128, 34];

/// The colour of the losses of batches.
const PALE_BLUE: Colour = [168, 198, 222];

/// The losses of batches are cut where they are further from the smoothed ones than this part of their range.
const BEYOND: f64 = 0.25;

impl LrCurve {
    /// The loss over the learning rate as a line plot with a logarithmic axis, 380 pixels high and 760 wide: the loss of
    /// each batch (pale) and its running mean, and the rates that they suggest as orange lines. Losses of batches far
    /// outside of the range of the mean are drawn at the edge.
    ///
    /// A rate where the mean falls steadily trains; where it rises again, training diverges.
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// use candle_finetune::LrRange;
    ///
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).batch_size(4);
    /// let curve = FineTuner::new(backbone).plan(plan).find_lr(&train, LrRange::default().steps(20))?;
    /// let picture = curve.draw()?;
    /// // picture.save_png("lr.png")?;
    /// # assert_eq!((picture.height(), picture.width()), (380, 760));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if no step has a finite loss at a rate above 0.
    pub fn draw(&self) -> Result<Image> {
        let known = |point: &&LrPoint| drawable(point.smooth) && point.lr > 0.0 && drawable(point.lr);
        let points: Vec<&LrPoint> = self.points.iter().filter(known).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else {
            return Err(Error::invalid("learning rate search", "no step of it has a finite loss; there is no curve"));
        };
        let (low, high) = range(points.iter().map(|point| point.smooth));
        let room = BEYOND * (high - low).max(0.01 * high.abs());
        let (lowest, highest) = range(points.iter().map(|point| point.loss).filter(|loss| drawable(*loss)));
        let ticks = Ticks::new(low.min(lowest.max(low - room)), high.max(highest.min(high + room)), 6);
        let (bottom, top) = ticks.ends();

        let longest = ticks.values.iter().map(|&tick| text_width(&ticks.label(tick))).max().unwrap_or(0);
        let [above, right, below] = MARGINS;
        let log = |lr: f64| lr.log10();
        // A single rate is in the middle.
        let beside = if last.lr > first.lr { 0.0 } else { 0.5 };
        let across = (log(first.lr) - beside, log(last.lr) + beside);
        let mut chart = Chart::new(WIDTH, [above, right, below, longest + 24], across, (bottom, top));
        for &tick in &ticks.values {
            chart.level(tick, &ticks.label(tick), PALE)?;
        }
        for (lr, label) in decades(first.lr, last.lr) {
            chart.line([(log(lr), bottom), (log(lr), top)], PALE, 1)?;
            chart.below(&label, log(lr));
        }

        let named = [("valley", self.valley), ("steep", self.steep), ("minimum", self.minimum)];
        let mut marks: Vec<(&str, f64)> = named.into_iter().filter_map(|(name, lr)| Some((name, lr?))).collect();
        marks.retain(|(_, lr)| (first.lr..=last.lr).contains(lr));
        marks.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (i, (name, lr)) in marks.into_iter().enumerate() {
            // The rightmost one is named lowest, so that no line crosses a name.
            let (left, under) = chart.place((log(lr), top));
            let per_pixel = (top - bottom) / (chart.place((log(lr), bottom)).1 - under);
            let to = top + (LINE * i + LINE / 2 + 2) as f64 * per_pixel;
            chart.line([(log(lr), bottom), (log(lr), to)], ORANGE, 1)?;
            let text = format!("{name} {lr:.1e}");
            let from = (left as usize + 5).min(WIDTH.saturating_sub(text_width(&text) + 4));
            chart.text(&text, above - LINE * (i + 1) - 2, from, ORANGE);
        }

        let loss = |point: &LrPoint| point.loss;
        let smooth = |point: &LrPoint| point.smooth;
        let series: [(fn(&LrPoint) -> f64, Colour, usize); 2] = [(loss, PALE_BLUE, 1), (smooth, BLUE, 2)];
        for (value, colour, thick) in series {
            // What is not finite is a gap.
            for run in points.split(|point| !drawable(value(point))) {
                let at = |point: &&LrPoint| (log(point.lr), value(point).clamp(bottom, top));
                chart.line(run.iter().map(at), colour, thick)?;
            }
        }
        let end =
            points.iter().rev().map(|point| point.loss).find(|loss| drawable(*loss)).map(|l| l.clamp(bottom, top));
        let mut ends = vec![(last.smooth, "running mean", BLUE, None)];
        ends.extend(end.map(|loss| (loss, "batches", [110, 150, 185], None)));
        chart.names(ends)?;
        let title = format!("Loss over the learning rate of the head ({} steps)", self.points.len());
        chart.text(&title, 12, longest + 24, TEXT);
        chart.into_image()
    }
}

/// The least and the largest value.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}
