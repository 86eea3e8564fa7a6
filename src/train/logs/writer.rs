//! A log whose failures do not end the run.

use std::io::Write;

/// Writes lines, each at once, so that a run that is killed leaves all of them.
pub(super) struct LineWriter<W> {
    out: W,
    /// Whether the last line could not be written, or only a part of it.
    torn: bool,
    warned: bool,
}

impl<W: Write> LineWriter<W> {
    pub fn new(out: W) -> Self {
        Self { out, torn: false, warned: false }
    }

    /// Writes a line. One that cannot be written is dropped, with a warning the first time: a full disk is no reason to
    /// lose the training.
    pub fn line(&mut self, line: &str) {
        // After a torn line the next one starts on a line of its own.
        let text = format!("{}{line}\n", if self.torn { "\n" } else { "" });
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        self.torn = written.is_err();
        if let Err(error) = written {
            warn_once(&mut self.warned, &error);
        }
    }
}

/// Warns the first time that a log cannot be written.
pub(super) fn warn_once(warned: &mut bool, error: &dyn std::fmt::Display) {
    if !std::mem::replace(warned, true) {
        tracing::warn!(
            "a log of the run cannot be written: {error}; the run continues, and the log lacks what is lost"
        );
    }
}
