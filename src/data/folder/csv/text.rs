//! The text of a table: its encoding, its delimiter, and its records with their lines.

use crate::error::tamed;
use crate::{Error, Result};
use ::csv::{Reader, ReaderBuilder, StringRecord};
use std::path::{Path, PathBuf};

/// The delimiters that are recognised.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// How many characters of a record or a name a message shows.
const SHOWN: usize = 60;

/// A table in memory.
pub(super) struct Text {
    path: PathBuf,
    content: String,
    delimiter: u8,
}

impl Text {
    /// Reads a file. Without a `delimiter` it is the one that the header has most often; `separator` is none, since it
    /// separates labels.
    pub fn read(path: &Path, delimiter: Option<u8>, separator: Option<char>) -> Result<Self> {
        let invalid = |problem: String| Error::invalid(path.display().to_string(), problem);
        if let Some(delimiter) = delimiter {
            if !delimiter.is_ascii() || b"\"\r\n".contains(&delimiter) {
                let problem = format!("cannot be {:?}; use an ASCII character such as , or ;", char::from(delimiter));
                return Err(Error::invalid("delimiter", problem));
            }
            if separator == Some(char::from(delimiter)) {
                let problem = format!("cannot be {:?}, which also separates labels", char::from(delimiter));
                return Err(Error::invalid("delimiter", problem));
            }
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let content = decoded(bytes).map_err(&invalid)?;
        let delimiter = match delimiter {
            Some(delimiter) => delimiter,
            None => found_delimiter(&content, separator).map_err(&invalid)?,
        };
        Ok(Self { path: path.to_path_buf(), content, delimiter })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The records, the header first.
    pub fn records(&self) -> Records<'_> {
        let mut reader = ReaderBuilder::new();
        reader.has_headers(false).flexible(true).delimiter(self.delimiter);
        Records {
            table: self,
            reader: reader.from_reader(self.content.as_bytes()),
            record: StringRecord::new(),
            lines: Lines::default(),
            width: None,
        }
    }

    /// The error for something at a line.
    pub fn invalid(&self, line: usize, problem: impl Into<String>) -> Error {
        Error::invalid(format!("{}, line {line}", self.path.display()), problem)
    }
}

/// The records of a table, each with the line where it begins.
pub(super) struct Records<'a> {
    table: &'a Text,
    reader: Reader<&'a [u8]>,
    record: StringRecord,
    lines: Lines,
    /// How many fields the header has.
    width: Option<usize>,
}

impl Records<'_> {
    /// The next record with its line, from 1, as an editor counts. Empty lines are skipped.
    ///
    /// # Errors
    /// If quotes are wrong, or it has more or fewer fields than the header.
    pub fn next(&mut self) -> Result<Option<(usize, &StringRecord)>> {
        let table = self.table;
        let start = self.reader.position().byte() as usize;
        let read = self.reader.read_record(&mut self.record);
        let found = read.map_err(|error| table.invalid(self.lines.line(), error.to_string()))?;
        if !found {
            return Ok(None);
        }
        let raw = table.content.get(start..self.reader.position().byte() as usize).unwrap_or_default();
        let content = raw.trim_start_matches(['\r', '\n']);
        self.lines.pass(&raw[..raw.len() - content.len()]);
        let line = self.lines.line();
        if let Some(problem) = wrong_quotes(content.as_bytes(), table.delimiter) {
            let start = tamed(content, SHOWN);
            return Err(table.invalid(line, format!("{problem}; within quotes, a quote is doubled (\"\"): {start}")));
        }
        self.lines.pass(content);
        let (width, found) = (*self.width.get_or_insert(self.record.len()), self.record.len());
        if found != width {
            let delimiter = char::from(table.delimiter);
            let problem = format!(
                "has {found} fields, and the header has {width}; put quotes around a field that holds the delimiter \
                 {delimiter:?}, or set another one with `delimiter`: {}",
                tamed(content.trim_end(), SHOWN)
            );
            return Err(table.invalid(line, problem));
        }
        Ok(Some((line, &self.record)))
    }
}

/// Counts lines, which end with "\n", "\r\n" or "\r".
#[derive(Default)]
struct Lines {
    ended: usize,
    after_return: bool,
}

impl Lines {
    fn pass(&mut self, text: &str) {
        for byte in text.bytes() {
            self.ended += usize::from(byte == b'\r' || (byte == b'\n' && !self.after_return));
            self.after_return = byte == b'\r';
        }
    }

    /// The line of what comes next, from 1.
    fn line(&self) -> usize {
        self.ended + 1
    }
}

/// The text of a file in UTF-8, without its byte order mark.
fn decoded(mut bytes: Vec<u8>) -> Result<String, String> {
    let save = "save the table as UTF-8 text (in Excel: \"CSV UTF-8\")";
    if bytes.starts_with(b"PK\x03\x04") {
        return Err(format!("is a spreadsheet or another archive; {save}"));
    }
    if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") || bytes.contains(&0) {
        return Err(format!("is UTF-16, or no text; {save}"));
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let mut lines = Lines::default();
        lines.pass(&before);
        format!("line {} is not UTF-8, but perhaps Latin-1; {save}", lines.line())
    })
}

