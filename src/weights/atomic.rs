//! Replacing a file so that a reader, and a crash at any moment, finds either the old bytes or the new, never a mix.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// The seam through which every call to the system passes, so that a test can let the n-th one fail.
pub(crate) trait Disk {
    /// Makes one call, which does `what`.
    fn call<T>(&mut self, what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T>;
}

/// The system itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Os;

impl Disk for Os {
    fn call<T>(&mut self, _what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        call()
    }
}

/// Replaces the file at `path`, or creates it, with what `fill` writes.
///
/// The bytes go to a temporary file in the same folder, with the permissions of the file that is replaced; it is
/// synced to the disk, renamed over the old file, and the folder is synced. A symbolic link stays, and the file that
/// it points to is replaced. After an error the temporary file is gone, and the old file is as it was: only where the
/// last step, the syncing of the folder, failed, the new file is already in place.
pub(crate) fn replace<D: Disk>(
    disk: &mut D,
    path: &Path,
    fill: impl FnOnce(&mut Output<'_, D>) -> Result<()>,
) -> Result<()> {
    let (path, permissions) = target(disk, path)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let (temporary, file) = create(disk, &folder, &path, permissions.as_ref())?;
    let filled = finish(disk, &file, &path, permissions, fill);
    drop(file);
    let renamed = filled.and_then(|()| {
        disk.call("rename", || fs::rename(&temporary, &path))
            .map_err(Error::io("put the new file in the place of", &path))
    });
    if let Err(error) = renamed {
        // What went wrong first is what the caller should hear of.
        let _ = disk.call("remove", || fs::remove_file(&temporary));
        return Err(error);
    }
    sync_folder(disk, &folder, &path)
}

/// Replaces the file at `path`, or creates it, with this text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    replace(&mut Os, path, |out| out.write(text.as_bytes()))
}

/// A file that is being written, through the seam.
pub(crate) struct Output<'a, D> {
    disk: &'a mut D,
    file: &'a File,
    path: &'a Path,
}

impl<D: Disk> Output<'_, D> {
    /// Writes all the bytes, at once: callers bring large pieces.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = self.file;
        self.disk.call("write", || file.write_all(bytes)).map_err(Error::io("write", self.path))
    }
}

/// The file behind symbolic links, and its permissions if there is one.
fn target(disk: &mut impl Disk, path: &Path) -> Result<(PathBuf, Option<Permissions>)> {
    let path = match disk.call("resolve", || fs::canonicalize(path)) {
        Ok(path) => path,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok((path.to_path_buf(), None)),
        Err(cause) => return Err(Error::io("write", path)(cause)),
    };
    let about = disk.call("look", || fs::metadata(&path)).map_err(Error::io("write", &path))?;
    if about.is_file() {
        Ok((path, Some(about.permissions())))
    } else {
        Err(Error::weights(path, "something that is not a file has this name; choose another name"))
    }
}

/// A new file of a name that nothing else has, never readable by more people than the file `target` that it will replace.
/// Errors name the target: nobody knows the temporary file.
fn create(
    disk: &mut impl Disk,
    folder: &Path,
    target: &Path,
    permissions: Option<&Permissions>,
) -> Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if let Some(permissions) = permissions {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.mode(permissions.mode() & 0o777);
    }
    #[cfg(not(unix))]
    let _ = permissions;
    // A crash can leave a file behind whose name comes again with the same process id; a few are stepped over.
    let mut tries = 0;
    loop {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".candle-finetune-{}-{n}.tmp", std::process::id()));
        match disk.call("create", || options.open(&path)) {
            Ok(file) => return Ok((path, file)),
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists && tries < 100 => tries += 1,
            Err(cause) => {
                // Over a network a call can fail after its work is done, and this name is nobody else's.
                let _ = disk.call("remove", || fs::remove_file(&path));
                return Err(Error::io("write", target)(cause));
            }
        }
    }
}

/// Fills the temporary file and brings it to the disk, ready to be renamed.
fn finish<D: Disk>(
    disk: &mut D,
    file: &File,
    path: &Path,
    permissions: Option<Permissions>,
    fill: impl FnOnce(&mut Output<'_, D>) -> Result<()>,
) -> Result<()> {
    fill(&mut Output { disk, file, path })?;
    if let Some(permissions) = permissions {
        disk.call("set permissions", || file.set_permissions(permissions))
            .map_err(Error::io("set the permissions of", path))?;
    }
    disk.call("sync", || file.sync_all()).map_err(Error::io("write", path))
}

/// Brings the new name to the disk. Only Unix can open a folder to do so.
fn sync_folder(disk: &mut impl Disk, folder: &Path, path: &Path) -> Result<()> {
    if cfg!(unix) {
        disk.call("sync folder", || File::open(folder)?.sync_all()).map_err(Error::io("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
