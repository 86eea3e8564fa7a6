//! The tables of the documentation.

use super::block::Recorded;
use super::row::Row;
use crate::error::Result;
use std::fmt::Write as _;

/// The capabilities of each family, and the facts of each network.
pub(super) fn of(rows: &[&'static Row]) -> Result<String> {
    let mut text = String::from(
        "| networks | features | train everything | `First(k)` | batch statistics | notes |\n|---|---|---|---|---|---|\n",
    );
    for family in rows.chunk_by(|a, b| a.family.name == b.family.name) {
        let Some(row) = family.first() else { continue };
        let (facts, norms) = (row.family, Recorded::known(row)?.has_batch_norms());
        let learns = facts.cut.map_or("yes".to_string(), |why| format!("no: {why}"));
        let statistics = if norms { "no: its batch norms have fixed statistics" } else { "it has no batch norms" };
        line(&mut text, &[facts.name, facts.features, &learns, "no: one block", statistics, facts.note]);
    }
    text.push_str("\n| network | family | weights | parameters | features | image |\n|---|---|---|---|---|---|\n");
    for row in rows {
        let (hub, dim, spec) = (format!("`{}`", row.hub), row.feature_dim.to_string(), (row.spec)());
        let millions = format!("{:.1} M", Recorded::known(row)?.parameters() as f64 / 1e6);
        let size = format!("{} x {}", spec.size.0, spec.size.1);
        line(&mut text, &[&format!("`{}`", row.name), row.family.name, &hub, &millions, &dim, &size]);
    }
    Ok(text)
}

fn line(text: &mut String, cells: &[&str]) {
    // Writing into a String cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
