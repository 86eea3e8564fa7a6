//! Decoding everything, to find what is broken.

use super::{File, decode};
use crate::Error;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The files that cannot be read, sorted by path, each with what is wrong. Uses all cores.
pub(super) fn broken(files: &[File], max_pixels: u64) -> Vec<(PathBuf, String)> {
    let found = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = decode::read(&file.path, max_pixels) {
                        let entry = (file.path.clone(), problem(error));
                        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(entry);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort();
    found
}

/// The error without the file's name, which stands beside it.
fn problem(error: Error) -> String {
    match error {
        Error::BrokenImage { cause, .. } => cause.to_string(),
        Error::Io { cause, .. } => cause.to_string(),
        Error::ImageTooLarge { width, height, limit, .. } => {
            format!("{width} x {height} pixels, more than the limit of {limit}")
        }
        other => other.to_string(),
    }
}
