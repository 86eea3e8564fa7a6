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

/// A line: its value for a step, its colour, and its pixels.
type Series = (fn(&LrPoint) -> f64, Colour, usize);

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

        let series: [Series; 2] = [(|point| point.loss, PALE_BLUE, 1), (|point| point.smooth, BLUE, 2)];
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A mean that falls from 3 to 1 over the rates from 1e-5 to 1e-1 and rises to 2, and batches around it.
    fn curve() -> LrCurve {
        let point = |i: u32| {
            let smooth = if i <= 80 { 3.0 - 0.025 * f64::from(i) } else { 1.0 + 0.05 * f64::from(i - 80) };
            LrPoint {
                lr: 10f64.powf(f64::from(i) / 20.0 - 5.0),
                loss: smooth + if i.is_multiple_of(2) { 0.2 } else { -0.2 },
                smooth,
            }
        };
        LrCurve { points: (0..=100).map(point).collect(), valley: Some(1e-3), steep: Some(1e-4), minimum: Some(1e-2) }
    }

    /// Where the axes of [`curve`] are: labels of three letters at the left, ticks from 0.5 to 3.5.
    fn place(lr: f64, loss: f64) -> (usize, usize) {
        let left = (text_width("0.5") + 24) as f64;
        let x = left + (WIDTH as f64 - left - 128.0) * (lr.log10() + 5.0) / 5.0;
        (x.round() as usize, (100.0 + 246.0 * (3.5 - loss) / 3.0).round() as usize)
    }

    #[test]
    fn the_mean_and_the_suggestions_are_at_their_rates() {
        let picture = curve().draw().unwrap();
        assert_eq!((picture.height(), picture.width()), (380, 760));
        // Between the grid's lines and the suggestions.
        for i in [5u32, 30, 50, 70, 95] {
            let point = curve().points[i as usize];
            let (x, y) = place(point.lr, point.smooth);
            let near = |pixel: &[u8]| pixel.iter().zip(BLUE).all(|(a, b)| a.abs_diff(b) < 25);
            assert!((y - 1..=y + 1).any(|y| near(picture.pixel(y, x))), "{i}");
        }
        for lr in [1e-4, 1e-3, 1e-2] {
            let (x, y) = place(lr, 3.4);
            let orange = (x - 1..=x + 1).filter(|&x| picture.pixel(y, x)[2] < 160).count();
            assert!(orange > 0, "no line at {lr}");
        }
        let (x, y) = place(3e-3, 3.4);
        assert_eq!(picture.pixel(y, x), [255; 3]);
    }

    #[test]
    fn curves_with_gaps_or_of_one_step_are_drawn_and_none_is_refused() {
        let mut gaps = curve();
        gaps.points[10].loss = f64::NAN;
        gaps.points[11].loss = f64::INFINITY;
        gaps.points[99].loss = 1e30;
        gaps.points[100].smooth = f64::INFINITY;
        gaps.valley = Some(1e6);
        gaps.draw().unwrap();
        let one = LrCurve { points: curve().points[..1].to_vec(), valley: None, steep: None, minimum: None };
        assert_eq!(one.draw().unwrap().width(), 760);
        for points in [vec![], vec![LrPoint { lr: 1e-3, loss: f64::NAN, smooth: f64::NAN }]] {
            let error = LrCurve { points, valley: None, steep: None, minimum: None }.draw().unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
    }
}
