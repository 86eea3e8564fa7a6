use std::fs;
use std::process::{Command, Stdio};

use super::*;
use crate::weights::tests::{folder, sample};

/// The header of the sample file, as the first version of the crate wrote it: names in order, wide elements first.
const HEADER: &str = concat!(
    r#"{"__metadata__":{"candle_finetune":"{\"n\":1}","format":"pt"},"#,
    r#""a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[24,48]},"#,
    r#""b.double":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},"#,
    r#""c.transposed":{"dtype":"F32","shape":[3,2],"data_offsets":[48,72]},"#,
    r#""d.count":{"dtype":"I64","shape":[],"data_offsets":[16,24]},"#,
    r#""e.bytes":{"dtype":"U8","shape":[3],"data_offsets":[72,75]},"#,
    r#""f.empty":{"dtype":"F32","shape":[0,4],"data_offsets":[72,72]}}"#,
);

/// The bytes that the sample file has had since the first version of the crate.
fn expected() -> Vec<u8> {
    let mut header = HEADER.to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let doubles = [0.1f64, -2.].map(f64::to_le_bytes).concat();
    let floats = [0f32, 1., 2., 3., 4., 5., 0., 3., 1., 4., 2., 5.].map(f32::to_le_bytes).concat();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &doubles, &7i64.to_le_bytes(), &floats, &[1, 2, 255]].concat()
}

/// Hash maps iterate in another order in every process. None may decide the order of bytes.
#[test]
fn twenty_processes_write_the_same_bytes() {
    const TARGET: &str = "CANDLE_FINETUNE_TEST_TARGET";
    if let Some(path) = std::env::var_os(TARGET) {
        return write(path.as_ref(), &sample(), Some("{\"n\":1}")).unwrap();
    }
    let dir = folder();
    let write_in_a_process = |i: usize| {
        let path = dir.path().join(i.to_string());
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "weights::write::tests::twenty_processes_write_the_same_bytes"])
            .env(TARGET, &path)
            .stdout(Stdio::null())
            .spawn();
        (path, child.unwrap())
    };
    let children: Vec<_> = (0..20).map(write_in_a_process).collect();
    for (path, mut child) in children {
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read(&path).unwrap(), expected(), "{}", path.display());
    }
}
