//! Curves over the epochs: loss, accuracy, learning rate.

use super::markup::{escape, figure};
use crate::metrics::Metric;
use crate::plots::ticks::{Ticks, drawable};
use crate::report::{Averaged, EpochReport, Report};
use std::fmt::Write as _;

/// The size of a chart. It is shown about as large as this: one to three in a row.
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 236.0;

/// Where the axes begin and end.
const LEFT: f64 = 50.0;
const RIGHT: f64 = WIDTH - 42.0;
const TOP: f64 = 38.0;
const BOTTOM: f64 = HEIGHT - 26.0;

/// With more epochs than this, lines have no points.
const POINTED: usize = 30;

/// The height of a line of text, and the mean width of a letter.
const LINE: f64 = 14.0;
const LETTER: f64 = 6.4;

/// A value over the epochs, counted over all phases from 1; 0 is the fitted head.
struct Series {
    name: &'static str,
    class: &'static str,
    points: Vec<(usize, f64)>,
}

/// A chart of one or two values.
struct Chart<'a> {
    report: &'a Report,
    title: String,
    series: Vec<Series>,
    unit: &'static str,
    /// No tick is outside of these.
    bounds: (f64, f64),
    /// Lower and upper ends of an interval.
    band: Vec<(usize, f64, f64)>,
    /// Whether lines end with their phase, since the value jumps there.
    jumps: bool,
}

/// The charts, if there was an epoch.
pub(super) fn curves(report: &Report) -> String {
    if report.epochs.is_empty() {
        return String::new();
    }
    let fit = report.head_fit.as_ref();
    let over = |value: &dyn Fn(&EpochReport) -> Option<f64>, fitted: Option<f64>| -> Vec<(usize, f64)> {
        let epochs = report.epochs.iter().enumerate().filter_map(|(i, epoch)| Some((i + 1, value(epoch)?)));
        fitted.map(|value| (0, value)).into_iter().chain(epochs).collect()
    };
    let train = |points| Series { name: "train", class: "orange", points };
    let valid = |points| Series { name: "valid", class: "blue", points };
    // Of runs that keep averages of the weights.
    let averaged = |value: &dyn Fn(&Averaged) -> f64| {
        let points = over(&|e| e.averaged.as_ref().map(value), None);
        (!points.is_empty()).then_some(Series { name: "averaged", class: "gray", points })
    };
    let percent = |share: Option<f64>| share.map(|share| 100.0 * share);
    let of_epoch =
        |(i, epoch): (usize, &EpochReport)| epoch.valid_interval.map(|(low, high)| (i + 1, 100.0 * low, 100.0 * high));
    let chart = |title: &str, series: Vec<Series>| {
        let bounds = (f64::NEG_INFINITY, f64::INFINITY);
        Chart { report, title: title.to_string(), series, unit: "", bounds, band: vec![], jumps: false }
    };
    let mut loss = vec![
        train(over(&|e| Some(e.train_loss), None)),
        valid(over(&|e| e.valid_loss, fit.and_then(|f| f.valid_loss))),
    ];
    let mut top1 = vec![
        train(over(&|e| percent(e.train_top1), None)),
        valid(over(&|e| percent(e.valid_top1), percent(fit.and_then(|fit| fit.valid_top1)))),
    ];
    loss.extend(averaged(&|averaged| averaged.loss));
    top1.extend(averaged(&|averaged| 100.0 * averaged.top1));
    let band = report.epochs.iter().enumerate().filter_map(of_epoch).collect();
    let mut charts =
        vec![chart("Loss", loss), Chart { unit: "\u{a0}%", bounds: (0.0, 100.0), band, ..chart("Accuracy", top1) }];
    if !matches!(report.metric, Metric::Top1 | Metric::Loss) {
        let name = report.metric.name().replace('_', " ");
        charts.push(chart(&format!("Validation {name}"), vec![valid(over(&|e| e.valid_metric, None))]));
    }
    let rate = vec![Series { name: "", class: "blue", points: over(&|e| Some(e.lr), None) }];
    charts.push(Chart { bounds: (0.0, f64::INFINITY), jumps: true, ..chart("Learning rate of the head", rate) });
    let four = if charts.len() == 4 { " four" } else { "" };
    format!("<div class=\"charts{four}\">\n{}</div>\n", charts.iter().map(Chart::draw).collect::<Vec<_>>().concat())
}

