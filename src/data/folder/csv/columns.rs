//! The columns of a table that are read.

use crate::error::{shown, shown_list};
use crate::{Error, Result};

/// Usual names of a column, in small letters and digits alone: `Image_ID` is `imageid`.
struct Role {
    what: &'static str,
    /// The setter and the examples' option.
    setter: &'static str,
    names: &'static [&'static str],
}

const FILE: Role = Role {
    what: "file",
    setter: "`file` (`--file-column`)",
    names: &[
        "file",
        "filename",
        "filepath",
        "image",
        "imagefile",
        "imagefilename",
        "imagename",
        "imageid",
        "imagepath",
        "img",
        "imgname",
        "imgid",
        "imgpath",
        "photo",
        "photoid",
        "picture",
        "path",
        "id",
        "idcode",
    ],
};

const LABEL: Role = Role {
    what: "label",
    setter: "`label` (`--label-column`)",
    names: &[
        "label",
        "labels",
        "labelname",
        "class",
        "classes",
        "classname",
        "category",
        "categories",
        "categoryname",
        "target",
        "species",
        "breed",
        "diagnosis",
        "tag",
        "tags",
    ],
};

const SPLIT: Role = Role {
    what: "split",
    setter: "`split` (`--split-column`)",
    names: &["split", "part", "partition", "set", "subset"],
};

const GROUP: Role = Role {
    what: "group",
    setter: "`group` (`--group-column`)",
    names: &["group", "groupid", "patient", "patientid", "subject", "subjectid", "video", "videoid"],
};

/// The names of columns that were asked for, in composed Unicode as the header's, and how labels are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    pub file: Option<String>,
    pub label: Option<String>,
    pub labels: Option<Vec<String>>,
    pub separator: Option<char>,
    pub split: Option<String>,
    pub group: Option<String>,
    /// Columns that have no meaning, whatever they are called.
    pub ignored: Vec<String>,
}

/// The columns that are read, by index.
pub(super) struct Columns {
    pub file: usize,
    pub label: LabelColumns,
    pub split: Option<usize>,
    pub group: Option<usize>,
}

/// Where the labels are.
pub(super) enum LabelColumns {
    /// One class per row.
    Class(usize),
    /// Labels in a list, with what separates them.
    List(usize, char),
    /// A column of yes and no for each class.
    Flags(Vec<usize>),
}

impl Columns {
    /// Finds the columns in a header of trimmed names. `table` is its name in an error.
    pub fn find(header: &[String], wanted: &Wanted, table: &str) -> Result<Self> {
        let finder = Finder { header, table };
        let Wanted { file, label, labels, separator, split, group, ignored } = wanted;
        if labels.is_some() && (label.is_some() || separator.is_some()) {
            let problem = "names columns of 0 and 1, so neither `label` nor `separator` has a meaning; set one of them";
            return Err(Error::invalid("labels", problem));
        }
        if labels.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid("labels", "no columns are named"));
        }
        // A column that was asked for by name has no second meaning.
        let one = [file, label, split, group].into_iter().flatten();
        let named: Vec<&String> = one.chain(labels.iter().flatten()).chain(ignored).collect();
        for name in ignored {
            finder.named(name, "`ignore` (`--ignore-columns`)")?;
        }
        let mut sorted = named.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(finder.invalid(format!("the column {} cannot be used twice", shown(pair[0]))));
        }
        let file = finder.needed(&FILE, file.as_ref(), &named)?;
        let label = match (labels, separator) {
            (Some(labels), _) => {
                let indices = labels.iter().map(|name| finder.named(name, "`labels` (`--label-columns`)"));
                LabelColumns::Flags(indices.collect::<Result<_>>()?)
            }
            (None, Some(separator)) => LabelColumns::List(finder.needed(&LABEL, label.as_ref(), &named)?, *separator),
            (None, None) => LabelColumns::Class(finder.needed(&LABEL, label.as_ref(), &named)?),
        };
        let split = finder.find(&SPLIT, split.as_ref(), &named)?;
        let group = finder.find(&GROUP, group.as_ref(), &named)?;
        Ok(Self { file, label, split, group })
    }

    /// The columns as words: `image_id, breed, parts by fold, groups by patient`.
    pub fn words(&self, header: &[String]) -> String {
        let name = |&column: &usize| shown(&header[column]);
        let labels = match &self.label {
            LabelColumns::Class(column) => name(column),
            LabelColumns::List(column, separator) => format!("{} separated by {separator:?}", name(column)),
            LabelColumns::Flags(columns) => shown_list(columns.iter().map(|&column| header[column].as_str())),
        };
        let mut words = format!("files by {}, labels by {labels}", name(&self.file));
        for (what, column) in [("parts", &self.split), ("groups", &self.group)] {
            words.extend(column.iter().map(|column| format!(", {what} by {}", name(column))));
        }
        words
    }
}

struct Finder<'a> {
    header: &'a [String],
    table: &'a str,
}

impl Finder<'_> {
    fn invalid(&self, problem: String) -> Error {
        let columns = shown_list(self.header.iter().map(String::as_str));
        Error::invalid(self.table, format!("{problem}; its columns are: {columns}"))
    }

    /// The column that must be there.
    fn needed(&self, role: &Role, name: Option<&String>, named: &[&String]) -> Result<usize> {
        self.find(role, name, named)?.ok_or_else(|| {
            let Role { what, setter, names } = role;
            let or = if *what == "label" { ", or columns of 0 and 1 with `labels` (`--label-columns`)" } else { "" };
            let usual = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
            let problem = format!("no column has a usual name for the {what} ({usual} ...); name it with {setter}{or}");
            self.invalid(problem)
        })
    }

    /// The column of this name, or the one that has a usual name and no other meaning.
    fn find(&self, role: &Role, name: Option<&String>, named: &[&String]) -> Result<Option<usize>> {
        if let Some(name) = name {
            return self.named(name, role.setter).map(Some);
        }
        let usual = |name: &String| role.names.contains(&letters(name).as_str()) && !named.contains(&name);
        let found: Vec<usize> = (0..self.header.len()).filter(|&column| usual(&self.header[column])).collect();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            several => {
                let names = shown_list(several.iter().map(|&column| self.header[column].as_str()));
                let Role { what, setter, .. } = role;
                Err(self.invalid(format!("several columns may be the {what}: {names}; choose one with {setter}")))
            }
        }
    }

    /// The column of this name.
    fn named(&self, name: &str, setter: &str) -> Result<usize> {
        let mut found = self.header.iter().enumerate().filter(|(_, column)| *column == name).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(self.invalid(format!("there is no column {}, which {setter} names", shown(name)))),
            (Some(_), Some(_)) => Err(self.invalid(format!("two columns are called {}; rename one", shown(name)))),
        }
    }
}

/// The letters and digits of a name, in lower case.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}
