//! The checksums that the hub uses as etags: SHA-256 for large files; for small ones git's object id, the SHA-1 of
//! "blob", the length, a zero byte and the bytes. Company mirrors of the hub use the SHA-1 of the bytes alone.

use super::answer::About;
use crate::error::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Whether an etag is a checksum of the file. Other hubs than the real one may send etags that are not.
pub(super) fn is_checksum(etag: &str) -> bool {
    [40, 64].contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a file's bytes have this etag as their checksum; `None` if the etag is not a checksum.
pub(super) fn agrees(path: &Path, etag: &str) -> Result<Option<bool>> {
    if !is_checksum(etag) {
        return Ok(None);
    }
    let is = |sum: String| sum.eq_ignore_ascii_case(etag);
    if etag.len() == 64 {
        return Ok(Some(is(digest(path, Sha256::new())?)));
    }
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    let git = Sha1::new_with_prefix(format!("blob {size}\0"));
    Ok(Some(is(digest(path, git)?) || is(digest(path, Sha1::new())?)))
}

/// Whether a file is the one that the hub describes: the size, and the checksum if the etag is one.
pub(super) fn matches(path: &Path, about: &About) -> Result<bool> {
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    Ok(size == about.size && agrees(path, &about.etag)?.unwrap_or(true))
}

/// Adds a file's bytes to a digest and returns it in hexadecimal digits.
pub(super) fn digest(path: &Path, mut digest: impl Digest) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            n => digest.update(&buffer[..n]),
        }
    }
    Ok(digest.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // into a String, which cannot fail
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values come from `git hash-object --stdin`, `sha1sum` and `sha256sum` on `printf 'hello\n'`.
    #[test]
    fn all_kinds_are_computed_as_the_tools_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        let (git, sha1, sha256) = (
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "f572d396fae9206628714fb2ce00f72e94f2258f",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        );
        for sum in [git, sha1, sha256] {
            assert_eq!(agrees(&path, sum).unwrap(), Some(true));
            assert_eq!(agrees(&path, &sum.to_uppercase()).unwrap(), Some(true));
            assert_eq!(agrees(&path, &sum.replace('5', "6")).unwrap(), Some(false));
        }
        for odd in ["", "abc", &git[1..], &format!("{}g", &git[1..])] {
            assert_eq!(agrees(&path, odd).unwrap(), None, "{odd}");
        }
        assert!(agrees(&dir.path().join("none"), git).is_err());
    }
}
