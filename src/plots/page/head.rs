//! The head of a page: accuracies, facts, warnings and the plan.

use super::markup::{count, duration, escape, memory, percent, section};
use crate::metrics::{Evaluation, Metric, Task};
use crate::report::Report;
use crate::strategy::Strategy;

/// What the run was, under the title.
pub(super) fn subtitle(report: &Report) -> String {
    let strategy = report.strategy.map_or("custom plan", Strategy::name);
    let base = report.base_model.as_deref().map(|base| format!("weights of {}", escape(base)));
    let (height, width) = report.input_size;
    let size = (height > 0).then(|| format!("{height} \u{d7} {width} pixels"));
    let classes = format!("{} classes", count(report.classes.len()));
    let parts = [Some(escape(&report.arch)), Some(strategy.into()), Some(classes), size, base];
    let date = report.date.as_deref().map(|date| escape(&date.replace('T', " ").replace('Z', " UTC")));
    let parts: Vec<String> = parts.into_iter().chain([date]).flatten().collect();
    format!("<p class=\"soft\">{}</p>\n", parts.join(" \u{b7} "))
}

/// The accuracies with their intervals, and the facts of the run.
pub(super) fn figures(report: &Report) -> String {
    let is_of_labels = |e: &Option<Evaluation>| e.as_ref().is_some_and(|e| e.task() == Task::Labels);
    let share = if is_of_labels(&report.test) || is_of_labels(&report.valid) { "exact matches" } else { "accuracy" };
    let test = card(&format!("Test {share}"), report.top1, report.test.as_ref());
    let valid = card(&format!("Validation {share}"), report.valid_top1, report.valid.as_ref());
    let mut cards = test + &valid;
    if cards.is_empty() {
        cards = "<div class=\"card\"><h3>Accuracy</h3><p>Not measured: the report has neither a validation nor a \
                 test.</p></div>\n"
            .into();
    }
    format!("<div class=\"cards\">\n{cards}</div>\n<dl class=\"facts\">\n{}</dl>\n", facts(report))
}

/// An accuracy; with the evaluation that it is of, if the report has it.
fn card(title: &str, top1: Option<f64>, evaluation: Option<&Evaluation>) -> String {
    let Some(top1) = top1.or_else(|| evaluation.map(Evaluation::top1)) else { return String::new() };
    let details = evaluation.map(|e| {
        let (low, high) = e.interval();
        let interval = format!("{:.1}\u{2013}{}", 100.0 * low, percent(high));
        let loss = super::markup::figure(e.loss);
        let open = match e.task() {
            Task::Labels => {
                let precision = e.average_precision().map_or("unknown".into(), percent);
                format!("Macro F1 {}, average precision {precision}, loss {loss}", percent(e.macro_f1()))
            }
            _ => format!(
                "Balanced accuracy {}, loss {loss}. Always naming the largest class: {}",
                percent(e.balanced_accuracy()),
                percent(e.largest_class())
            ),
        };
        format!(
            "{}<p><b>{} of {}</b> correct, 95\u{a0}% interval <span class=\"range\">{interval}</span></p>\n<p class=\"soft\">{open}.</p>\n",
            strip(e),
            count(e.correct),
            count(e.total)
        )
    });
    format!(
        "<div class=\"card\"><h3>{title}</h3>\n<p class=\"big\">{}</p>\n{}</div>\n",
        percent(top1),
        details.unwrap_or_default()
    )
}

/// The interval of an accuracy on an axis from 0 to 100 %, with the largest class.
fn strip(e: &Evaluation) -> String {
    let (low, high) = e.interval();
    let at = |share: f64| format!("{:.2}%", 100.0 * share);
    let label = format!("{} on an axis from 0 to 100 %", percent(e.top1()));
    format!(
        "<svg class=\"strip\" role=\"img\" aria-label=\"{label}\">\n<rect class=\"track\" width=\"100%\" y=\"7\" \
         height=\"2\"/>\n<rect class=\"soft-fill\" x=\"{}\" width=\"2\" y=\"3\" height=\"10\"><title>largest class \
         {}</title></rect>\n<rect class=\"blue\" x=\"{}\" width=\"{}\" y=\"5\" height=\"6\" rx=\"3\" \
         opacity=\"0.45\"><title>95 % interval</title></rect>\n<circle class=\"blue\" cx=\"{}\" cy=\"8\" r=\"5\">\
         <title>{}</title></circle>\n</svg>\n",
        at(e.largest_class()),
        percent(e.largest_class()),
        at(low),
        at(high - low),
        at(e.top1()),
        percent(e.top1())
    )
}

