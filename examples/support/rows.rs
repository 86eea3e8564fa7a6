//! The rows of the grid of tasks: what was run, and what came out. A file holds a row per line and grows row by row.

use crate::run::Failure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A task: some images, a backbone, a size.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub name: String,
    /// The data set: a folder below --sets, or fashion-mnist and the like made into folders.
    pub set: String,
    /// The architecture, whose weights --weights names.
    pub backbone: String,
    /// Height and width of the input; the backbone's own if missing.
    pub pixels: Option<usize>,
    /// Training images per class; all if missing.
    pub per_class: Option<usize>,
    /// How many seeds.
    pub seeds: u64,
    /// Why its figures are shown but not counted, if they are not.
    pub shown: Option<String>,
    /// Whether its set was looked at when thresholds were chosen.
    #[serde(default)]
    pub tuning: bool,
}

/// One training and its test.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub task: String,
    /// A strategy's name, or auto.
    pub strategy: String,
    pub seed: u64,
    /// A hash of the plan that was followed: a row of another plan is out of date.
    pub plan: String,
    pub train: usize,
    pub valid: usize,
    pub classes: usize,
    pub top1: f64,
    pub valid_top1: f64,
    /// The test images that were right, four to a hexadecimal digit.
    pub right: String,
    pub images: usize,
    pub seconds: f64,
    /// What the advisor measured, of auto.
    pub advice: Option<Advised>,
}

/// What the advisor measured and chose.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Advised {
    pub strategy: String,
    pub size: String,
    pub similarity: String,
    /// The accuracy of the probe after the last stage, and of the best stage.
    pub last: f64,
    pub best: f64,
    /// The accuracy that the second half of the images has brought to the probe of all stages.
    pub gain: Option<f64>,
    /// What the advisor does not use: see shift.rs.
    #[serde(default)]
    pub divergence: Option<f64>,
    pub early: f64,
    pub seconds: f64,
}

impl Row {
    /// Whether each test image was right.
    pub fn outcomes(&self) -> Vec<bool> {
        let digit = |c: char| c.to_digit(16).unwrap_or(0);
        let bits = self.right.chars().flat_map(|c| (0..4).map(move |bit| digit(c) >> bit & 1 == 1));
        bits.take(self.images).collect()
    }
}

/// The outcomes as [`Row::right`] holds them.
pub fn packed(outcomes: &[bool]) -> String {
    let digit = |four: &[bool]| four.iter().enumerate().map(|(bit, &right)| u32::from(right) << bit).sum();
    outcomes.chunks(4).filter_map(|four| char::from_digit(digit(four), 16)).collect()
}

/// Rows by task, strategy and seed; of several the last.
pub type Rows = BTreeMap<(String, String, u64), Row>;

pub fn read(path: &Path) -> Result<Rows, Failure> {
    let mut rows = Rows::new();
    if !path.exists() {
        return Ok(rows);
    }
    for (number, line) in std::fs::read_to_string(path)?.lines().enumerate() {
        let row: Row =
            serde_json::from_str(line).map_err(|error| format!("{} line {}: {error}", path.display(), number + 1))?;
        rows.insert((row.task.clone(), row.strategy.clone(), row.seed), row);
    }
    Ok(rows)
}

/// Appends a row, so that a run that is interrupted goes on after it.
pub fn append(path: &Path, row: &Row) -> Result<(), Failure> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{}", serde_json::to_string(row)?)?;
    Ok(())
}
