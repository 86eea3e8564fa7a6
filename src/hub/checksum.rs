//! Checksums by which the hub names the contents of files: SHA-256 for large ones; for small ones git's own of a file
//! ("blob", its length, a zero, its bytes), which is a SHA-1.

use crate::error::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Whether an etag tells what a file's bytes must be. Hubs other than the real one may give etags that do not.
pub(super) fn is_checksum(etag: &str) -> bool {
    [40, 64].contains(&etag.len()) && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a file's bytes are those that an etag stands for; `None` if the etag cannot tell.
pub(super) fn agrees(path: &Path, etag: &str) -> Result<Option<bool>> {
    if !is_checksum(etag) {
        return Ok(None);
    }
    let sum = if etag.len() == 64 { digest(path, Sha256::new())? } else { git_sum(path)? };
    Ok(Some(sum.eq_ignore_ascii_case(etag)))
}

fn git_sum(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    digest(path, Sha1::new_with_prefix(format!("blob {size}\0")))
}

/// The digest of a file's bytes after what is already in it, in hexadecimal digits.
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

    /// The sums are those of `printf 'hello\n' | git hash-object --stdin` and `printf 'hello\n' | sha256sum`.
    #[test]
    fn both_kinds_are_computed_as_the_tools_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        let (git, sha256) = (
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        );
        for sum in [git, sha256] {
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
