use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::*;
use crate::weights::write::write_through;
use crate::weights::{METADATA_KEY, Weights, write};

/// Lets the n-th call fail, counted from zero: before it has done anything, or after it has done its work.
struct Failing {
    calls: Vec<&'static str>,
    fail_at: usize,
    after: bool,
}

impl Disk for Failing {
    fn call<T>(&mut self, what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let fails = self.calls.len() == self.fail_at;
        self.calls.push(what);
        if fails && !self.after {
            return Err(io::Error::other("the disk is full"));
        }
        let done = call();
        if fails { Err(io::Error::other("the disk is full")) } else { done }
    }
}

fn tensors(value: f32) -> BTreeMap<String, Tensor> {
    // More than one piece of the writer's buffer, and more than one tensor.
    let large = Tensor::full(value, 300_000, &Device::Cpu).unwrap();
    BTreeMap::from([("large".to_string(), large), ("small".to_string(), Tensor::new(value, &Device::Cpu).unwrap())])
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn any_call_that_fails_leaves_the_old_file_or_the_new_one() {
    for after in [false, true] {
        for existing in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("w.safetensors");
            let fresh = dir.path().join("expected");
            write(&fresh, &tensors(2.), Some("new")).unwrap();
            let new = fs::read(&fresh).unwrap();
            fs::remove_file(&fresh).unwrap();

            let mut outcomes = Vec::new();
            for fail_at in 0.. {
                assert!(fail_at < 100, "the writer never ends");
                let _ = fs::remove_file(&path);
                if existing {
                    write(&path, &tensors(1.), Some("old")).unwrap();
                }
                let old = fs::read(&path).ok();
                let mut disk = Failing { calls: Vec::new(), fail_at, after };
                let outcome = write_through(&mut disk, &path, &tensors(2.), Some("new"));
                if outcome.is_ok() {
                    assert!(disk.calls.len() <= fail_at, "call {fail_at} failed unseen");
                    assert_eq!(fs::read(&path).unwrap(), new);
                    break;
                }
                let error = outcome.unwrap_err();
                let text = error.to_string();
                assert!(text.contains("the disk is full"), "{text}");
                assert!(
                    text.contains("w.safetensors") && !text.contains(".candle-finetune-"),
                    "the file's own name: {text}"
                );
                let now = fs::read(&path).ok();
                assert!(now == old || now.as_ref() == Some(&new), "call {fail_at} left a mixture");
                outcomes.push(now == old);
                let expected: &[&str] = if now.is_some() { &["w.safetensors"] } else { &[] };
                assert_eq!(names(dir.path()), expected, "call {fail_at} left something behind");
            }
            // Looking at the target, creating, header, two pieces and a scalar, syncing, renaming, syncing the folder.
            assert!(outcomes.len() >= 8, "{outcomes:?}");
            let renamed = outcomes.iter().filter(|&&still_old| !still_old).count();
            assert_eq!(renamed, usize::from(cfg!(unix)) + usize::from(after), "{outcomes:?}");
        }
    }
}

#[test]
fn everything_is_on_the_disk_before_the_name_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    let end = if cfg!(unix) { &["sync", "rename", "sync folder"][..] } else { &["sync", "rename"] };
    // The header, two pieces of the large tensor, and the small one.
    let write = ["write"; 4];
    for start in [
        [&["resolve", "create"][..], &write].concat(),
        [&["resolve", "look", "create"][..], &write, &["set permissions"]].concat(),
    ] {
        let mut disk = Failing { calls: Vec::new(), fail_at: usize::MAX, after: false };
        write_through(&mut disk, &path, &tensors(1.), None).unwrap();
        assert_eq!(disk.calls, [&start, end].concat());
    }
}

#[test]
fn an_error_of_the_caller_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    fs::write(&path, "old").unwrap();
    let outcome = replace(&mut Os, &path, |out| {
        out.write(b"half of")?;
        Err(Error::invalid("x", "y"))
    });
    assert!(matches!(outcome, Err(Error::Invalid { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["w"]);
}

#[test]
fn a_target_that_cannot_be_replaced_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = write(dir.path(), &tensors(1.), None).unwrap_err();
    assert!(error.to_string().contains("not a file"), "{error}");
    let error = write(&dir.path().join("absent/w"), &tensors(1.), None).unwrap_err();
    assert!(matches!(error, Error::Io { action: "write", .. }), "{error}");
    assert!(error.to_string().contains("absent/w:"), "its own name: {error}");
    assert!(names(dir.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn permissions_and_links_stay() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;

    fs::write(dir.path().join("plain"), "").unwrap();
    write(&path, &tensors(1.), None).unwrap();
    assert_eq!(mode(&path), mode(&dir.path().join("plain")), "a new file has the permissions of any new file");
    for wanted in [0o600, 0o640, 0o666, 0o444] {
        fs::set_permissions(&path, Permissions::from_mode(wanted)).unwrap();
        write(&path, &tensors(2.), None).unwrap();
        assert_eq!(mode(&path), wanted);
    }

    let link = dir.path().join("link");
    symlink("w", &link).unwrap();
    write(&link, &tensors(3.), Some("third")).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
    assert_eq!(Weights::read(&path).unwrap().metadata[METADATA_KEY], "third");
    assert_eq!(names(dir.path()), ["link", "plain", "w"]);
}

#[test]
fn a_crash_leaves_a_file_that_nobody_deletes_or_opens() {
    let dir = tempfile::tempdir().unwrap();
    let leftover = create(&mut Os, dir.path(), None).unwrap().into_temp_path().keep().unwrap();
    fs::write(&leftover, "crashed").unwrap();
    let path = dir.path().join("w");
    write(&path, &tensors(1.), None).unwrap();
    assert_eq!(fs::read(&leftover).unwrap(), b"crashed");
    let name = leftover.file_name().unwrap().to_str().unwrap().to_string();
    assert!(name.starts_with(".candle-finetune-"), "hidden, and named after the crate: {name}");
    assert_eq!(names(dir.path()), [name, "w".into()]);
}

#[test]
fn writers_of_one_file_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    std::thread::scope(|scope| {
        for i in 0..8 {
            let path = &path;
            scope.spawn(move || (0..5).for_each(|_| write(path, &tensors(i as f32), None).unwrap()));
        }
    });
    let read = Weights::read(&path).unwrap();
    let (large, small) =
        (read.tensors["large"].to_vec1::<f32>().unwrap(), read.tensors["small"].to_vec0::<f32>().unwrap());
    assert!(large.iter().all(|&value| value == small), "the file of one writer, whole");
    assert_eq!(names(dir.path()), ["w"]);
}
