//! The rows of a table: which image has which labels, in which part and group.

use super::columns::{Columns, LabelColumns};
use super::images::{Images, Miss};
use super::names::Names;
use super::text::{Records, Text};
use crate::data::folder::file::Label;
use crate::data::folder::part::{Part, parts};
use crate::error::{shown, shown_list};
use crate::{Error, Result};
use ::csv::StringRecord;
use std::collections::{BTreeMap, BTreeSet};

/// How many rows without an image are listed; all are counted.
const MISSING_SHOWN: usize = 10;

/// The most values of a split column: more are no parts.
const MOST_SPLITS: usize = 50;

/// A row, with its cells understood.
pub(super) struct Row {
    /// Its index in the images.
    pub image: usize,
    pub label: Label,
    pub group: Option<u32>,
    /// `None` if there is no split column.
    pub part: Option<Part>,
}

/// All rows.
pub(super) struct Rows {
    /// The classes, in the order of their ids.
    pub classes: Vec<String>,
    pub list: Vec<Row>,
    /// How many images no row names.
    pub unlisted: usize,
    /// Groups in several parts.
    pub torn: usize,
}

/// Reads the records after the header.
struct Reading<'a> {
    text: &'a Text,
    header: &'a [String],
    columns: &'a Columns,
    images: &'a Images,
    classes: Names,
    groups: Names,
    splits: Names,
    /// The split of each row, as an index into `splits`.
    split_of: Vec<u32>,
    /// Groups in several parts.
    torn: usize,
    rows: Vec<Row>,
    /// For each image the line of its row, or 0.
    lines: Vec<usize>,
    /// The first rows without an image.
    missing: Vec<String>,
    missing_count: usize,
}

/// Reads all rows. `records` are those after the header.
pub(super) fn read(
    text: &Text,
    records: &mut Records,
    header: &[String],
    columns: &Columns,
    images: &Images,
) -> Result<Rows> {
    let mut reading = Reading {
        text,
        header,
        columns,
        images,
        classes: Names::default(),
        groups: Names::default(),
        splits: Names::default(),
        split_of: Vec::new(),
        torn: 0,
        rows: Vec::new(),
        lines: vec![0; images.files.len()],
        missing: Vec::new(),
        missing_count: 0,
    };
    if let LabelColumns::Flags(flags) = &columns.label {
        for &column in flags {
            reading.classes.id(&header[column]);
        }
    }
    while let Some((line, record)) = records.next()? {
        reading.row(line, record)?;
    }
    reading.end()
}

