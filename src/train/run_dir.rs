//! A folder that holds a run: its newest checkpoints, and the predictor of its best epoch.

use super::cancel::Cancel;
use super::event::Event;
use super::fitted::Fitted;
use super::run_state::RunState;
use super::session::Session;
use crate::error::{Divergence, Error, Result};
use crate::weights::{Disk, Os, TEMPORARY, write_text};
use serde_json::json;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tracing::info_span;

/// The folder of a run, locked while the run uses it.
pub(super) struct RunDir {
    path: PathBuf,
    /// The newest checkpoints that stay.
    keep: usize,
    pace: Pace,
    /// The best epoch whose predictor is in the folder, if this process wrote it.
    best: Option<(usize, bool)>,
    /// The lock lasts as long as the file is open.
    _lock: File,
}

/// The share of the time in a phase that its checkpoints may take.
const SHARE: f64 = 0.05;

/// When the next checkpoint is due.
struct Pace {
    phase: Option<usize>,
    since: Instant,
    /// Seconds of the phase's checkpoints.
    spent: f64,
    /// Seconds that a checkpoint takes.
    each: Option<f64>,
}

impl Pace {
    fn new() -> Self {
        Self { phase: None, since: Instant::now(), spent: 0.0, each: None }
    }

    /// Whether another checkpoint keeps within the share; `guess` are the seconds of the first one.
    fn is_due(&mut self, phase: Option<usize>, guess: impl FnOnce() -> f64) -> bool {
        if self.phase != phase {
            (self.phase, self.since, self.spent) = (phase, Instant::now(), 0.0);
        }
        let each = *self.each.get_or_insert_with(guess);
        self.spent + each <= SHARE * self.since.elapsed().as_secs_f64()
    }

    fn note(&mut self, seconds: f64) {
        self.spent += seconds;
        self.each = Some(seconds);
    }
}

const LOCK: &str = "lock";
const BEST: &str = "best.safetensors";
const REPORT: &str = "report.json";
/// The folder of a step that failed, with the state before it and a description.
const FAILED: (&str, &str, &str) = ("failed", "state.safetensors", "step.json");
const CHECKPOINT: (&str, &str) = ("checkpoint-", ".safetensors");

