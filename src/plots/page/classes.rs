//! Recall and precision of each class, as bars.

use super::markup::{bar, count, escape, percent};
use crate::metrics::{ClassScores, Evaluation};

/// Classes in their order; of more than this the weakest come first.
const IN_ORDER: usize = 25;

/// So many of the weakest are shown, and the rest on request.
const WEAKEST: usize = 20;

/// A row per class that has samples or predictions.
pub(super) fn classes(evaluation: &Evaluation, classes: &[String]) -> String {
    let mut scores = evaluation.per_class();
    if scores.is_empty() {
        return String::new();
    }
    if scores.len() <= IN_ORDER {
        return table(&scores, classes);
    }
    scores.sort_by(|a, b| a.f1.total_cmp(&b.f1));
    let (weakest, rest) = scores.split_at(WEAKEST);
    format!(
        "<p class=\"soft\">The {WEAKEST} classes with the lowest F1 of {}.</p>\n{}<details><summary>The other {} \
         classes</summary>\n{}</details>\n",
        count(scores.len()),
        table(weakest, classes),
        count(rest.len()),
        table(rest, classes)
    )
}

fn table(scores: &[ClassScores], classes: &[String]) -> String {
    let row = |scores: &ClassScores| {
        let name = classes.get(scores.class as usize).map_or(String::new(), |name| escape(name));
        let (recall, precision) = (percent(scores.recall), percent(scores.precision));
        format!(
            "<tr><td class=\"name\">{name}</td><td>{}</td><td class=\"bars\">{}{}</td><td>{recall}</td><td>{precision}\
             </td></tr>\n",
            count(scores.samples),
            bar(scores.recall, "blue", &format!("recall {recall}")),
            bar(scores.precision, "orange", &format!("precision {precision}"))
        )
    };
    let rows: Vec<String> = scores.iter().map(row).collect();
    format!(
        "<table class=\"classes\">\n<thead><tr><th class=\"name\">Class</th><th>Samples</th><th class=\"bars\"></th>\
         <th class=\"blue-text\">Recall</th><th class=\"orange-text\">Precision</th></tr></thead>\n<tbody>\n{}</tbody>\
         </table>\n",
        rows.concat()
    )
}
