//! The public names of the crate, as a list that is kept: a change of the API shows in `tests/public_api.txt`.
//!
//! The list is read from the sources, and so is the same whatever the features are. It relies on rustfmt's layout:
//! items begin in the first column, what they hold after four spaces.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Set to `write`, the list is written anew.
const RENEW: &str = "PUBLIC_API";

/// A source file: its top-level module and its code without comments and unit tests.
struct File {
    module: String,
    code: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files() -> Vec<File> {
    let src = root().join("src");
    let (mut folders, mut files) = (vec![src.clone()], vec![]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push(File { module: module(&src, &path), code: code(&text) });
            }
        }
    }
    assert!(files.len() > 40);
    files
}

/// The first part of a file's path below `src`.
fn module(src: &Path, path: &Path) -> String {
    let path = path.strip_prefix(src).unwrap().with_extension("");
    path.iter().next().unwrap().to_str().unwrap().to_string()
}

fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.fold(String::new(), |code, line| code + line.split(" // ").next().unwrap() + "\n");
    // Items from a macro are indented by eight spaces.
    let Some((before, made)) = code.split_once("\nmacro_rules! ").filter(|(_, made)| made.contains("pub enum")) else {
        return code;
    };
    let (made, after) = made.split_once("\n}\n").unwrap();
    let made: String =
        made.lines().map(|line| line.strip_prefix("        ").unwrap_or(line).to_string() + "\n").collect();
    format!("{before}\n{made}\n{after}")
}

/// Every `pub use module::{names};` of lib.rs: (module, name).
fn exports(lib: &str) -> Vec<(String, String)> {
    let mut exports = vec![];
    for item in lib.split("pub use ").skip(1) {
        let Some((module, names)) = item.split(';').next().unwrap().split_once("::") else { continue };
        for name in names.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty()) {
            exports.push((module.to_string(), name.to_string()));
        }
    }
    exports
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `text` holds `name` as a whole word.
fn has_word(text: &str, name: &str) -> bool {
    text.split(|c: char| !is_name(c)).any(|word| word == name)
}

/// The head of an item, up to its body, on one line: `pub fn plan(self, samples: usize) -> Plan`.
fn head(lines: &[&str]) -> String {
    let mut head = String::new();
    for line in lines {
        let line = line.trim();
        let end = line.ends_with('{') || line.ends_with(';') || line.ends_with('}');
        head.extend([line, " "]);
        if end {
            break;
        }
    }
    let head = head.split(" {").next().unwrap().trim_end_matches([';', ',', ' ']);
    // A parameter's `mut` is no part of the signature, nor is the path of a type.
    head.replace("( ", "(")
        .replace(", )", ")")
        .replace("(mut ", "(")
        .replace(", mut ", ", ")
        .replace("crate::", "")
        .replace("std::fmt::", "")
        .replace("fmt::", "")
}

/// The lines of the item that begins at `lines[0]`, without its head and end.
fn body<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let Some(open) = lines.iter().position(|line| line.ends_with(['{', ';', '}'])) else { return vec![] };
    if !lines[open].ends_with('{') {
        return vec![];
    }
    lines[open + 1..].iter().take_while(|line| !line.starts_with('}')).copied().collect()
}

