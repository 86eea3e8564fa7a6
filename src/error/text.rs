//! Lists and untrusted texts in messages.

use super::{BoxError, Error, Result};

/// `what (count): names`, or nothing for an empty list. The first `most` names are shown.
pub(super) fn listed(what: &str, names: &[String], most: usize) -> String {
    if names.is_empty() {
        return String::new();
    }
    let more = if names.len() > most { ", ..." } else { "" };
    let first: Vec<String> = names.iter().take(most).map(|name| shown(name)).collect();
    format!("{what} ({}): {}{more};", names.len(), first.join(", "))
}

/// An untrusted text, made safe for a message: characters that cannot be printed are escaped, so that it cannot control
/// a terminal, and it is cut off, so that a file cannot flood a log.
pub(crate) fn shown(text: &str) -> String {
    tamed(text, 200)
}

/// The first `most` characters, escaped as in [`shown`].
pub(crate) fn tamed(text: &str, most: usize) -> String {
    let mut chars = text.chars();
    let mut tamed = String::new();
    for c in chars.by_ref().take(most) {
        match c {
            '"' | '\'' | '\\' => tamed.push(c),
            c => tamed.extend(c.escape_debug()),
        }
    }
    if chars.next().is_some() {
        tamed.push_str("...");
    }
    tamed
}

/// The first twenty of several texts, each as [`shown`].
pub(crate) fn shown_list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut texts = texts.into_iter();
    let first: Vec<String> = texts.by_ref().take(SHOWN).map(shown).collect();
    let more = texts.count();
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// The `count` names most similar to `name`, the most similar first.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<String> {
    // Only the start of an untrusted text is compared: a megabyte would take a minute.
    let name = shown(name);
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_by_cached_key(|known| distance(known, &name));
    known.into_iter().take(count).map(String::from).collect()
}

/// The one of `all` that has this name.
///
/// # Errors
/// With the names that there are; `what` is the kind of thing.
pub(crate) fn by_name<T: Copy>(what: &str, name: &str, all: &[T], of: impl Fn(T) -> &'static str) -> Result<T> {
    all.iter().copied().find(|&one| of(one) == name).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|&one| of(one)).collect();
        Error::invalid(what, format!("unknown {what} {}; use one of {}", shown(name), names.join(", ")))
    })
}

/// The edit distance: how many letters must be inserted, deleted or changed (Levenshtein 1966).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

/// How many items of a list a message shows.
pub(super) const SHOWN: usize = 20;

/// The first twenty items of a list, and how many more there are.
pub(super) fn some<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    first_of(items.into_iter().map(|item| item.to_string()).collect(), ", ")
}

pub(super) fn first_of(mut items: Vec<String>, separator: &str) -> String {
    if items.len() > SHOWN {
        let more = format!("and {} more", items.len() - SHOWN);
        items.truncate(SHOWN);
        items.push(more);
    }
    items.join(separator)
}

/// The end of a message that has a cause.
pub(super) fn because(cause: Option<&BoxError>) -> String {
    cause.map_or_else(String::new, |cause| format!(": {}", tamed(&cause.to_string(), 1000)))
}

/// Wraps lines at 80 columns. Continuation lines are indented by two more columns than the line.
pub(crate) fn wrapped(text: &str) -> String {
    const WIDTH: usize = 80;
    let mut out = String::new();
    for line in text.lines() {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        let mut column = 0;
        for word in words.split(' ') {
            let length = word.chars().count();
            if column == 0 {
                out.push_str(&line[..indent]);
                column = indent;
            } else if column + 1 + length > WIDTH {
                out.push('\n');
                out.push_str(&" ".repeat(indent + 2));
                column = indent + 2;
            } else {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += length;
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_wrapped() {
        let long = format!("  {}", ["word"; 30].join(" "));
        let text = wrapped(&format!("{long}\nshort\n"));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(
            lines[0].starts_with("  word") && lines[1].starts_with("    word") && *lines.last().unwrap() == "short"
        );
        assert_eq!(text.split_whitespace().filter(|word| *word == "word").count(), 30);
        let endless = "x".repeat(200);
        assert_eq!(wrapped(&endless), format!("{endless}\n"));
    }
}