impl Chart<'_> {
    fn draw(&self) -> String {
        let values = || {
            let lines = self.series.iter().flat_map(|s| s.points.iter().map(|(_, value)| *value));
            lines.chain(self.band.iter().flat_map(|(_, low, high)| [*low, *high])).filter(|value| drawable(*value))
        };
        if self.series.iter().all(|s| s.points.is_empty()) {
            return String::new();
        }
        let mut ticks = Ticks::new(0.0, 1.0, 4);
        match values().reduce(f64::min) {
            Some(low) => ticks = Ticks::new(low, values().fold(low, f64::max), 5),
            // All values are crosses.
            None => ticks.values.clear(),
        }
        ticks.values.retain(|tick| (self.bounds.0..=self.bounds.1).contains(tick));
        let title = escape(&self.title);
        let note = if self.band.is_empty() { "" } else { " <small>with its 95\u{a0}% interval</small>" };
        let mut svg = format!(
            "<figure><h3>{title}{note}</h3>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title} over \
             the epochs\">\n"
        );
        svg += &self.axes(&ticks);
        svg += &self.phases();
        svg += &self.interval(&ticks);
        for series in &self.series {
            svg += &self.line(series, &ticks);
        }
        svg += &self.names(&ticks);
        svg += &self.tooltips();
        svg + "</svg></figure>\n"
    }

    /// The first and the last epoch: 0 if there are values of the fitted head.
    fn span(&self) -> (usize, usize) {
        let fitted = self.report.head_fit.as_ref().is_some_and(|fit| fit.valid_top1.is_some());
        (usize::from(!fitted), self.report.epochs.len())
    }

    fn x(&self, epoch: f64) -> f64 {
        let (first, last) = self.span();
        if first == last {
            return f64::midpoint(LEFT, RIGHT);
        }
        LEFT + (RIGHT - LEFT) * (epoch - first as f64) / (last - first) as f64
    }

    fn y(ticks: &Ticks, value: f64) -> f64 {
        let (low, high) = ticks.ends();
        BOTTOM - (BOTTOM - TOP) * ((value - low) / (high - low)).clamp(0.0, 1.0)
    }

    fn axes(&self, ticks: &Ticks) -> String {
        let mut svg = String::new();
        for &tick in &ticks.values {
            let y = Self::y(ticks, tick);
            // Writing into a String cannot fail.
            let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            let label = format!("{}{}", ticks.label(tick), self.unit);
            svg += &text(LEFT - 7.0, y + 4.0, "end", "soft-text", &label);
        }
        let (first, last) = self.span();
        let mut epochs = Ticks::new(first as f64, last as f64, 6).values;
        epochs.retain(|epoch| epoch.fract() == 0.0 && (first as f64..=last as f64).contains(epoch));
        for epoch in epochs {
            svg += &text(self.x(epoch), BOTTOM + 17.0, "middle", "soft-text", &format!("{epoch}"));
        }
        svg
    }

    /// The phases, if there are several, and the epoch that was kept.
    fn phases(&self) -> String {
        let (epochs, (first, last)) = (&self.report.epochs, self.span());
        let (mut svg, mut at) = (String::new(), 0);
        let runs: Vec<_> = epochs.chunk_by(|a, b| a.phase == b.phase).collect();
        for run in runs.iter().filter(|_| runs.len() > 1) {
            let from = self.x((at as f64 + 0.5).max(first as f64));
            let to = self.x(((at + run.len()) as f64 + 0.5).min(last as f64));
            if at > 0 {
                let _ =
                    writeln!(svg, "<line class=\"phase\" x1=\"{from:.1}\" x2=\"{from:.1}\" y1=\"6\" y2=\"{BOTTOM}\"/>");
            }
            // A name without room is left out: those of its neighbours tell it.
            let name = format!("phase {}", run[0].phase);
            if name.len() as f64 * LETTER + 8.0 < to - from {
                svg += &text(from + if at > 0 { 5.0 } else { 0.0 }, 14.0, "start", "soft-text", &name);
            }
            at += run.len();
        }
        if let Some(kept) = self.report.best_epoch.filter(|kept| (first..=last).contains(kept)) {
            let x = self.x(kept as f64);
            let from = TOP - 5.0;
            let _ = writeln!(svg, "<line class=\"kept\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from}\" y2=\"{BOTTOM}\"/>");
            let middle = x.clamp(LEFT + 12.0, RIGHT + 20.0);
            svg += &text(middle, TOP - 9.0, "middle", "kept-text", "kept");
        }
        svg
    }

    fn interval(&self, ticks: &Ticks) -> String {
        let known = |&&(_, low, high): &&(usize, f64, f64)| drawable(low) && drawable(high);
        let band: Vec<_> = self.band.iter().filter(known).collect();
        if band.len() < 2 {
            return String::new();
        }
        let upper = band.iter().map(|(epoch, _, high)| (*epoch, *high));
        let lower = band.iter().rev().map(|(epoch, low, _)| (*epoch, *low));
        let places: Vec<String> = upper
            .chain(lower)
            .map(|(epoch, value)| format!("{:.1},{:.1}", self.x(epoch as f64), Self::y(ticks, value)))
            .collect();
        format!("<polygon class=\"band\" points=\"{}\"/>\n", places.join(" "))
    }

    /// The lines of a series. A value that cannot be drawn interrupts them, and has a cross at the top.
    fn line(&self, series: &Series, ticks: &Ticks) -> String {
        let Series { class, points, .. } = series;
        let place = |&(epoch, value): &(usize, f64)| (self.x(epoch as f64), Self::y(ticks, value));
        let phase = |epoch: usize| epoch.checked_sub(1).and_then(|at| self.report.epochs.get(at)).map(|e| e.phase);
        let together = |a: &(usize, f64), b: &(usize, f64)| {
            drawable(a.1) == drawable(b.1) && (!self.jumps || phase(a.0) == phase(b.0))
        };
        let mut svg = String::new();
        for run in points.chunk_by(together) {
            if !drawable(run[0].1) {
                for point in run {
                    svg += &text(self.x(point.0 as f64), TOP + 4.0, "middle", &format!("{class}-text"), "\u{d7}");
                }
                continue;
            }
            let places: Vec<String> = run.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polyline class=\"line {class}-line\" points=\"{}\"/>", places.join(" "));
            if points.len() <= POINTED || run.len() == 1 {
                for (x, y) in run.iter().map(place) {
                    let _ = writeln!(svg, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.4\"/>");
                }
            }
        }
        svg
    }

    /// The name of each line at its end, with a distance that keeps them apart.
    fn names(&self, ticks: &Ticks) -> String {
        let end = |series: &Series| series.points.iter().rev().map(|point| point.1).find(|value| drawable(*value));
        let mut ends: Vec<(f64, &Series)> =
            self.series.iter().filter_map(|series| Some((Self::y(ticks, end(series)?), series))).collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        if let [(upper, _), (lower, _)] = &mut ends[..] {
            let missing = (LINE - (*lower - *upper)).max(0.0) / 2.0;
            (*upper, *lower) = (*upper - missing, *lower + missing);
        }
        let name = |(y, series): &(f64, &Series)| {
            text(RIGHT + 7.0, y + 4.0, "start", &format!("{}-text", series.class), series.name)
        };
        ends.iter().map(name).collect::<Vec<_>>().concat()
    }

    /// A part of the chart for each epoch, with its values as a tooltip.
    fn tooltips(&self) -> String {
        let (first, last) = self.span();
        let mut svg = String::new();
        for epoch in first..=last {
            let from = self.x((epoch as f64 - 0.5).max(first as f64));
            let to = self.x((epoch as f64 + 0.5).min(last as f64));
            let (from, to) = if first == last { (LEFT, RIGHT) } else { (from, to) };
            let mut lines = vec![match epoch.checked_sub(1).map(|at| &self.report.epochs[at]) {
                Some(of) => format!("epoch {epoch} (phase {}, epoch {})", of.phase, of.epoch),
                None => "the fitted head".into(),
            }];
            for series in &self.series {
                let value = series.points.iter().find(|point| point.0 == epoch).map(|point| point.1);
                let name = if series.name.is_empty() { "rate" } else { series.name };
                lines.extend(value.map(|value| format!("{name} {}{}", self.value(value), self.unit)));
            }
            if let Some((_, low, high)) = self.band.iter().find(|interval| interval.0 == epoch) {
                lines.push(format!("95 % interval {low:.1}\u{2013}{high:.1}{}", self.unit));
            }
            let _ = writeln!(
                svg,
                "<rect class=\"hover\" x=\"{from:.1}\" width=\"{:.1}\" y=\"{TOP}\" height=\"{}\"><title>{}</title>\
                 </rect>",
                to - from,
                BOTTOM - TOP,
                lines.join("\n")
            );
        }
        svg
    }

    fn value(&self, value: f64) -> String {
        match value {
            value if !value.is_finite() => figure(value),
            value if self.unit.is_empty() && self.jumps => format!("{value:.2e}"),
            value if self.unit.is_empty() => figure(value),
            value => format!("{value:.1}"),
        }
    }
}

fn text(x: f64, y: f64, anchor: &str, class: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>\n", escape(text))
}