/// The traits that are derived by the attributes before `lines[at]`.
fn derives(lines: &[&str], at: usize) -> String {
    let mut names = BTreeSet::new();
    for line in lines[..at].iter().rev().take_while(|line| line.starts_with("#[")) {
        let Some(list) = line.strip_prefix("#[derive(") else { continue };
        names.extend(list.trim_end_matches(")]").split(", ").map(|path| path.rsplit("::").next().unwrap()));
    }
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// The public parts of an exported name's definition: the item, its public fields, variants or functions.
fn definition(name: &str, lines: &[&str], found: &mut BTreeSet<String>) -> bool {
    let starts = |line: &str, kind: &str| {
        let mut words = line.splitn(3, ' ');
        (words.next(), words.next()) == (Some("pub"), Some(kind))
            && words.next().is_some_and(|rest| rest.split(|c| !is_name(c)).next() == Some(name))
    };
    let kinds = ["struct", "enum", "trait", "type", "fn"];
    let Some((at, kind)) = lines
        .iter()
        .enumerate()
        .find_map(|(at, line)| kinds.iter().find(|kind| starts(line, kind)).map(|kind| (at, *kind)))
    else {
        return false;
    };
    let item = head(&lines[at..]);
    let item = item.trim_start_matches("pub ");
    // The fields of tuples are private here.
    let item = if kind == "struct" { item.split('(').next().unwrap() } else { item };
    let derived = derives(lines, at);
    found.insert(if derived.is_empty() { item.to_string() } else { format!("{item}: {derived}") });
    let body = body(&lines[at..]);
    match kind {
        "struct" => {
            let fields = body.iter().filter_map(|line| line.strip_prefix("    pub "));
            found.extend(fields.map(|field| format!("{name}.{}", field.trim_end_matches(','))));
        }
        "enum" => {
            for (i, line) in body.iter().enumerate() {
                let Some(variant) = line.strip_prefix("    ").filter(|v| v.starts_with(char::is_uppercase)) else {
                    continue;
                };
                let fields = body[i + 1..].iter().take_while(|_| variant.ends_with('{'));
                let fields = fields.take_while(|line| line.starts_with("        ")).map(|line| line.trim());
                let fields: Vec<&str> = fields.filter(|line| !line.starts_with("#[")).collect();
                let variant = variant.trim_end_matches(['{', ',', ' ']);
                let variant =
                    if fields.is_empty() { variant.into() } else { format!("{variant} {{ {} }}", fields.join(" ")) };
                found.insert(format!("{name}::{}", variant.replace(", }", " }").replace("#[source] ", "")));
            }
        }
        "trait" => functions(name, &body, "    fn ", found),
        _ => {}
    }
    true
}

/// The functions and constants of a body that begin with `start`.
fn functions(name: &str, body: &[&str], start: &str, found: &mut BTreeSet<String>) {
    for (i, line) in body.iter().enumerate() {
        if line.starts_with(start) {
            let head = head(&body[i..]);
            found.insert(format!("{name}::{}", head.trim_start_matches("pub ").trim_start_matches("fn ")));
        } else if let Some(constant) = line.strip_prefix("    pub const ").filter(|c| !c.starts_with("fn ")) {
            found.insert(format!("{name}::{}", constant.split(" =").next().unwrap()));
        }
    }
}

/// The public parts of an exported name's impl blocks: public functions, constants, and the traits it has.
fn blocks(name: &str, lines: &[&str], found: &mut BTreeSet<String>) {
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("impl")) {
        let head = head(&lines[at..]);
        let (of, of_trait) = head.split_once(" for ").map_or((head.as_str(), None), |(t, of)| (of, Some(t)));
        // `impl<T> Name<T>`: the name is the first word after the parameters.
        let of = of.trim_start_matches("impl");
        let of = if of.starts_with('<') { of.split_once("> ").map_or("", |(_, of)| of) } else { of.trim_start() };
        if of.split(|c| !is_name(c)).next() != Some(name) {
            continue;
        }
        // Conversions from private types are how some are read.
        let private = |word: &str| lines.iter().any(|line| is_private(line, word));
        match of_trait {
            Some(_) if head.split(|c| !is_name(c)).any(private) => {}
            Some(_) => drop(found.insert(head)),
            None => functions(name, &body(&lines[at..]), "    pub fn ", found),
        }
    }
}

/// Whether a line begins the definition of a private type of this name.
fn is_private(line: &str, name: &str) -> bool {
    ["struct ", "enum ", "type "]
        .iter()
        .any(|kind| line.strip_prefix(kind).is_some_and(|rest| rest.split(|c| !is_name(c)).next() == Some(name)))
}