fn facts(report: &Report) -> String {
    let (learning, frozen) = (report.parameters.learning, report.parameters.frozen);
    let all = learning + frozen;
    let share = percent(learning as f64 / all.max(1) as f64);
    let samples = &report.samples;
    let part = |count_of: Option<usize>, name: &str| count_of.map(|n| format!(", {} {name}", count(n)));
    let samples = [
        Some(format!("{} training", count(samples.train))),
        part(samples.valid, "validation"),
        part(samples.test, "test"),
    ];
    let samples: String = samples.into_iter().flatten().collect();
    let kept = report.kept();
    let seconds = report.seconds;
    // The report of a saved predictor has no measurements.
    let timed = (seconds.total > 0.0).then(|| {
        let parts = seconds.to_string();
        let parts = parts.split_once(": ").map_or("", |(_, parts)| parts);
        (duration(seconds.total), format!("Seconds: {parts}"))
    });
    let mut rows = vec![
        ("Kept", "the weights of".to_string(), String::new()),
        ("Parameters trained", count(learning), format!("of {}, {share}", count(all))),
        ("Samples", samples, String::new()),
        ("Seed", report.seed.to_string(), String::new()),
    ];
    let (first, reason) = kept.split_once(": ").unwrap_or((&kept, ""));
    rows[0] = ("Kept", escape(first), escape(reason));
    if report.metric != Metric::Top1 {
        let name = report.metric.name().replace('_', " ");
        rows.insert(1, ("Chosen by", name, "metric of the validation data".into()));
    }
    rows.extend(timed.map(|(total, parts)| ("Time", total, parts)));
    rows.extend(report.peak_rss_mb.map(|peak| ("Peak memory", memory(peak), String::new())));
    rows.extend(report.head_fit.as_ref().map(|fit| ("Head", escape(&fit.to_string()), String::new())));
    rows.extend(report.refit.as_ref().map(|refit| ("Refit", escape(&refit.to_string()), String::new())));
    let row = |(name, value, more): (&str, String, String)| {
        let more = if more.is_empty() { more } else { format!("<small>{more}</small>") };
        format!("<div><dt>{name}</dt><dd>{value}{more}</dd></div>\n")
    };
    rows.into_iter().map(row).collect::<Vec<_>>().concat()
}

/// What a reader should know before believing the figures.
pub(super) fn warnings(report: &Report) -> String {
    let mut texts: Vec<String> = report.stopped.iter().chain(&report.warnings).cloned().collect();
    if let Some(skipped) = report.skipped.filter(|&skipped| skipped > 0) {
        texts.push(format!("{} broken samples were skipped.", count(skipped)));
    }
    for (part, evaluation) in [("validation", &report.valid), ("test", &report.test)] {
        let broken = evaluation.as_ref().map_or(0, |e| e.not_finite);
        if broken > 0 {
            texts.push(format!(
                "The network's output is not finite for {} samples of the {part} data; they count as wrong.",
                count(broken)
            ));
        }
    }
    section("Warnings", &list(&texts, "warnings"))
}

/// The plan in words, and what was set by hand.
pub(super) fn plan(report: &Report) -> String {
    let mut content = list(&report.plan.lines(), "plan");
    if !report.overrides.is_empty() {
        content += "<h3>Set by hand</h3>\n";
        content += &list(&report.overrides, "plan");
    }
    section("Plan", &content)
}

fn list(texts: &[String], class: &str) -> String {
    if texts.is_empty() {
        return String::new();
    }
    let items: Vec<String> = texts.iter().map(|text| format!("<li>{}</li>\n", escape(text))).collect();
    format!("<ul class=\"{class}\">\n{}</ul>\n", items.concat())
}
