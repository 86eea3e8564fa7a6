//! Images that a table (CSV) describes: a row per image, with its labels.

mod columns;
mod images;
mod names;
mod rows;
mod text;

use super::file::{File, Origin};
use super::part::Part;
use super::splits::{self, Splits};
use super::tree::nfc;
use super::{ImageFolder, decode};
use crate::data::Dataset;
use crate::{Error, Result};
use columns::{Columns, LabelColumns, Wanted};
use images::Images;
use rows::{Row, Rows};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use text::Text;

/// Options for opening the images of a table (CSV), made by [`ImageFolder::csv`]: a row per image, with its file and its
/// label or labels, and perhaps its part and its group.
///
/// - **Columns** are found by their usual names, in upper or lower case: `file`, `filename`, `image`, `image_id`, `path`,
///   `id` ...; `label`, `class`, `category`, `target`, `species`, `breed` ...; `split`, `part`, `set`, `subset`; `group`,
///   `patient`, `subject`, `video`, these with `_id` as well. If several columns fit, or none, set it by name.
///   Columns that have such a name but another meaning can be ignored ([`ignore`](Self::ignore)).
/// - **Files** are paths relative to the folder of the images ([`images`](Self::images)), with either slash. Otherwise
///   the path's end decides: `3.png` is the only image of that name at any depth, and `0a1b` the only one of that name
///   with an extension.
/// - **Labels** are one class per row; a list in one column ([`separator`](Self::separator)); or a column of 0 and 1 for
///   each class ([`labels`](Self::labels)). Lists and columns make targets of several labels
///   ([`Target::Labels`](crate::Target::Labels)), which may be none. Classes are sorted, as numbers if all are numbers,
///   so that the labels 0 to 11 are the class ids. Names are in composed Unicode (NFC).
/// - **Parts**, where there is a split column, have the names that [`ImageFolder`] knows: `train`, `val`, `Test` ... A
///   group is never split where valid is cut off train, but a split column may tear one ([`Splits::torn_groups`]).
/// - **The file** is UTF-8, with or without a byte order mark. Fields are separated by the one of comma, semicolon, tab
///   and `|` that the header has most often, and quoted as RFC 4180 says. Lines end with LF, CRLF or CR.
/// - **No row is skipped**: a file that is not there, an empty file or label, two rows for one image, a wrong number of
///   fields and wrong quotes are errors with the row's line. Images without a row are counted ([`Splits::unlisted`]).
///
/// ```no_run
/// use candle_finetune::{Dataset, ImageFolder};
///
/// // image_id,breed,dog
/// // 0a1b,beagle,17
/// let dogs = ImageFolder::csv().images("dogs/images").label("breed").group("dog").splits("dogs/labels.csv", 42)?;
/// println!("{dogs}");
///
/// // file,colours
/// // shirts/1.jpg,red|blue
/// let colours = ImageFolder::csv().separator('|').label("colours").open("shirts.csv")?;
/// println!("{:?}", colours.info(0).target); // Labels([0, 1])
///
/// // file,red,blue
/// // shirts/1.jpg,1,1
/// let colours = ImageFolder::csv().labels(["red", "blue"]).open("colours.csv")?;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct CsvOptions {
    images: Option<PathBuf>,
    wanted: Wanted,
    delimiter: Option<u8>,
    max_pixels: Option<u64>,
    skip_broken: bool,
}

/// A table with the images that it names.
struct Table {
    images: Images,
    rows: Rows,
    /// The folder of the images.
    root: PathBuf,
    origin: Arc<Origin>,
    /// Whether there is a split column.
    has_parts: bool,
    /// Whether each class is a column.
    has_flags: bool,
}

impl CsvOptions {
    /// Sets the folder of the images. The default is the folder of the table.
    pub fn images(mut self, folder: impl Into<PathBuf>) -> Self {
        self.images = Some(folder.into());
        self
    }

    /// Sets the column of the image files, by its name.
    pub fn file(mut self, column: impl Into<String>) -> Self {
        self.wanted.file = Some(nfc(&column.into()));
        self
    }

    /// Sets the column of the labels, by its name.
    pub fn label(mut self, column: impl Into<String>) -> Self {
        self.wanted.label = Some(nfc(&column.into()));
        self
    }