/// The metrics, which a macro makes variants of: `    Loss, "loss", false, ..;`.
fn metrics(code: &str, found: &mut BTreeSet<String>) {
    let table = code.split("\nmetrics! {\n").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or("");
    let names = table.lines().filter_map(|line| line.trim().trim_start_matches("#[default] ").split_once(", "));
    found.extend(names.map(|(name, _)| format!("Metric::{name}")));
}

/// The architectures, which a macro makes constants of: `    RESNET18 = resnet::RESNET18;`.
fn architectures(code: &str, found: &mut BTreeSet<String>) {
    let table = code.split("\nrows! {\n").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or("");
    let names = table.lines().filter_map(|line| line.split_once(" = "));
    found.extend(names.map(|(name, _)| format!("Arch::{}: Self", name.trim())));
}

fn public_api() -> BTreeSet<String> {
    let files = files();
    let lib = files.iter().find(|file| file.module == "lib").unwrap();
    let mut found = BTreeSet::new();
    for file in &files {
        architectures(&file.code, &mut found);
        metrics(&file.code, &mut found);
    }
    for (module, name) in exports(&lib.code) {
        let mut defined = 0;
        for file in &files {
            let here = file.module == module;
            let import = format!("use crate::{module}::");
            let imports =
                || file.code.split(&import).skip(1).any(|rest| has_word(rest.split(';').next().unwrap(), &name));
            let lines: Vec<&str> = file.code.lines().collect();
            defined += usize::from(here && definition(&name, &lines, &mut found));
            if here || imports() {
                blocks(&name, &lines, &mut found);
            }
        }
        assert_eq!(defined, 1, "{module}::{name} is defined in {defined} places");
    }
    found
}

#[test]
fn the_public_api_is_the_one_that_is_written_down() {
    let found: String = public_api().into_iter().map(|line| line + "\n").collect();
    let path = root().join("tests/public_api.txt");
    if std::env::var(RENEW).is_ok_and(|value| value == "write") {
        std::fs::write(&path, &found).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let [old, new] = [&kept, &found].map(|text| text.lines().collect::<BTreeSet<_>>());
    let mut changes = String::new();
    for (sign, lines) in [("-", old.difference(&new)), ("+", new.difference(&old))] {
        lines.for_each(|line| changes.extend([sign, " ", *line, "\n"]));
    }
    assert!(
        kept == found,
        "the public API is not that of tests/public_api.txt:\n{changes}If this is meant, say it in CHANGELOG.md and renew \
         the list: {RENEW}=write cargo test --test main -- api::"
    );
}

#[test]
fn the_list_holds_every_kind_of_name() {
    let api = public_api();
    for line in [
        "enum Init: Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize",
        "Init::Random",
        "HeadKind::Mlp(usize)",
        "Plan.batch_size: usize",
        "Plan::batch_size(self, batch_size: usize) -> Self",
        "impl Display for Plan",
        "Arch::RESNET18: Self",
        "Metric::BalancedAccuracy",
        "Metric::compare(self, a: f64, b: f64) -> Ordering",
        "Session::step(&mut self, batch: &Batch) -> Result<f64>",
        "trait Dataset: Send + Sync",
        "InputSpec::IMAGENET_MEAN: [f32; 3]",
    ] {
        assert!(api.contains(line), "{line} is not in {api:#?}");
    }
    // From another module than its own, of a function over several lines, and behind a feature.
    for start in ["Plan::forecast(&self, backbone: &Backbone, ", "FineTuner::fit<D, V>(self, ", "Backbone::from_hub("] {
        assert!(api.iter().any(|line| line.starts_with(start)), "{start} is not in {api:#?}");
    }
    // Nothing private: of the crate, of unit tests, of private types with the name of a public one.
    for line in &api {
        let private = ["pub(", "Plan::with_names", "Unchecked"];
        assert!(!private.iter().any(|word| line.contains(word)), "{line}");
    }
}
