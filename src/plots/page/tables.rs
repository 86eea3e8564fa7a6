//! The tables of epochs and of parameters, collapsed.

use super::markup::{count, escape, figure, percent};
use crate::metrics::Metric;
use crate::report::{EpochReport, Report};

/// A row per epoch.
pub(super) fn epochs(report: &Report) -> String {
    if report.epochs.is_empty() {
        return String::new();
    }
    let open = !matches!(report.metric, Metric::Top1 | Metric::Loss);
    let averages = report.epochs.iter().any(|epoch| epoch.averaged.is_some());
    let dash = || "\u{2013}".to_string();
    let share = |value: Option<f64>| value.map_or_else(dash, percent);
    let value = |value: Option<f64>| value.map_or_else(dash, figure);
    let row = |(i, epoch): (usize, &EpochReport)| {
        let kept = report.best_epoch == Some(i + 1);
        let averaged = epoch.averaged.filter(|_| averages);
        let averaged =
            averaged.map_or_else(String::new, |a| format!("<td>{}</td><td>{}</td>", figure(a.loss), percent(a.top1)));
        let averaged = if averages && averaged.is_empty() { "<td></td><td></td>".into() } else { averaged };
        let metric = if open { format!("<td>{}</td>", value(epoch.valid_metric)) } else { String::new() };
        format!(
            "<tr{}><td>{}</td><td>{}</td><td>{:.2e}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{metric}{averaged}<td>{:.2}\
             </td><td>{:.1}</td><td class=\"kept-text\">{}</td></tr>\n",
            if kept { " class=\"kept-row\"" } else { "" },
            epoch.phase,
            epoch.epoch,
            epoch.lr,
            figure(epoch.train_loss),
            share(epoch.train_top1),
            value(epoch.valid_loss),
            share(epoch.valid_top1),
            epoch.gradient_norm,
            epoch.seconds,
            match (kept, report.averaged) {
                (true, true) => "kept, averaged",
                (true, false) => "kept",
                _ => "",
            }
        )
    };
    let rows: Vec<String> = report.epochs.iter().enumerate().map(row).collect();
    let of_averages = if averages { "<th>Averaged loss</th><th>Averaged acc.</th>" } else { "" };
    let metric =
        if open { format!("<th>Valid {}</th>", report.metric.name().replace('_', " ")) } else { String::new() };
    format!(
        "<details><summary>Table of the epochs ({})</summary>\n<div class=\"scroll\"><table class=\"epochs\">\n<thead><tr>\
         <th>Phase</th><th>Epoch</th><th>Rate</th><th>Train loss</th><th>Train acc.</th><th>Valid loss</th><th>Valid \
         acc.</th>{metric}{of_averages}<th>Gradient</th><th>Seconds</th><th></th></tr></thead>\n<tbody>\n{}</tbody></table></div>\n\
         </details>\n",
        count(report.epochs.len()),
        rows.concat()
    )
}

/// A row per stage.
pub(super) fn parameters(report: &Report) -> String {
    let stages = &report.parameters.stages;
    if stages.is_empty() {
        return String::new();
    }
    let row = |name: &str, learning: usize, frozen: usize| {
        let (name, learning, frozen) = (escape(name), count(learning), count(frozen));
        format!("<tr><td class=\"name\">{name}</td><td>{learning}</td><td>{frozen}</td></tr>\n")
    };
    let mut rows: Vec<String> = stages.iter().map(|stage| row(&stage.name, stage.learning, stage.frozen)).collect();
    rows.push(row("all", report.parameters.learning, report.parameters.frozen));
    format!(
        "<details><summary>Parameters of each stage in the last phase</summary>\n<table class=\"parameters\">\n<thead><tr>\
         <th class=\"name\">Stage</th><th>Trainable</th><th>Frozen</th></tr></thead>\n<tbody>\n{}</tbody></table>\n\
         </details>\n",
        rows.concat()
    )
}