    /// Sets columns that each say whether an image has a label, by their names, which become the classes in this order.
    /// Cells hold 0 or 1, true or false, yes or no; an empty one is 0.
    pub fn labels(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.wanted.labels = Some(columns.into_iter().map(|column| nfc(&column.into())).collect());
        self
    }

    /// Sets what separates the labels of an image in its label column, which then is a list: `red|blue`. An empty list is
    /// an image without labels.
    pub fn separator(mut self, separator: char) -> Self {
        self.wanted.separator = Some(separator);
        self
    }

    /// Sets the column that says which part an image belongs to, by its name.
    pub fn split(mut self, column: impl Into<String>) -> Self {
        self.wanted.split = Some(nfc(&column.into()));
        self
    }

    /// Sets the column of the groups, say patients or videos, by its name: a valid that is cut off train shares no group
    /// with it. An image with an empty cell is in no group.
    pub fn group(mut self, column: impl Into<String>) -> Self {
        self.wanted.group = Some(nfc(&column.into()));
        self
    }

    /// Sets columns to ignore, by their names: a `set` that does not divide the data, or a `video` whose images may be in
    /// train and in valid.
    ///
    /// ```
    /// use candle_finetune::ImageFolder;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # std::fs::write(dir.path().join("a.png"), [0]).unwrap();
    /// # std::fs::write(dir.path().join("b.png"), [0]).unwrap();
    /// # let table = dir.path().join("labels.csv");
    /// # std::fs::write(&table, "file,label,set\na.png,cat,summer\nb.png,dog,winter\n").unwrap();
    /// assert!(ImageFolder::csv().open(&table).is_err()); // "summer" and "winter" are no parts
    /// assert_eq!(ImageFolder::csv().ignore(["set"]).open(&table)?.len(), 2);
    /// # use candle_finetune::Dataset;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn ignore(mut self, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.wanted.ignored = columns.into_iter().map(|column| nfc(&column.into())).collect();
        self
    }

    /// Sets the character between fields: `b';'`. By default the header shows it.
    pub fn delimiter(mut self, delimiter: u8) -> Self {
        self.delimiter = Some(delimiter);
        self
    }

    /// Sets the limit on an image's pixels. The default is 178 956 970.
    pub fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = Some(pixels);
        self
    }

    /// Sets whether images that cannot be read are skipped (no by default), as
    /// [`FolderOptions::skip_broken`](crate::FolderOptions::skip_broken) does. A row without a file is an error anyway.
    pub fn skip_broken(mut self, skip: bool) -> Self {
        self.skip_broken = skip;
        self
    }

    /// Opens the images of all rows, or of those of train where there is a split column.
    ///
    /// # Errors
    /// [`Error::Io`] for a file or folder that cannot be read; [`Error::Invalid`] for a table that is not as described
    /// above, with the line or the columns; [`Error::UnreadableImages`] for images of unsupported formats;
    /// [`Error::EmptyClass`] for a label column without a 1.
    pub fn open(&self, table: impl AsRef<Path>) -> Result<ImageFolder> {
        let table = self.read(table.as_ref())?;
        let train = self.train(&table)?;
        table.check_flags(&train)?;
        Ok(train)
    }

    /// Opens all parts. If no row is of valid, or there is no split column, 15 % of each class of train become valid,
    /// chosen by the seed, without splitting a group. Train defines the classes; valid and test may lack some.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::UnknownClasses`] for a class that train lacks.
    pub fn splits(&self, table: impl AsRef<Path>, seed: u64) -> Result<Splits> {
        let table = self.read(table.as_ref())?;
        let train = self.train(&table)?;
        let other = |part: Part| {
            let other = table.has(part).then(|| self.part(&table, Some(part), false)?.labels(train.classes()));
            other.transpose()?.map(|other| self.end(other)).transpose()
        };
        let (valid, test) = (other(Part::Valid)?, other(Part::Test)?);
        table.check_flags(&train)?;
        let about = (Vec::new(), table.rows.unlisted, table.rows.torn);
        splits::join(train, valid, test, about, seed)
    }

    /// Opens the part to evaluate on: the images of the rows of test, else valid, else train, or of all rows if there is
    /// no split column.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn eval_part(&self, table: impl AsRef<Path>) -> Result<ImageFolder> {
        let table = self.read(table.as_ref())?;
        let part = [Part::Test, Part::Valid, Part::Train].into_iter().find(|&part| table.has(part));
        let part = self.part(&table, part, table.has_flags)?;
        self.end(ImageFolder { every_class: false, ..part })
    }

    fn read(&self, path: &Path) -> Result<Table> {
        let text = Text::read(path, self.delimiter, self.wanted.separator)?;
        let name = path.display().to_string();
        let mut records = text.records();
        let header: Vec<String> = match records.next()? {
            Some((_, header)) => header.iter().map(|name| nfc(name.trim())).collect(),
            None => return Err(Error::invalid(name, "is empty; the first line must name the columns")),
        };
        let columns = Columns::find(&header, &self.wanted, &name)?;
        let beside = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let root = self.images.clone().unwrap_or_else(|| beside.to_path_buf());
        let images = Images::read(&root)?;
        if images.files.is_empty() {
            let problem = "there are no images in this folder; set that of the images with `images` (`--images`)";
            return Err(Error::invalid(root.display().to_string(), problem));
        }
        let rows = rows::read(&text, &mut records, &header, &columns, &images)?;
        if rows.unlisted > 0 {
            tracing::warn!(count = rows.unlisted, table = %name, "images in the folder are not in the table");
        }
        let origin = Arc::new(Origin { table: path.to_path_buf(), columns: columns.words(&header) });
        let (has_parts, has_flags) = (columns.split.is_some(), matches!(columns.label, LabelColumns::Flags(_)));
        Ok(Table { images, rows, root, origin, has_parts, has_flags })
    }

    fn train(&self, table: &Table) -> Result<ImageFolder> {
        let part = table.has_parts.then_some(Part::Train);
        if table.has_parts && !table.has(Part::Train) {
            let problem =
                "no row is of train; fill in the split column, or name another with `split` (`--split-column`)";
            return Err(Error::invalid(table.origin.table.display().to_string(), problem));
        }
        self.end(self.part(table, part, false)?)
    }

    /// The images of a part, or of all rows, with the classes that they have, or with all.
    fn part(&self, table: &Table, part: Option<Part>, all_classes: bool) -> Result<ImageFolder> {
        let rows = || table.rows.list.iter().filter(|row| part.is_none() || row.part == part);
        let classes = &table.rows.classes;
        let mut used = vec![all_classes; classes.len()];
        rows().flat_map(|row| row.label.ids()).for_each(|&class| used[class as usize] = true);
        let kept = classes.iter().zip(&used).filter(|(_, used)| **used).map(|(name, _)| name.clone()).collect();
        let mut kept_before = 0;
        let mut ids = Vec::with_capacity(used.len());
        for used in used {
            ids.push(kept_before);
            kept_before += u32::from(used);
        }
        let (mut files, mut unread) = (Vec::new(), Vec::new());
        for Row { image, label, group, .. } in rows() {
            let image = &table.images.files[*image];
            match &image.problem {
                Some(problem) => unread.push((image.path.clone(), problem.clone())),
                None => files.push(File { path: image.path.clone(), label: label.renumbered(&ids), group: *group }),
            }
        }
        unread.sort();
        if !self.skip_broken && !unread.is_empty() {
            return Err(Error::UnreadableImages { files: unread });
        }
        Ok(ImageFolder {
            root: table.root.clone(),
            origin: Some(Arc::clone(&table.origin)),
            classes: kept,
            files: files.into(),
            skipped: unread.into(),
            max_pixels: self.max_pixels.unwrap_or(decode::MAX_PIXELS),
            every_class: true,
        })
    }

    /// Skips broken images, once it is known which classes must have images.
    fn end(&self, part: ImageFolder) -> Result<ImageFolder> {
        if self.skip_broken { part.without_broken() } else { Ok(part) }
    }
}

impl Table {
    /// Whether rows are of this part.
    fn has(&self, part: Part) -> bool {
        self.rows.list.iter().any(|row| row.part == Some(part))
    }

    /// Refuses a label column that is 0 in all rows of train.
    fn check_flags(&self, train: &ImageFolder) -> Result<()> {
        let unused = self.rows.classes.iter().find(|class| self.has_flags && !train.classes().contains(class));
        unused.map_or(Ok(()), |class| Err(Error::EmptyClass { class: class.clone(), path: self.origin.table.clone() }))
    }
}
