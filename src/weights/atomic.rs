//! Replaces a file so that a reader, and a crash at any moment, finds the old bytes or the new ones, never a mixture.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result};

/// The seam through which every system call goes whose failure matters, so that a test can let the n-th one fail.
pub(crate) trait Disk {
    /// Makes one call; `what` names it.
    fn call<T>(&mut self, what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T>;
}

/// How the names of temporary files begin and end.
pub(crate) const TEMPORARY: (&str, &str) = (".candle-finetune-", ".tmp");

/// The operating system itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Os;

impl Disk for Os {
    fn call<T>(&mut self, _what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        call()
    }
}

/// Replaces the file at `path`, or creates it, with what `fill` writes.
///
/// The bytes go to a temporary file in the same folder, with the permissions of the file that it replaces. The temporary
/// file is synced to the disk and renamed over the old file, and the folder is synced. A symbolic link stays; the file
/// that it points to is replaced. After an error the temporary file is deleted and the old file is as it was, except that
/// the new file is already in place if the last step, syncing the folder, failed.
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
    // Errors name the target, since nobody knows the temporary file. Dropping the temporary file deletes it.
    let temporary = create(disk, &folder, permissions.as_ref()).map_err(Error::io("write", &path))?;
    finish(disk, temporary.as_file(), &path, permissions, fill)?;
    let closed = temporary.into_temp_path();
    disk.call("rename", || closed.persist(&path).map_err(|failed| failed.error))
        .map_err(Error::io("put the new file in the place of", &path))?;
    sync_folder(disk, &folder, &path)
}

/// Replaces the file at `path`, or creates it, with this text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

/// Replaces the file at `path`, or creates it, with these bytes.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(&mut Os, path, |out| out.write(bytes))
}

/// A file that is being written, through the seam.
pub(crate) struct Output<'a, D> {
    disk: &'a mut D,
    file: &'a File,
    path: &'a Path,
}

impl<D: Disk> Output<'_, D> {
    /// Writes all the bytes without a buffer; callers pass large pieces.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut file = self.file;
        self.disk.call("write", || file.write_all(bytes)).map_err(Error::io("write", self.path))
    }
}

/// The file behind symbolic links, and its permissions if it exists.
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

/// A new file of a name that nothing else has, never readable by more people than the file that it will replace.
fn create(disk: &mut impl Disk, folder: &Path, permissions: Option<&Permissions>) -> io::Result<NamedTempFile> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if let Some(permissions) = permissions {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        options.mode(permissions.mode() & 0o777);
    }
    #[cfg(not(unix))]
    let _ = permissions;
    // tempfile's own way to open a file gives it other permissions than a new file has, and errors that name it.
    tempfile::Builder::new().prefix(TEMPORARY.0).suffix(TEMPORARY.1).make_in(folder, |path| {
        let file = disk.call("create", || options.open(path));
        file.inspect_err(|cause| {
            // A call over a network can fail after its work is done, and leave this file.
            if cause.kind() != ErrorKind::AlreadyExists {
                let _ = fs::remove_file(path);
            }
        })
    })
}

/// Fills the temporary file and syncs it to the disk, ready to be renamed.
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

/// Syncs the new name to the disk. Only Unix can open a folder to do so.
fn sync_folder(disk: &mut impl Disk, folder: &Path, path: &Path) -> Result<()> {
    if cfg!(unix) {
        disk.call("sync folder", || File::open(folder)?.sync_all()).map_err(Error::io("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
