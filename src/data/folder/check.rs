//! Decodes all files, to find those that cannot be read.

use super::decode;
use super::file::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The files that cannot be read, sorted by path, each with what is wrong and the remedy. Uses all cores.
pub(super) fn unreadable(files: &[File], max_pixels: u64) -> Vec<(PathBuf, String)> {
    let found = in_parallel(files, |file| decode::read(&file.path, max_pixels).err().map(decode::problem));
    let mut found: Vec<(PathBuf, String)> =
        found.into_iter().map(|(i, problem)| (files[i].path.clone(), problem)).collect();
    found.sort();
    found
}

/// The results of a function for each of these items, those that are `Some`, sorted by index. Uses all cores.
pub(super) fn in_parallel<T: Sync, R: Send>(items: &[T], find: impl Fn(&T) -> Option<R> + Sync) -> Vec<(usize, R)> {
    let found = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    if let Some(result) = find(item) {
                        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((i, result));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|&(i, _)| i);
    found
}
