//! The names in README.md and examples/README.md: architectures, strategies, examples.

use candle_finetune::{Arch, Strategy};
use std::fs;
use std::path::{Path, PathBuf};

const README: &str = include_str!("../README.md");

#[test]
fn the_readme_lists_every_architecture_with_its_features_and_pixels() {
    // An empty first cell continues the family above.
    let rows: Vec<Vec<&str>> =
        README.lines().filter(|l| l.starts_with('|')).map(|l| l.split('|').map(str::trim).collect()).collect();
    for arch in Arch::all() {
        let name = format!("`{arch}`");
        let row = rows.iter().find(|row| row.len() == 6 && row[2].split(' ').any(|n| n == name));
        let row = row.unwrap_or_else(|| panic!("{arch} is not in the table"));
        assert_eq!(row[3].parse(), Ok(arch.feature_dim()), "{arch}");
        assert_eq!(row[4].parse(), Ok(arch.input_spec().size.0), "{arch}");
    }
    let listed: usize = rows.iter().filter(|row| row.len() == 6).map(|row| row[2].matches('`').count() / 2).sum();
    assert_eq!(listed, Arch::all().len(), "the table has names of no architecture");
}

#[test]
fn the_readme_explains_every_strategy() {
    for strategy in Strategy::ALL {
        assert!(README.contains(&format!("`{strategy:?}`:")), "{strategy:?}");
    }
}

/// An example, as the comment at the top of its file describes it.
struct Example {
    name: String,
    /// The first paragraph.
    what: String,
    /// The first command.
    command: String,
}

impl Example {
    fn parse(name: &str, text: &str) -> Self {
        let head: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
        let paragraph: Vec<&str> = head.iter().take_while(|line| !line.is_empty()).copied().collect();
        let block = head.iter().skip_while(|line| !line.starts_with("```")).skip(1).take_while(|line| **line != "```");
        let commands = block.copied().collect::<Vec<_>>().join("\n").replace("\\\n", "");
        let command = commands.lines().next().unwrap_or_default().to_string();
        let what = paragraph.join(" ");
        assert!(what.ends_with('.') && !what.contains('|'), "{name}: {what:?} is no paragraph for a table");
        let begins = format!("cargo run --release --example {name}");
        assert!(command.starts_with(&begins), "{name}: {command:?} does not begin with {begins:?}");
        Self { name: name.into(), what, command }
    }
}

/// All examples, by name.
fn examples() -> Vec<Example> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "rs"));
    paths.sort();
    assert!(paths.len() > 10);
    let example = |path: &PathBuf| {
        Example::parse(path.file_stem().unwrap().to_str().unwrap(), &fs::read_to_string(path).unwrap())
    };
    paths.iter().map(example).collect()
}

/// The text with other rows in the table that begins with `head`, a title and a rule.
fn with_rows(text: &str, head: &str, rows: &[String]) -> String {
    let (before, after) = text.split_once(head).unwrap_or_else(|| panic!("there is no table {head}"));
    let rest: String = after.split_inclusive('\n').skip_while(|line| line.starts_with('|')).collect();
    format!("{before}{head}{}{rest}", rows.concat())
}

/// Compares a table with its rows as they should be, or writes them where `UPDATE_TABLES` is set.
fn check_table(file: &str, head: &str, rows: &[String]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let found = fs::read_to_string(&path).unwrap();
    let expected = with_rows(&found, head, rows);
    if std::env::var_os("UPDATE_TABLES").is_some() {
        fs::write(&path, &expected).unwrap();
    } else {
        let update = "UPDATE_TABLES=1 cargo test --test main readme";
        assert!(found == expected, "{file}: the table is not that of the examples' heads; {update} writes it");
    }
}

#[test]
fn the_tables_of_examples_are_those_of_their_heads() {
    let examples = examples();
    let rows: Vec<String> = examples.iter().map(|e| format!("| `{}` | {} |\n", e.name, e.what)).collect();
    check_table("README.md", "| example | what it does |\n|---|---|\n", &rows);
    let row = |e: &Example| format!("| [`{0}`]({0}.rs) | {1} | `{2}` |\n", e.name, e.what, e.command);
    let rows: Vec<String> = examples.iter().map(row).collect();
    check_table("examples/README.md", "| example | what it does | command |\n|---|---|---|\n", &rows);
}

#[test]
fn a_table_that_differs_is_noticed() {
    let head = "| a |\n|---|\n";
    let text = "before\n\n| a |\n|---|\n| old |\n| older |\n\nafter\n| another |\n";
    let expected = "before\n\n| a |\n|---|\n| new |\n\nafter\n| another |\n";
    assert_eq!(with_rows(text, head, &["| new |\n".into()]), expected);
    assert_eq!(with_rows(expected, head, &["| new |\n".into()]), expected);
    let example = Example::parse(
        "e",
        "//! Does\n//! this.\n//!\n//! ```text\n//! cargo run --release --example e \\\n//!     --b\n//! x\n//! ```\nfn\n",
    );
    assert_eq!(
        (example.what.as_str(), example.command.as_str()),
        ("Does this.", "cargo run --release --example e --b")
    );
}
