//! Which file imports which: no file imports itself through others, so the files have a strict order.

use super::{code, files, source};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Circles that stay, each with its reason. There is none.
const CIRCLES: [&[&str]; 0] = [];

/// The module path of a file, `ops/op/conv.rs` in three parts; of lib.rs the empty one.
fn module(path: &Path) -> Vec<String> {
    let path = path.strip_prefix(source()).unwrap().with_extension("");
    let parts: Vec<String> = path.iter().map(|part| part.to_str().unwrap().to_string()).collect();
    if parts == ["lib"] { vec![] } else { parts }
}

/// The paths of a `use`, with its groups in braces expanded.
fn expand(prefix: &str, item: &str, paths: &mut Vec<String>) {
    let item = item.trim();
    let Some(open) = item.find('{') else {
        let path = format!("{prefix}{item}");
        paths.push(path.split(" as ").next().unwrap().trim().to_string());
        return;
    };
    let (head, group) = (format!("{prefix}{}", &item[..open]), &item[open + 1..item.rfind('}').unwrap()]);
    let (mut depth, mut from) = (0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !group[from..at].trim().is_empty() {
                    expand(&head, &group[from..at], paths);
                }
                from = at + 1;
            }
            _ => {}
        }
    }
}

/// Whether this is what a `use` imports, and not a sentence with that word.
fn is_path(item: &str) -> bool {
    let open = item.matches('{').count();
    item.chars().all(|c| c.is_alphanumeric() || "_:{}, *".contains(c)) && open == item.matches('}').count()
}

/// The private imports of a file's code: a `pub use` is a module's own face.
fn imports(code: &str) -> Vec<String> {
    let mut paths = vec![];
    for (at, _) in code.match_indices("use ") {
        let line = code[..at].rsplit('\n').next().unwrap();
        let item = code[at + 4..].split(';').next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.trim().is_empty() && is_path(&item) {
            expand("", &item, &mut paths);
        }
    }
    paths
}

/// The file of `module` or, for a name that its face re-exports, the file that defines it.
fn defining(files: &BTreeMap<Vec<String>, String>, module: &[String], name: Option<&str>) -> Vec<String> {
    let Some(name) = name else { return module.to_vec() };
    for item in files[module].split("use ").skip(1) {
        let mut paths = vec![];
        let item = item.split(';').next().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        if is_path(&item) {
            expand("", &item, &mut paths);
        }
        for path in paths {
            let parts: Vec<&str> = path.trim_start_matches("self::").split("::").collect();
            let inner: Vec<String> = module.iter().cloned().chain([parts[0].to_string()]).collect();
            if parts.len() > 1 && parts.last() == Some(&name) && files.contains_key(&inner) {
                return inner;
            }
        }
    }
    module.to_vec()
}

/// For each file, the files that it imports.
fn graph(files: &BTreeMap<Vec<String>, String>) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let of = |(me, code): (&Vec<String>, &String)| {
        let mut edges = BTreeSet::new();
        for path in imports(code) {
            let mut parts: Vec<&str> = path.split("::").collect();
            let mut base: Vec<String> = match parts[0] {
                "crate" => vec![],
                "super" | "self" => me.clone(),
                _ => continue,
            };
            while let Some(first @ ("crate" | "super" | "self")) = parts.first().copied() {
                if first == "super" {
                    base.pop();
                }
                parts.remove(0);
            }
            let joined: Vec<String> = base.into_iter().chain(parts.iter().map(ToString::to_string)).collect();
            let Some(n) = (1..=joined.len()).rev().find(|&n| files.contains_key(&joined[..n])) else { continue };
            let target = defining(files, &joined[..n], joined.get(n).map(String::as_str));
            if target != *me {
                edges.insert(target);
            }
        }
        (me.clone(), edges)
    };
    files.iter().map(of).collect()
}

/// The files that import themselves through others: what is left when files without imports are taken away again and
/// again, from either end.
fn circular(mut graph: BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> BTreeSet<Vec<String>> {
    loop {
        let imported: BTreeSet<Vec<String>> = graph.values().flatten().cloned().collect();
        let free: Vec<Vec<String>> = graph
            .iter()
            .filter(|(file, imports)| imports.is_empty() || !imported.contains(*file))
            .map(|(file, _)| file.clone())
            .collect();
        if free.is_empty() {
            return graph.into_keys().collect();
        }
        for file in free {
            graph.remove(&file);
            graph.values_mut().for_each(|imports| imports.retain(|other| *other != file));
        }
    }
}

fn sources() -> BTreeMap<Vec<String>, String> {
    let tests = |path: &Path| path.ends_with("tests.rs") || path.iter().any(|part| part == "tests");
    let inside = |path: &Path| path.strip_prefix(source()).unwrap().to_path_buf();
    files().iter().filter(|(path, _)| !tests(&inside(path))).map(|(path, text)| (module(path), code(text))).collect()
}

#[test]
fn no_file_imports_itself_through_others() {
    let sources = sources();
    let graph = graph(&sources);
    let edges: usize = graph.values().map(BTreeSet::len).sum();
    assert!(edges > 2 * graph.len(), "the search itself is broken: {edges} imports");
    let found: BTreeSet<String> = circular(graph).into_iter().map(|file| file.join("/") + ".rs").collect();
    let known: BTreeSet<String> = CIRCLES.iter().flat_map(|circle| circle.iter().map(ToString::to_string)).collect();
    assert_eq!(found, known, "files in circles");
}

#[test]
fn circles_are_found_through_groups_faces_and_others() {
    let files: BTreeMap<Vec<String>, String> = [
        ("", "mod a; mod b;"),
        ("a", "mod inner;\npub use inner::{Thing, Other};\n"),
        ("a/inner", "use crate::{\n    b::B,\n    c::C,\n};\n"),
        ("b", "use super::a::Thing;\n"),
        ("c", "use std::fmt;\n"),
    ]
    .map(|(path, text)| (path.split('/').filter(|p| !p.is_empty()).map(String::from).collect(), text.to_string()))
    .into();
    let graph = graph(&files);
    let names = |files: &BTreeSet<Vec<String>>| files.iter().map(|file| file.join("/")).collect::<Vec<_>>();
    assert_eq!(names(&graph[&vec!["a".to_string(), "inner".to_string()]]), ["b", "c"]);
    assert_eq!(names(&circular(graph)), ["a/inner", "b"]);
}
