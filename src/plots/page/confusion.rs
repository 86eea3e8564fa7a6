//! Which class is taken for which: a matrix of few classes, a list of many.

use super::markup::{bar, count, cut, escape, percent};
use crate::metrics::{Confusion, Evaluation};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// More classes than this have no matrix.
const MATRIX: usize = 25;

/// Rows of the list: beside a matrix, and alone.
const SOME: usize = 8;
const MANY: usize = 25;

/// The size of a letter in the matrix: its height, and the mean width.
const LETTER: (f64, f64) = (13.0, 6.9);

/// Letters of a class's name in the matrix; the rest is in its tooltip.
const NAME: usize = 16;

/// The matrix, if the classes are few, and the most frequent confusions.
pub(super) fn confusion(evaluation: &Evaluation, classes: &[String]) -> String {
    let confusion = &evaluation.confusion;
    let samples = confusion.samples();
    if samples.is_empty() {
        return String::new();
    }
    let few = classes.len() <= MATRIX;
    let list = list(confusion, &samples, classes, if few { SOME } else { MANY });
    if few { format!("<div class=\"pair\">\n{}{list}</div>\n", matrix(confusion, &samples, classes)) } else { list }
}

/// One hue by the fraction of the row; every cell has its count.
fn matrix(confusion: &Confusion, samples: &BTreeMap<u32, usize>, classes: &[String]) -> String {
    let names: Vec<String> = classes.iter().map(|name| cut(name, NAME)).collect();
    let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64 * LETTER.1;
    let digits = confusion.iter().map(|(.., count)| count.to_string().len()).max().unwrap_or(1) as f64;
    let side = match classes.len() {
        0..5 => 72.0,
        5..13 => 40.0,
        _ => 30.0,
    };
    let side = f64::max(side, digits * LETTER.1 + 10.0);
    // Names over the columns are level where they fit.
    let level = widest + 8.0 <= side;
    let (left, top) = (widest + 12.0, if level { 24.0 } else { widest * 0.71 + 18.0 });
    let all = side * classes.len() as f64;
    let (width, height) = (left + all + if level { 4.0 } else { widest * 0.71 }, top + all);
    let mut svg = format!(
        "<div class=\"whole\"><div class=\"scroll\"><svg class=\"matrix\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         style=\"width:{width:.0}px;min-width:{:.0}px\" role=\"img\" aria-label=\"Confusion matrix\">\n",
        0.6 * width
    );
    let middle = side / 2.0 + LETTER.0 * 0.35;
    for (i, (name, full)) in names.iter().zip(classes).enumerate() {
        let at = side * i as f64;
        let (y, x) = (top + at + middle, left + at + side / 2.0);
        let title = escape(full);
        let name = escape(name);
        // Writing into a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"end\"><title>{title}</title>{name}</text>",
            left - 8.0
        );
        let turned = if level {
            "text-anchor=\"middle\"".into()
        } else {
            format!("transform=\"rotate(-45 {x:.1} {:.1})\"", top - 8.0)
        };
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" {turned}><title>{title}</title>{name}</text>", top - 8.0);
    }
    for (truth, row) in classes.iter().enumerate() {
        let of_row = samples.get(&(truth as u32)).copied().unwrap_or(0);
        for (predicted, column) in classes.iter().enumerate() {
            let cell = confusion.count(truth, predicted);
            let share = cell as f64 / of_row.max(1) as f64;
            let (x, y) = (left + side * predicted as f64, top + side * truth as f64);
            let tooltip = format!("{row} as {column}: {cell} of {of_row} ({})", percent(share));
            let own = if truth == predicted { " own" } else { "" };
            let _ = write!(
                svg,
                "<g><title>{}</title><rect class=\"cell{own}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{1:.1}\" \
                 height=\"{1:.1}\"/><rect class=\"blue\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{1:.1}\" height=\"{1:.1}\" \
                 opacity=\"{share:.3}\"/>",
                escape(&tooltip),
                side - 2.0
            );
            if cell > 0 {
                let over = if share > 0.55 { " class=\"on-blue\"" } else { "" };
                let (x, y) = (x + side / 2.0 - 1.0, y + middle - 1.0);
                let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\"{over}>{cell}</text>");
            }
            svg += "</g>\n";
        }
    }
    svg + "</svg></div>\n<p class=\"soft\">Rows: true class. Columns: predicted class.</p></div>\n"
}

/// The most frequent confusions.
fn list(confusion: &Confusion, samples: &BTreeMap<u32, usize>, classes: &[String], most: usize) -> String {
    let mut wrong: Vec<(u32, u32, usize)> =
        confusion.iter().filter(|(truth, predicted, _)| truth != predicted).collect();
    wrong.sort_by_key(|&(truth, predicted, count)| (std::cmp::Reverse(count), truth, predicted));
    if wrong.is_empty() {
        return "<p>No sample is predicted as another class.</p>\n".into();
    }
    let name = |class: u32| classes.get(class as usize).map_or(String::new(), |name| escape(name));
    let row = |&(truth, predicted, cell): &(u32, u32, usize)| {
        let of_row = samples.get(&truth).copied().unwrap_or(0);
        let share = cell as f64 / of_row.max(1) as f64;
        let of = format!("{} of {}", count(cell), count(of_row));
        format!(
            "<tr><td class=\"name\">{}</td><td class=\"name\">{}</td><td class=\"bars\">{}</td><td>{of}</td></tr>\n",
            name(truth),
            name(predicted),
            bar(share, "blue", &format!("{of}: {}", percent(share)))
        )
    };
    let rows: Vec<String> = wrong.iter().take(most).map(row).collect();
    let more = wrong.len().saturating_sub(most);
    let more = if more > 0 {
        format!("<p class=\"soft\">{} more pairs are confused.</p>\n", count(more))
    } else {
        String::new()
    };
    format!(
        "<div><table class=\"confusions\">\n<thead><tr><th class=\"name\">True class</th><th class=\"name\">Predicted \
         as</th><th class=\"bars\"></th><th>Samples</th></tr></thead>\n<tbody>\n{}</tbody></table>\n{more}</div>\n",
        rows.concat()
    )
}