impl RunState {
    /// The newest sound checkpoint in a run directory ([`FineTuner::run_dir`](crate::FineTuner::run_dir)), with which a run
    /// there would go on; `None` if there is none. Its [`report`](Self::report) has the plan.
    ///
    /// ```
    /// use candle_finetune::RunState;
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let folder = dir.path();
    /// assert!(RunState::newest(folder)?.is_none());
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InUse`] while a run uses the directory, [`Error::Io`] if it cannot be read, and if all its checkpoints are
    /// damaged or the newest one was written by a newer version.
    pub fn newest(run_dir: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = run_dir.as_ref();
        // Another folder is left as it is.
        if !path.is_dir() || checkpoints(path)?.is_empty() {
            return Ok(None);
        }
        RunDir::open(path, 1)?.latest(|_| {})
    }
}

impl RunDir {
    /// Opens the folder, or creates it, and removes what a killed run left half written.
    ///
    /// # Errors
    /// [`Error::InUse`] if a run uses it.
    pub fn open(path: &Path, keep: usize) -> Result<Self> {
        if keep == 0 {
            return Err(Error::invalid("checkpoints", "0 are to be kept; keep at least 1"));
        }
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let file = path.join(LOCK);
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&file)
            .map_err(Error::io("open", &file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let process = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
                return Err(Error::InUse { path: path.to_path_buf(), process });
            }
            Err(TryLockError::Error(cause)) => return Err(Error::io("lock", &file)(cause)),
        }
        // Who uses it, for the error of another run: only a hint, so that a full disk is no reason to refuse.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        for (name, leftover) in entries(path)? {
            if name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) {
                fs::remove_file(&leftover).map_err(Error::io("remove", &leftover))?;
            }
        }
        Ok(Self { path: path.to_path_buf(), keep, pace: Pace::new(), best: None, _lock: lock })
    }

    /// The newest checkpoint that is whole, if there is any. Damaged ones are told through `skipped`, and renamed.
    ///
    /// # Errors
    /// If all are damaged, one cannot be read, or a newer version of the crate wrote it.
    pub fn latest(&self, mut skipped: impl FnMut(&Error)) -> Result<Option<RunState>> {
        let mut damaged = None;
        for (_, file) in self.checkpoints()?.into_iter().rev() {
            match RunState::from_file(&file) {
                Ok(state) => return Ok(Some(state)),
                // Not damaged: it is of a newer version, or cannot be read right now.
                Err(error @ (Error::NewerFormat { .. } | Error::Io { .. })) => return Err(error),
                Err(error) => {
                    tracing::warn!("a checkpoint is skipped: {error}");
                    skipped(&error);
                    damaged.get_or_insert((file, error));
                }
            }
        }
        match damaged {
            None => Ok(None),
            Some((path, error)) => {
                let problem = format!(
                    "no checkpoint of the run is whole, and the newest one cannot be read ({error}); to start from the beginning, \
                     delete the folder or name another one"
                );
                Err(Error::weights(path, problem))
            }
        }
    }

    /// Moves checkpoints newer than these steps out of the way: they are damaged.
    pub fn set_aside(&self, steps: usize) -> Result<()> {
        for (number, file) in self.checkpoints()? {
            if number > steps {
                let aside = file.with_extension("damaged");
                fs::rename(&file, &aside).map_err(Error::io("rename", &file))?;
            }
        }
        Ok(())
    }

    /// Writes a checkpoint if one is due: checkpoints take at most 5 % of the time of each phase.
    pub fn tick(&mut self, session: &mut Session) -> Result<()> {
        // At 200 MB/s and 20 ms for syncing, until one has been timed.
        let guess = || 0.02 + session.state_bytes() as f64 / 2e8;
        if self.pace.is_due(session.phase(), guess) { self.save(session) } else { Ok(()) }
    }

    /// Writes a checkpoint, and the predictor of the best epoch if there is a new one.
    pub fn save(&mut self, session: &mut Session) -> Result<()> {
        self.save_through(&mut Os, session)
    }

    /// As [`RunDir::save`], with every system call going through `disk`.
    fn save_through(&mut self, disk: &mut impl Disk, session: &mut Session) -> Result<()> {
        let _span = info_span!("checkpoint", step = session.steps()).entered();
        let begun = Instant::now();
        if let Some(best) = session.best_epoch().filter(|&best| self.best != Some(best)) {
            if let Some(predictor) = session.best_predictor()? {
                predictor.save_through(disk, &self.path.join(BEST))?;
            }
            self.best = Some(best);
        }
        let state = session.state()?;
        let steps = state.steps();
        state.save_through(disk, &self.path.join(file_name(steps)))?;
        let all = self.checkpoints()?;
        for (_, old) in &all[..all.len().saturating_sub(self.keep)] {
            disk.call("remove", || fs::remove_file(old)).map_err(Error::io("remove", old))?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        self.pace.note(seconds);
        session.note_checkpoint(seconds);
        Ok(())
    }

    /// Keeps what a step that failed can be repeated from: the state before it, and its samples. Returns the folder.
    fn keep_failure(&self, error: &Divergence, session: &Session) -> Result<Option<PathBuf>> {
        let Some((state, indices)) = session.state_before()? else { return Ok(None) };
        self.forget_failure()?;
        let folder = self.path.join(FAILED.0);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        state.save(folder.join(FAILED.1))?;
        let names = session.sample_names(indices);
        let samples: Vec<_> = indices.iter().zip(names).map(|(i, name)| json!({"index": i, "name": name})).collect();
        let step = json!({
            "what": error.what, "step": error.step, "loss": error.loss.to_string(), "lr": error.lr,
            "tensors": error.tensors, "phase": session.phase(), "epoch": session.epoch(), "samples": samples,
        });
        write_text(&folder.join(FAILED.2), &format!("{step:#}\n"))?;
        Ok(Some(folder))
    }

    /// Removes what an earlier failure has left.
    fn forget_failure(&self) -> Result<()> {
        let folder = self.path.join(FAILED.0);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &folder)(error)),
            _ => Ok(()),
        }
    }

    /// Writes predictor and report of the run that has ended. One that has not been stopped has passed every failure.
    pub fn finish(&self, fitted: &Fitted) -> Result<()> {
        if fitted.report.stopped.is_none() {
            self.forget_failure()?;
        }
        fitted.predictor.save(self.path.join(BEST))?;
        write_text(&self.path.join(REPORT), &fitted.report.to_json()?)
    }

    /// The checkpoints by their steps, the oldest first.
    fn checkpoints(&self) -> Result<Vec<(usize, PathBuf)>> {
        checkpoints(&self.path)
    }
}

/// The checkpoints in a folder, by their steps.
fn checkpoints(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let (before, after) = CHECKPOINT;
    let number = |name: &str| name.strip_prefix(before)?.strip_suffix(after)?.parse().ok();
    let found = entries(folder)?.into_iter();
    let mut found: Vec<(usize, PathBuf)> = found.filter_map(|(name, file)| Some((number(&name)?, file))).collect();
    found.sort();
    Ok(found)
}

fn file_name(steps: usize) -> String {
    let (before, after) = CHECKPOINT;
    format!("{before}{steps:08}{after}")
}

/// Name and path of everything in a folder.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = || Error::io("read", folder);
    let mut all = vec![];
    for entry in fs::read_dir(folder).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(all)
}

/// What watches over a run: the folder of its checkpoints, and whether it was cancelled.
#[derive(Default)]
pub(super) struct Keeper {
    pub dir: Option<RunDir>,
    pub cancel: Option<Cancel>,
}

impl Keeper {
    /// Writes a checkpoint if one is due. Returns whether the run was cancelled; then a checkpoint is written at once.
    pub fn after(&mut self, session: &mut Session) -> Result<bool> {
        let cancelled = self.is_cancelled();
        match &mut self.dir {
            Some(dir) if cancelled => dir.save(session)?,
            Some(dir) => dir.tick(session)?,
            None => {}
        }
        Ok(cancelled)
    }

    /// The error of a step, after keeping what it can be repeated from if the training has diverged.
    pub fn failed(&self, error: Error, session: &Session) -> Error {
        let Some(dir) = &self.dir else { return error };
        let Error::Diverged(mut divergence) = error else { return error };
        match dir.keep_failure(&divergence, session) {
            Ok(folder) => divergence.kept = folder,
            // The first error matters more.
            Err(error) => tracing::warn!("the failed step cannot be kept: {error}"),
        }
        Error::Diverged(divergence)
    }

    /// The error of a sample that cannot be read, after a checkpoint: the run goes on there when the sample is back.
    pub fn ended_by(&mut self, error: Error, session: &mut Session) -> Error {
        if let Some(dir) = &mut self.dir
            && let Err(error) = dir.save(session)
        {
            tracing::warn!("no checkpoint can be written: {error}");
        }
        error
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }

    /// Writes the last checkpoint of a run, so that it is known to have ended.
    pub fn end(&mut self, session: &mut Session) -> Result<()> {
        self.dir.as_mut().map_or(Ok(()), |dir| dir.save(session))
    }

    /// The newest checkpoint in the folder, if there is one.
    pub fn latest(&self, tell: impl Fn(&Event<'_>)) -> Result<Option<RunState>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let state = dir.latest(|error| tell(&Event::SkippedCheckpoint(error)))?;
        if let Some(state) = &state {
            dir.set_aside(state.steps())?;
        }
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
