//! Rules for the source code.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod imports;

/// The modules, the lowest floor first, each with what it is. A module imports from its own floor and from lower ones.
/// This is the one list: DESIGN.md and CONTRIBUTING.md quote it.
const FLOORS: &[&[(&str, &str)]] = &[
    &[
        ("error", "every error, with the thing that is wrong and the remedy"),
        ("fingerprint", "one stable hash for samples, settings and weights"),
        ("rng", "random streams that a seed and a name determine"),
        ("schedule", "learning rates over time"),
        ("input_spec", "how images are prepared for a network"),
    ],
    &[("ops", "operations and their gradients; the only place for unsafe code and for memory layouts")],
    &[("params", "the tensors of a network, with their roles and facts"), ("nn", "layers, made of operations")],
    &[("blueprint", "a network without weights")],
    &[
        ("arch", "the crate's architectures, as rows of facts"),
        ("zoo", "networks of candle-transformers, as rows of facts"),
        ("weights", "readers and writers of tensor files"),
    ],
    &[("backbone", "a blueprint with weights"), ("head", "the new classifier"), ("freeze", "what stays frozen")],
    &[("source", "where weights come from: file, folder, hub, the crate itself")],
    &[
        ("data", "datasets, images, transforms, batches"),
        ("loss", "losses"),
        ("metrics", "scores and metrics of predictions"),
        ("optim", "optimizers, as plain data"),
    ],
    &[
        ("plan", "the training recipe, as plain data"),
        ("strategy", "the recipes of transfer learning"),
        ("forecast", "memory and work of a training, known before it runs"),
    ],
    &[
        ("features", "the output of frozen blocks, computed once and cached"),
        ("probe", "classifiers in closed form: to measure features, and as heads"),
    ],
    &[("advisor", "measures a dataset and advises a strategy")],
    &[("inference", "a frozen network over data"), ("report", "the results of a run")],
    &[("predict", "predictors: labels for images, saved and loaded")],
    &[("train", "the training loop, its state and its audit")],
    &[("plots", "pictures of what a network has learned, and the page of a run")],
    &[("lib", "the public names"), ("bench", "what the benchmarks call"), ("fuzzing", "what the fuzzers call")],
];

const MOST_LINES: usize = 400;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file with its text.
fn files() -> Vec<(PathBuf, String)> {
    let files = files_under(source());
    assert!(files.len() > 40);
    files
}

/// Every Rust file under a folder with its text; what a build left is none of them.
fn files_under(folder: PathBuf) -> Vec<(PathBuf, String)> {
    let (mut folders, mut files) = (vec![folder], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files.sort();
    files
}

/// The module that a file belongs to: the first part of its path.
fn module(path: &Path) -> String {
    let path = path.strip_prefix(source()).unwrap().with_extension("");
    path.iter().next().unwrap().to_str().unwrap().to_string()
}

fn floor(module: &str) -> usize {
    FLOORS
        .iter()
        .position(|f| f.iter().any(|(name, _)| *name == module))
        .unwrap_or_else(|| panic!("{module} has no floor: add it to FLOORS"))
}

/// The code without comments and without the tests at the end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The items that lib.rs re-exports, and their modules.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for item in code(lib).split("pub use ").skip(1) {
        let item = item.split(';').next().unwrap();
        let Some((module, names)) = item.split_once("::") else { continue };
        for name in names.trim_matches(['{', '}', '\n', ' ']).split(',') {
            exports.insert(name.trim().to_string(), module.to_string());
        }
    }
    assert_eq!(exports["Backbone"], "backbone");
    exports
}

/// The first word after every `crate::` of the code, with groups in braces expanded.
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
    for (path, text) in files.iter().filter(|(path, _)| module(path) != "lib" && !path.ends_with("tests.rs")) {
        let here = module(path);
        for word in uses(&code(text)) {
            let there = exports.get(&word).unwrap_or(&word);
            if floor(there) > floor(&here) {
                wrong.push(format!("{} uses {word} of {there}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The list as the documents quote it: a line per floor.
fn quoted() -> String {
    let line = |floor: &&[(&str, &str)]| floor.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    FLOORS.iter().map(|floor| line(floor) + "\n").collect()
}

#[test]
fn the_documents_quote_the_floors() {
    for document in ["DESIGN.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
        let block = format!("```text\n{}```\n", quoted());
        assert!(text.contains(&block), "{document} does not quote the floors as they are:\n{block}");
    }
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("CONTRIBUTING.md")).unwrap();
    for (name, what) in FLOORS.iter().copied().flatten() {
        assert!(text.contains(&format!("| `{name}` | {what} |\n")), "CONTRIBUTING.md lacks: | `{name}` | {what} |");
    }
}

#[test]
fn every_module_has_a_floor() {
    let modules: std::collections::BTreeSet<String> = files().iter().map(|(path, _)| module(path)).collect();
    let known: std::collections::BTreeSet<String> =
        FLOORS.iter().copied().flatten().map(|(name, _)| name.to_string()).collect();
    assert_eq!(modules, known);
}

#[test]
fn unsafe_stands_in_ops_alone() {
    let mut seen = 0;
    for (path, text) in files() {
        let code = code(&text);
        let found = code.contains("unsafe ") || code.contains("unsafe{") || code.contains("allow(unsafe_code)");
        seen += usize::from(found);
        assert!(!found || module(&path) == "ops", "{} has unsafe code", path.display());
    }
    assert!(seen > 0, "the search itself is broken");
}

#[test]
fn files_are_not_too_long() {
    let long = |(path, text): &(PathBuf, String)| {
        let lines = text.lines().count();
        (lines > MOST_LINES).then(|| format!("{}: {lines} lines", path.display()))
    };
    let mut all = files();
    for folder in ["tests", "examples", "benches"] {
        all.extend(files_under(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)));
    }
    let long: Vec<String> = all.iter().filter_map(long).collect();
    assert!(long.is_empty(), "files to split: {long:#?}");
}

#[test]
fn no_folder_has_a_mod_file() {
    assert!(files().iter().all(|(path, _)| !path.ends_with("mod.rs")));
}
