//! Texts and numbers of a page.

/// A text from data, as text or as the value of an attribute. Characters that control a terminal or the direction of
/// writing are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The beginning of a text, with dots where it is cut.
pub(super) fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars().take(most.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// `72.2 %`
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}\u{a0}%", 100.0 * share) } else { "\u{2013}".into() }
}

/// `255 242`
pub(super) fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A loss or another value, with four decimals where these tell it.
pub(super) fn figure(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".into(),
        value if value.is_infinite() => if value > 0.0 { "\u{221e}" } else { "\u{2212}\u{221e}" }.into(),
        value if value.abs() >= 1e5 || (value != 0.0 && value.abs() < 1e-4) => format!("{value:.2e}"),
        value => format!("{value:.4}"),
    }
}

/// `4.2 s`, `3 min 20 s`, `2 h 5 min`
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1}\u{a0}s"),
        60..3600 => format!("{}\u{a0}min {}\u{a0}s", whole / 60, whole % 60),
        _ => format!("{}\u{a0}h {}\u{a0}min", whole / 3600, whole % 3600 / 60),
    }
}

/// `517 MB`, `1.9 GB`
pub(super) fn memory(megabytes: f64) -> String {
    if megabytes < 1000.0 { format!("{megabytes:.0}\u{a0}MB") } else { format!("{:.1}\u{a0}GB", megabytes / 1000.0) }
}

/// A horizontal bar, as long as this share of its cell.
pub(super) fn bar(share: f64, class: &str, tooltip: &str) -> String {
    let width = if share.is_finite() { 100.0 * share.clamp(0.0, 1.0) } else { 0.0 };
    format!(
        "<svg class=\"bar\" role=\"img\" aria-label=\"{0}\"><title>{0}</title><rect class=\"track\" width=\"100%\" \
         height=\"100%\"/><rect class=\"{class}\" width=\"{width:.2}%\" height=\"100%\"/></svg>",
        escape(tooltip)
    )
}

/// A section of the page under its title; nothing if it has no content.
pub(super) fn section(title: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{title}</h2>\n{content}</section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_end_what_they_are_in() {
        assert_eq!(escape("<b a=\"1\" c='2'>&amp;"), "&lt;b a=&quot;1&quot; c=&#39;2&#39;&gt;&amp;amp;");
        assert_eq!(escape("a\u{0}b\u{1b}[0m\u{202e}c\n\u{e9}"), "a\u{fffd}b\u{fffd}[0m\u{fffd}c \u{e9}");
        assert!(bar(0.5, "blue", "\"><script>").contains("&quot;&gt;&lt;script&gt;"));
        assert_eq!((cut("abcdef", 4), cut("abcd", 4)), ("abc\u{2026}".to_string(), "abcd".to_string()));
    }

    #[test]
    fn numbers_have_their_units() {
        let plain = |text: String| text.replace(['\u{a0}', '\u{202f}'], " ");
        assert_eq!([0.722, 1.0, f64::NAN].map(percent).map(plain), ["72.2 %", "100.0 %", "\u{2013}"]);
        assert_eq!(
            [0, 999, 1000, 255_242, 1_000_000].map(count).map(plain),
            ["0", "999", "1 000", "255 242", "1 000 000"]
        );
        assert_eq!(
            [0.25, 1e-6, 0.0, 123_456.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(figure),
            ["0.2500", "1.00e-6", "0.0000", "1.23e5", "NaN", "\u{221e}", "\u{2212}\u{221e}"]
        );
        assert_eq!(
            [4.23, 59.7, 200.0, 7500.0].map(duration).map(plain),
            ["4.2 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
        );
        assert_eq!([517.2, 1930.0].map(memory).map(plain), ["517 MB", "1.9 GB"]);
        assert!(bar(f64::NAN, "blue", "").contains("class=\"blue\" width=\"0.00%\""));
    }
}