/// The delimiter of a table: of the known ones that which the header has most often.
fn found_delimiter(text: &str, separator: Option<char>) -> Result<u8, String> {
    let (mut counts, mut quoted) = ([0usize; DELIMITERS.len()], false);
    for byte in text.trim_start_matches(['\r', '\n']).bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b'\r' | b'\n' if !quoted => break,
            _ if quoted || separator == Some(char::from(byte)) => {}
            _ => counts.iter_mut().zip(DELIMITERS).filter(|(_, d)| *d == byte).for_each(|(count, _)| *count += 1),
        }
    }
    let most = counts.iter().copied().max().unwrap_or(0);
    let found: Vec<u8> =
        DELIMITERS.into_iter().zip(counts).filter(|(_, count)| *count == most).map(|(d, _)| d).collect();
    match found.as_slice() {
        _ if most == 0 => Ok(b','),
        [one] => Ok(*one),
        several => {
            let several: Vec<String> = several.iter().map(|&d| format!("{:?}", char::from(d))).collect();
            Err(format!("the delimiter may be {}; choose one with `delimiter`", several.join(" or ")))
        }
    }
}

/// What is wrong with the quotes of a record. The reader takes any, and a quote that is not closed would swallow the
/// rows after it.
fn wrong_quotes(record: &[u8], delimiter: u8) -> Option<&'static str> {
    #[derive(PartialEq)]
    enum At {
        Start,
        Plain,
        Quoted,
        Quote,
    }
    let mut at = At::Start;
    for &byte in record {
        at = match (at, byte) {
            (At::Quoted, b'"') => At::Quote,
            (At::Start | At::Quote, b'"') | (At::Quoted, _) => At::Quoted,
            (_, byte) if byte == delimiter => At::Start,
            (At::Quote, b'\r' | b'\n') => At::Plain,
            (At::Quote, _) => return Some("text follows a closing quote, or the quote before it is not closed"),
            _ => At::Plain,
        };
    }
    (at == At::Quoted).then_some("a quote is not closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line and the fields of each record.
    fn read(text: &str) -> Result<Vec<(usize, String)>> {
        let delimiter = found_delimiter(text, None).unwrap();
        let text = Text { path: "t.csv".into(), content: text.into(), delimiter };
        let (mut records, mut all) = (text.records(), vec![]);
        while let Some((line, record)) = records.next()? {
            all.push((line, record.iter().collect::<Vec<_>>().join("/")));
        }
        Ok(all)
    }

    #[test]
    fn lines_are_those_of_an_editor() {
        for end in ["\n", "\r\n", "\r"] {
            for last in ["", end] {
                let lines = ["", "a,b", "1,2", "", "\"x", "y\",3", "4,\"5,\"\"\"", "", "", "6,7"];
                let expected = [(2, "a/b"), (3, "1/2"), (5, "x\ny/3"), (7, "4/5,\""), (10, "6/7")];
                let expected = expected.map(|(line, text)| (line, text.replace('\n', end)));
                assert_eq!(read(&(lines.join(end) + last)).unwrap(), expected, "{end:?}");
            }
        }
    }

    #[test]
    fn wrong_quotes_and_widths_are_named_with_their_line() {
        for (text, line, problem) in [
            ("a,b\n1,2\n3,\"red\n4,blue\n", 3, "not closed"),
            ("a,b\n1,2\n3,\"red\n4,\"blue\n5,6\n", 3, "closing quote"),
            ("a,b\r\n\r\n1,2,3\r\n", 3, "has 3 fields, and the header has 2"),
            ("a;b\n1;2\n3\n", 3, "';'"),
        ] {
            let text = read(text).unwrap_err().to_string();
            assert!(text.starts_with(&format!("t.csv, line {line}: ")) && text.contains(problem), "{text}");
        }
        // A quote within a field is a character.
        assert_eq!(read("a,b\n5\" nail,x\n").unwrap()[1], (2, "5\" nail/x".into()));
    }

    #[test]
    fn the_header_shows_the_delimiter() {
        for (text, expected) in
            [("a,b;c,d", b','), ("a;b", b';'), ("\"a,b,c\"\tb\n,,,,", b'\t'), ("a|b", b'|'), ("a", b',')]
        {
            assert_eq!(found_delimiter(text, None), Ok(expected), "{text}");
        }
        assert_eq!(found_delimiter("a|b|c,d", Some('|')), Ok(b','));
        let text = found_delimiter("a,b;c", None).unwrap_err();
        assert!(text.contains("','") && text.contains("';'") && text.contains("`delimiter`"), "{text}");
    }
}
