//! The picture of the grid: images per class across, similarity up, the best strategy's colour, and the advisor's choice.

use crate::regret::Figures;
use crate::rows::{Rows, Task};
use candle_finetune::Strategy;
use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 560.0;
/// Left, top, right and bottom of the plot.
const FRAME: (f64, f64, f64, f64) = (70.0, 50.0, 620.0, 490.0);

/// A colour for each strategy of the table.
const COLOURS: [&str; 4] = ["#3b6fb6", "#e08a1e", "#3a9d5d", "#b6413b"];

/// Of any other strategy.
const OTHER: &str = "#777777";

fn colour(strategy: &str) -> &'static str {
    Strategy::QUADRANTS
        .iter()
        .zip(COLOURS)
        .find(|(known, _)| known.name() == strategy)
        .map_or(OTHER, |(_, colour)| colour)
}

/// An SVG.
pub fn draw(tasks: &[Task], rows: &Rows) -> String {
    let figures: Vec<Figures<'_>> = tasks.iter().filter_map(|task| Figures::new(task, rows)).collect();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let (left, top, right, bottom) = FRAME;
    let text = |svg: &mut String, x: f64, y: f64, style: &str, text: &str| {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
    };
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#999999\"/>",
        right - left,
        bottom - top
    );
    let per_class: Vec<f64> = figures.iter().map(|figures| figures.images().1).collect();
    let (least, most) = per_class.iter().fold((5f64, 200f64), |(a, b), &v| (a.min(v), b.max(v)));
    let (least, most) = (least.ln() - 0.2, most.ln() + 0.2);
    let x = |images: f64| left + (images.ln() - least) / (most - least) * (right - left);
    // Similar: the last stage errs as little as the best one. The share of errors that the best stage avoids, downwards.
    let avoided = |figures: &Figures<'_>| {
        let (last, best) = figures.probe();
        if last < 1.0 { ((best - last) / (1.0 - last)).clamp(0.0, 1.0) } else { 0.0 }
    };
    let y = |avoided: f64| top + 15.0 + avoided * (bottom - top - 30.0);
    for images in [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0] {
        let at = x(images);
        if (left..=right).contains(&at) {
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#999999\"/>",
                bottom + 5.0
            );
            text(&mut svg, at, bottom + 19.0, "text-anchor=\"middle\"", &format!("{images}"));
        }
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        text(&mut svg, left - 8.0, y(share) + 4.0, "text-anchor=\"end\"", &format!("{:.0} %", 100.0 * share));
    }
    let middle = f64::midpoint(left, right);
    text(&mut svg, middle, bottom + 40.0, "text-anchor=\"middle\"", "training images of a class");
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 20 {:.1})\"", f64::midpoint(top, bottom));
    text(
        &mut svg,
        20.0,
        f64::midpoint(top, bottom),
        &turned,
        "different: share of errors that an earlier stage avoids      similar",
    );
    text(&mut svg, left, 24.0, "font-size=\"15\"", "The best strategy of each task, and the advisor's choice");
    text(
        &mut svg,
        left,
        41.0,
        "fill=\"#555555\"",
        "disc: the best of the four; ring: chosen; a grey name is not counted",
    );
    let mut placed: Vec<(f64, f64)> = vec![];
    for (number, figures) in figures.iter().enumerate() {
        let (mut cx, cy) = (x(figures.images().1), y(avoided(figures)));
        // Beside the ones before, not over them.
        while placed.iter().any(|&(px, py)| f64::hypot(px - cx, py - cy) < 22.0) {
            cx += 6.0;
        }
        placed.push((cx, cy));
        let chosen = figures.auto.iter().find_map(|row| row.advice.as_ref()).map_or("", |a| a.strategy.as_str());
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"10.5\" fill=\"none\" stroke=\"{}\" stroke-width=\"3\"/>\
             <circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"7\" fill=\"{}\" fill-opacity=\"0.85\"/>",
            colour(chosen),
            colour(figures.best.name())
        );
        text(
            &mut svg,
            cx,
            cy + 4.0,
            "text-anchor=\"middle\" fill=\"white\" font-size=\"10\"",
            &format!("{}", number + 1),
        );
        let row = 150.0 + 18.0 * number as f64;
        let fill = if figures.counts() { "#222222" } else { "#999999" };
        text(
            &mut svg,
            right + 20.0,
            row,
            &format!("fill=\"{fill}\" font-size=\"11\""),
            &format!("{} {} ({:.1})", number + 1, figures.task.name, 100.0 * figures.regret),
        );
    }
    text(&mut svg, right + 20.0, 132.0, "fill=\"#555555\"", "task (regret of the choice, points)");
    let names = Strategy::QUADRANTS.map(Strategy::name).into_iter().chain(["another (ring alone)"]);
    for (row, (name, colour)) in names.zip(COLOURS.into_iter().chain([OTHER])).enumerate() {
        let at = 30.0 + 18.0 * row as f64;
        let _ = writeln!(svg, "<circle cx=\"{}\" cy=\"{at}\" r=\"6\" fill=\"{colour}\"/>", right + 27.0);
        text(&mut svg, right + 40.0, at + 4.0, "", name);
    }
    svg.push_str("</svg>\n");
    svg
}