impl Reading<'_> {
    fn row(&mut self, line: usize, record: &StringRecord) -> Result<()> {
        let cell = |column: usize| record.get(column).unwrap_or_default().trim();
        let name = cell(self.columns.file);
        if name.is_empty() {
            return Err(self.empty(line, "file", self.columns.file));
        }
        let label = self.label(line, cell)?;
        let Some(image) = self.image(line, name)? else { return Ok(()) };
        let group = self.columns.group.map(cell).filter(|group| !group.is_empty()).map(|group| self.groups.id(group));
        if let Some(column) = self.columns.split {
            self.split_of.push(self.splits.id(cell(column)));
            if self.splits.len() > MOST_SPLITS {
                return Err(self.unknown_splits(self.splits.iter().collect()));
            }
        }
        self.rows.push(Row { image, label, group, part: None });
        Ok(())
    }

    /// The labels of a row.
    fn label<'c>(&mut self, line: usize, cell: impl Fn(usize) -> &'c str) -> Result<Label> {
        Ok(match &self.columns.label {
            LabelColumns::Class(column) => match cell(*column) {
                "" => return Err(self.empty(line, "label", *column)),
                label => Label::Class(self.classes.id(label)),
            },
            LabelColumns::List(column, separator) => {
                let labels = cell(*column).split(*separator).map(str::trim).filter(|label| !label.is_empty());
                let mut labels: Vec<u32> = labels.map(|label| self.classes.id(label)).collect();
                labels.sort_unstable();
                labels.dedup();
                Label::Labels(labels.into())
            }
            LabelColumns::Flags(columns) => {
                let mut labels = Vec::new();
                for (&column, class) in columns.iter().zip(0..) {
                    match flag(cell(column)) {
                        Some(true) => labels.push(class),
                        Some(false) => {}
                        None => {
                            let (name, found) = (shown(&self.header[column]), shown(cell(column)));
                            let problem =
                                format!("the column {name} has {found:?}; use 0 or 1, true or false, yes or no");
                            return Err(self.text.invalid(line, problem));
                        }
                    }
                }
                Label::Labels(labels.into())
            }
        })
    }

    /// The image of a row; `None` if there is no such file, which is told after all rows are read.
    fn image(&mut self, line: usize, name: &str) -> Result<Option<usize>> {
        let path = |image: usize| self.images.files[image].path.display();
        match self.images.find(name) {
            Ok(image) => match std::mem::replace(&mut self.lines[image], line) {
                0 => Ok(Some(image)),
                first => {
                    let problem = format!(
                        "{} is the image of line {first} too. Remove one of them; if an image has several labels, list \
                         them in one row (`separator`, `--label-separator`) or give each a column (`labels`, \
                         `--label-columns`)",
                        path(image)
                    );
                    Err(self.text.invalid(line, problem))
                }
            },
            Err(Miss::Outside) => {
                let problem =
                    format!("the file {} is not below the folder of the images; use a relative path", shown(name));
                Err(self.text.invalid(line, problem))
            }
            Err(Miss::Ambiguous(one, other)) => {
                let (name, one, other) = (shown(name), path(one), path(other));
                let problem =
                    format!("the file {name} may be {one} or {other}; use the path in the folder of the images");
                Err(self.text.invalid(line, problem))
            }
            Err(Miss::Absent(elsewhere)) => {
                self.missing_count += 1;
                if self.missing.len() < MISSING_SHOWN {
                    let hint = elsewhere.map_or_else(String::new, |image| format!(" (but there is {})", path(image)));
                    self.missing.push(format!("line {line}: {}{hint}", shown(name)));
                }
                Ok(None)
            }
        }
    }

    fn end(mut self) -> Result<Rows> {
        if self.missing_count > 0 {
            let more = self.missing_count - self.missing.len();
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let problem = format!(
                "{} rows name no image in the folder of the images, which `images` sets (`--images`): {}{more}",
                self.missing_count,
                self.missing.join(", ")
            );
            return Err(self.invalid(problem));
        }
        if self.rows.is_empty() {
            return Err(self.invalid("there are no rows below the header".into()));
        }
        self.assign_parts()?;
        let is_unlisted = |(image, line): &(usize, &usize)| **line == 0 && !self.images.files[*image].is_document;
        let unlisted = self.lines.iter().enumerate().filter(is_unlisted).count();
        if matches!(self.columns.label, LabelColumns::Flags(_)) {
            return Ok(Rows {
                classes: self.classes.iter().map(String::from).collect(),
                list: self.rows,
                unlisted,
                torn: self.torn,
            });
        }
        let (classes, ids) = self.classes.sorted().map_err(|problem| self.invalid(problem))?;
        self.rows.iter_mut().for_each(|row| row.label = row.label.renumbered(&ids));
        Ok(Rows { classes, list: self.rows, unlisted, torn: self.torn })
    }

    /// Gives each row the part that its split means.
    fn assign_parts(&mut self) -> Result<()> {
        let values: Vec<&str> = self.splits.iter().collect();
        let found = parts(&values);
        let unknown: Vec<&str> =
            values.iter().zip(&found).filter(|(_, part)| part.is_none()).map(|(v, _)| *v).collect();
        if !unknown.is_empty() {
            return Err(self.unknown_splits(unknown));
        }
        // "Train" and "train" are one; "val" and "dev" may be two.
        let mut spelled: BTreeMap<Part, &str> = BTreeMap::new();
        for (part, value) in found.iter().flatten().zip(&values) {
            let first = *spelled.entry(*part).or_insert(value);
            if first.to_lowercase() != value.to_lowercase() {
                let (part, one, other) = (part.name(), shown(first), shown(value));
                let problem = format!("the splits {one} and {other} both mean {part}; use one word for a part");
                return Err(self.invalid(problem));
            }
        }
        let mut part_of_group: Vec<Option<Part>> = vec![None; self.groups.len()];
        let mut torn = BTreeSet::new();
        for (row, &split) in self.rows.iter_mut().zip(&self.split_of) {
            row.part = found[split as usize];
            if let Some(group) = row.group {
                let part = part_of_group[group as usize].get_or_insert(found[split as usize].unwrap_or(Part::Train));
                torn.extend((Some(*part) != row.part).then_some(group));
            }
        }
        if let Some(group) = torn.first().and_then(|&group| self.groups.iter().nth(group as usize)) {
            let table = self.text.path().display();
            tracing::warn!(%table, count = torn.len(), first = shown(group), "the table has groups in several parts");
        }
        self.torn = torn.len();
        Ok(())
    }

    fn invalid(&self, problem: String) -> Error {
        Error::invalid(self.text.path().display().to_string(), problem)
    }

    fn empty(&self, line: usize, what: &str, column: usize) -> Error {
        let name = shown(&self.header[column]);
        let lists =
            if what == "label" { ", or read lists of labels with `separator` (`--label-separator`)" } else { "" };
        self.text.invalid(line, format!("the {what} is empty (column {name}); fill it in or remove the row{lists}"))
    }

    fn unknown_splits(&self, values: Vec<&str>) -> Error {
        let name = self.columns.split.map_or_else(String::new, |column| shown(&self.header[column]));
        let values = shown_list(values.into_iter().map(|value| if value.is_empty() { "(empty)" } else { value }));
        self.invalid(format!(
            "the column {name} has values that name no part: {values}; use train, valid and test, name another column with \
             `split` (`--split-column`), or leave it out with `ignore` (`--ignore-columns`) if it does not divide the data"
        ))
    }
}

/// Whether a cell says yes; `None` if it says neither.
fn flag(cell: &str) -> Option<bool> {
    let is = |words: [&str; 4]| words.iter().any(|word| cell.eq_ignore_ascii_case(word));
    if is(["1", "1.0", "true", "yes"]) {
        return Some(true);
    }
    (cell.is_empty() || is(["0", "0.0", "false", "no"])).then_some(false)
}
