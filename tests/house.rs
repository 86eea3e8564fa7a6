//! Rules of the source itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Lower floors first; a room uses its own floor and those below.
const FLOORS: [&[&str]; 8] = [
    &["error", "fingerprint", "rng", "schedule", "metrics"],
    &["ops"],
    &["nn", "params"],
    &["arch", "weights", "embedded"],
    &["backbone", "head", "freeze", "hub"],
    &["data", "loss", "optim"],
    &["plan", "strategy", "forecast", "train", "predict"],
    &["lib", "bench", "fuzzing"],
];

const MOST_LINES: usize = 400;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file with its text.
fn files() -> Vec<(PathBuf, String)> {
    let (mut folders, mut files) = (vec![source()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files.sort();
    assert!(files.len() > 40);
    files
}

/// The room that a file belongs to: the first part of its path.
fn room(path: &Path) -> String {
    let path = path.strip_prefix(source()).unwrap().with_extension("");
    path.iter().next().unwrap().to_str().unwrap().to_string()
}

fn floor(room: &str) -> usize {
    FLOORS.iter().position(|f| f.contains(&room)).unwrap_or_else(|| panic!("{room} has no floor: add it to FLOORS"))
}

/// The code alone: no comments, and nothing from the tests on.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// What lib.rs re-exports, and from which room.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for item in code(lib).split("pub use ").skip(1) {
        let item = item.split(';').next().unwrap();
        let Some((room, names)) = item.split_once("::") else { continue };
        for name in names.trim_matches(['{', '}', '\n', ' ']).split(',') {
            exports.insert(name.trim().to_string(), room.to_string());
        }
    }
    assert_eq!(exports["Backbone"], "backbone");
    exports
}

/// The first words after every `crate::` of the code, groups in braces taken apart.
fn uses(code: &str) -> Vec<String> {
    let mut words = vec![];
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut word) = (0, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => words.push(std::mem::take(&mut word)),
                    c => word.push(c),
                }
            }
            words.push(word);
        } else {
            words.push(rest.to_string());
        }
    }
    let first =
        |word: String| word.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_string();
    words.into_iter().map(first).filter(|word| !word.is_empty()).collect()
}

#[test]
fn the_parser_of_this_test_sees_all_forms() {
    let text = "use crate::{Error, ops::{a, b}, train};\nlet x = crate::params::Slot; // crate::no\n";
    assert_eq!(uses(&code(text)), ["Error", "ops", "train", "params"]);
}

#[test]
fn lower_floors_never_import_higher_ones() {
    let files = files();
    let lib = &files.iter().find(|(path, _)| path.ends_with("src/lib.rs")).unwrap().1;
    let exports = exports(lib);
    let mut wrong = vec![];
    for (path, text) in files.iter().filter(|(path, _)| room(path) != "lib" && !path.ends_with("tests.rs")) {
        let here = room(path);
        for word in uses(&code(text)) {
            let there = exports.get(&word).unwrap_or(&word);
            if floor(there) > floor(&here) {
                wrong.push(format!("{} uses {word} of {there}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_in_ops_alone() {
    let mut seen = 0;
    for (path, text) in files() {
        let code = code(&text);
        let found = code.contains("unsafe ") || code.contains("unsafe{") || code.contains("allow(unsafe_code)");
        seen += usize::from(found);
        assert!(!found || room(&path) == "ops", "{} has unsafe code", path.display());
    }
    assert!(seen > 0, "the search itself is broken");
}

#[test]
fn files_are_not_too_long() {
    let long = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().count();
        (lines > MOST_LINES).then(|| format!("{}: {lines} lines", path.display()))
    };
    let long: Vec<String> = files().iter().filter_map(long).collect();
    assert!(long.is_empty(), "files that want splitting: {long:#?}");
}

#[test]
fn no_folder_has_a_mod_file() {
    assert!(files().iter().all(|(path, _)| !path.ends_with("mod.rs")));
}
