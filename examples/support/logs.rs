//! Logs of a run in files.

use crate::run::Failure;
use candle_finetune::{Event, FineTuner, csv_lines, json_lines};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A log, by the extension of its file.
#[derive(Clone)]
pub enum Log {
    Csv(PathBuf),
    JsonLines(PathBuf),
}

impl Log {
    pub fn path(&self) -> &PathBuf {
        let (Self::Csv(path) | Self::JsonLines(path)) = self;
        path
    }
}

impl FromStr for Log {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, String> {
        let path = PathBuf::from(path);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Ok(Self::Csv(path)),
            Some("jsonl" | "ndjson") => Ok(Self::JsonLines(path)),
            _ => Err("the name ends neither with .csv nor with .jsonl or .ndjson".into()),
        }
    }
}

/// The tuner with the listeners that write logs.
pub fn logged(
    (log, tensorboard): (Option<&Log>, Option<&Path>),
    run_dir: Option<&Path>,
    mut tuner: FineTuner,
) -> Result<FineTuner, Failure> {
    if let Some(log) = log {
        let path = log.path();
        // A run directory that is there may hold a run, which goes on with its log.
        let goes_on = run_dir.is_some_and(Path::is_dir);
        let mut open = File::options();
        let open = if goes_on { open.append(true) } else { open.write(true).truncate(true) };
        let file = open.create(true).open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let has_header = file.metadata().is_ok_and(|about| about.len() > 0);
        tuner = match log {
            Log::Csv(_) => {
                let mut lines = csv_lines(file);
                tuner.on_event(move |event| {
                    if !(has_header && matches!(event, Event::Start(_))) {
                        lines(event);
                    }
                })
            }
            Log::JsonLines(_) => tuner.on_event(json_lines(file)),
        };
    }
    if let Some(folder) = tensorboard {
        tuner = tuner.on_event(candle_finetune::tensorboard(folder)?);
    }
    Ok(tuner)
}
