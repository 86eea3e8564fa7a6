use super::*;
use crate::train::logs::tests::{epoch, head_fit, started, step};

/// A record as a test looks at it: its step, and what it holds.
#[derive(Debug, PartialEq)]
enum Read {
    Version,
    Start(u64),
    Scalars(u64, Vec<(String, f32)>),
}

/// The field that `bytes` begins with: its number, its value if that is a number, its bytes, and what follows.
fn field(bytes: &[u8]) -> (u8, u64, &[u8], &[u8]) {
    let varint = |bytes: &[u8]| -> (u64, usize) {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        (bytes[..length].iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f)), length)
    };
    let (number, rest) = (bytes[0] >> 3, &bytes[1..]);
    match bytes[0] & 7 {
        0 => {
            let (value, length) = varint(rest);
            (number, value, &[], &rest[length..])
        }
        1 => (number, 0, &rest[..8], &rest[8..]),
        2 => {
            let (size, length) = varint(rest);
            let end = length + size as usize;
            (number, 0, &rest[length..end], &rest[end..])
        }
        5 => (number, 0, &rest[..4], &rest[4..]),
        other => panic!("wire type {other}"),
    }
}

fn fields(mut bytes: &[u8]) -> Vec<(u8, u64, &[u8])> {
    let mut all = vec![];
    while !bytes.is_empty() {
        let (number, value, content, rest) = field(bytes);
        all.push((number, value, content));
        bytes = rest;
    }
    all
}

fn event(bytes: &[u8]) -> Read {
    let mut step = 0;
    for (number, value, content) in fields(bytes) {
        match number {
            1 => assert!(f64::from_le_bytes(content.try_into().unwrap()) > 1.7e9, "after 2023"),
            2 => step = value,
            3 => return Read::Version,
            5 => {
                let scalar = |bytes| {
                    let parts = fields(bytes);
                    let tag = String::from_utf8(parts[0].2.to_vec()).unwrap();
                    (tag, f32::from_le_bytes(parts[1].2.try_into().unwrap()))
                };
                return Read::Scalars(step, fields(content).into_iter().map(|(_, _, value)| scalar(value)).collect());
            }
            7 => return Read::Start(step),
            other => panic!("field {other}"),
        }
    }
    panic!("an event without content");
}

/// The records of each file of a folder, in the order of the names.
fn read(folder: &Path) -> Vec<Vec<Read>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    let records = |path: &PathBuf| {
        let (bytes, mut at, mut records) = (fs::read(path).unwrap(), 0, vec![]);
        while at < bytes.len() {
            let size = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            records.push(event(&bytes[at + 12..at + 12 + size]));
            at += size + 16;
        }
        records
    };
    files.iter().map(records).collect()
}

fn scalars(step: u64, values: &[(&str, f32)]) -> Read {
    Read::Scalars(step, values.iter().map(|(tag, value)| (tag.to_string(), *value)).collect())
}

fn of_step(run_step: usize, loss: f32) -> Read {
    let values = [("train/loss", loss), ("train/lr", 0.01), ("train/gradient_norm", 3.0)];
    scalars(run_step as u64, &values)
}

#[test]
fn steps_and_epochs_are_scalars_at_the_step_of_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("logs/run");
    let mut hear = tensorboard(&folder).unwrap();
    assert_eq!(read(&folder), [[Read::Version]]);
    hear(&Event::Start(&started(Metric::MacroF1)));
    hear(&Event::HeadFit(&head_fit()));
    hear(&step(1, 0.5));
    hear(&step(2, 0.25));
    hear(&Event::Epoch(&epoch(1, Some(2.0))));
    hear(&Event::Epoch(&epoch(2, None)));
    let validated = [
        ("epoch/train_loss", 0.5),
        ("epoch/train_top1", 0.75),
        ("valid/loss", 2.0),
        ("valid/top1", 0.25),
        ("valid/macro_f1", 0.125),
    ];
    let expected = [
        Read::Version,
        Read::Start(0),
        scalars(0, &[("valid/loss", 0.5), ("valid/top1", 0.75)]),
        of_step(1, 0.5),
        of_step(2, 0.25),
        scalars(2, &validated),
        scalars(2, &[("epoch/train_loss", 0.5)]),
    ];
    assert_eq!(read(&folder), [expected]);
}

#[test]
fn the_loss_as_the_metric_has_one_tag() {
    let dir = tempfile::tempdir().unwrap();
    for metric in [Metric::Loss, Metric::Top1] {
        let folder = dir.path().join(metric.name());
        let mut hear = tensorboard(&folder).unwrap();
        hear(&Event::Start(&started(metric)));
        hear(&Event::Epoch(&epoch(1, Some(2.0))));
        let Read::Scalars(_, values) = &read(&folder)[0][2] else { panic!() };
        assert_eq!(values.len(), 4, "{values:?}");
    }
}

#[test]
fn a_run_that_resumes_writes_a_further_file_that_starts_after_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let report = started(Metric::Top1);
    let mut killed = tensorboard(dir.path()).unwrap();
    killed(&Event::Start(&report));
    (1..=3).for_each(|number| killed(&step(number, 1.0)));
    // Within the same second, and still behind the first file.
    let mut resumed = tensorboard(dir.path()).unwrap();
    resumed(&Event::Start(&report));
    resumed(&Event::Phase { phase: 1, phases: 1, frozen_blocks: 0 });
    resumed(&Event::Resumed { step: 1 });
    (2..=3).for_each(|number| resumed(&step(number, 2.0)));
    let first = vec![Read::Version, Read::Start(0), of_step(1, 1.0), of_step(2, 1.0), of_step(3, 1.0)];
    let second = vec![Read::Version, Read::Start(2), of_step(2, 2.0), of_step(3, 2.0)];
    assert_eq!(read(dir.path()), [first, second]);
}

#[test]
fn further_runs_have_their_own_folders() {
    let dir = tempfile::tempdir().unwrap();
    let report = started(Metric::Top1);
    let mut hear = tensorboard(dir.path()).unwrap();
    for run in 1..=3 {
        hear(&Event::Start(&report));
        hear(&step(1, run as f32 as f64));
    }
    for (folder, loss) in
        [(dir.path().to_path_buf(), 1.0), (dir.path().join("run_2"), 2.0), (dir.path().join("run_3"), 3.0)]
    {
        assert_eq!(read(&folder), [[Read::Version, Read::Start(0), of_step(1, loss)]]);
    }
}

#[test]
fn a_folder_that_cannot_be_is_an_error_and_a_lost_one_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = tensorboard(&file).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == file), "{error}");
    let mut hear = tensorboard(dir.path()).unwrap();
    fs::write(dir.path().join("run_2"), "").unwrap();
    let report = started(Metric::Top1);
    for _ in 0..3 {
        hear(&Event::Start(&report));
        hear(&step(1, 1.0));
    }
    assert_eq!(read(&dir.path().join("run_3")), [[Read::Version, Read::Start(0), of_step(1, 1.0)]]);
}
