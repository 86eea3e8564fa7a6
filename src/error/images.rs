//! The texts of errors about images and their folders.

use super::text::{first_of, shown};
use std::path::PathBuf;

/// The text for an image of an unsupported format, with the remedy.
pub(crate) fn unsupported(found: &str) -> String {
    format!("{found} is not supported; convert it to JPEG or PNG")
}

pub(super) fn unreadable(files: &[(PathBuf, String)]) -> String {
    let lines = files.iter().map(|(file, problem)| format!("{}: {problem}", file.display())).collect();
    let lines = first_of(lines, "\n  ");
    let images = counted(files.len());
    format!(
        "{images} cannot be read; to skip such files, open the folder with `skip_broken` (`--skip-broken`):\n  {lines}"
    )
}

/// "1 image", "2 images".
pub(super) fn counted(count: usize) -> String {
    if count == 1 { "1 image".into() } else { format!("{count} images") }
}

/// The unknown classes, each with the known class that it may stand for. They are quoted so that spaces are visible.
pub(super) fn unknown_classes(unknown: &[String], known: &[String]) -> String {
    let with_nearest = |name: &String| {
        let near = known.iter().find(|known| !letters(name).is_empty() && letters(known) == letters(name));
        let near = near.map_or_else(String::new, |near| format!(" (is it \"{}\"?)", shown(near)));
        format!("\"{}\"{near}", shown(name))
    };
    first_of(unknown.iter().map(with_nearest).collect(), ", ")
}

/// The letters and digits of a name, in lower case.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_or_spaces_are_near() {
        let known = ["cat", "sea lion"].map(String::from);
        let said = unknown_classes(&["Cat".into(), "Sea_Lion ".into(), "dog".into()], &known);
        assert_eq!(said, r#""Cat" (is it "cat"?), "Sea_Lion " (is it "sea lion"?), "dog""#);
    }
}
