//! The data of an example: a folder of images, or a table (CSV) of them.
#![allow(dead_code)] // each example uses its part

use crate::folders::Folders;
use crate::run::Failure;
use candle_finetune::{CsvOptions, ImageFolder, Splits};
use clap::Args;
use std::path::{Path, PathBuf};

/// Which images, and how they are read.
#[derive(Args)]
pub struct Data {
    /// Folder of images: CLASS/*, or {train,valid,test}/CLASS/*; or a table (CSV) with a row per image
    #[arg(long = "data", value_name = "DIR|FILE.csv")]
    path: PathBuf,
    #[command(flatten)]
    pub folders: Folders,
    /// Folder of a table's images, if it is not the table's own
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Column of a table that holds the image files, if it has no usual name
    #[arg(long, value_name = "NAME")]
    file_column: Option<String>,
    /// Column of a table that holds the labels, if it has no usual name
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Columns of a table that hold 0 or 1, one for each label (several labels per image)
    #[arg(long, value_name = "A,B,...", value_delimiter = ',', conflicts_with_all = ["label_column", "label_separator"])]
    label_columns: Option<Vec<String>>,
    /// What separates the labels in a table's label column (several labels per image)
    #[arg(long, value_name = "CHARACTER")]
    label_separator: Option<char>,
    /// Column of a table that says train, valid or test, if it has no usual name
    #[arg(long, value_name = "NAME")]
    split_column: Option<String>,
    /// Column of a table that groups images, say by patient, if it has no usual name
    #[arg(long, value_name = "NAME")]
    group_column: Option<String>,
    /// Columns of a table to ignore, though they have usual names
    #[arg(long, value_name = "A,B,...", value_delimiter = ',')]
    ignore_columns: Vec<String>,
}

#[allow(dead_code)] // an example opens all parts or one
impl Data {
    /// Opens all parts.
    pub fn splits(&self, seed: u64) -> Result<Splits, Failure> {
        Ok(match self.table()? {
            Some(table) => table.splits(&self.path, seed)?,
            None => self.folders.options().splits(&self.path, seed)?,
        })
    }

    /// Opens the part to evaluate on.
    pub fn eval_part(&self) -> Result<ImageFolder, Failure> {
        Ok(match self.table()? {
            Some(table) => table.eval_part(&self.path)?,
            None => self.folders.options().eval_part(&self.path)?,
        })
    }

    /// The file of the table, if the data is one.
    pub fn table_file(&self) -> Option<&Path> {
        self.path.is_file().then_some(&self.path)
    }

    /// The options of a table, if the data is one.
    fn table(&self) -> Result<Option<CsvOptions>, Failure> {
        let named =
            self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"));
        if self.path.is_dir() || (!named && !self.path.is_file()) {
            let of_tables = [
                ("--images", self.images.is_some()),
                ("--file-column", self.file_column.is_some()),
                ("--label-column", self.label_column.is_some()),
                ("--label-columns", self.label_columns.is_some()),
                ("--label-separator", self.label_separator.is_some()),
                ("--split-column", self.split_column.is_some()),
                ("--group-column", self.group_column.is_some()),
                ("--ignore-columns", !self.ignore_columns.is_empty()),
            ];
            return match of_tables.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    Err(format!("{option} has no effect: {} is a folder, not a table", self.path.display()).into())
                }
                None => Ok(None),
            };
        }
        if self.folders.layout.is_some() {
            return Err(format!("--layout has no effect: {} is a table", self.path.display()).into());
        }
        let table = ImageFolder::csv().skip_broken(self.folders.skip_broken).ignore(&self.ignore_columns);
        let table = self.folders.max_pixels.into_iter().fold(table, CsvOptions::max_pixels);
        let table = self.images.iter().fold(table, CsvOptions::images);
        let table = self.file_column.iter().fold(table, CsvOptions::file);
        let table = self.label_column.iter().fold(table, CsvOptions::label);
        let table = self.label_columns.iter().fold(table, CsvOptions::labels);
        let table = self.label_separator.into_iter().fold(table, CsvOptions::separator);
        let table = self.split_column.iter().fold(table, CsvOptions::split);
        Ok(Some(self.group_column.iter().fold(table, CsvOptions::group)))
    }
}
