//! What the README promises about names.

use candle_finetune::{Arch, Strategy};

const README: &str = include_str!("../README.md");

#[test]
fn the_readme_lists_every_architecture_with_its_features_and_pixels() {
    // The first cell of a row may be empty: the family goes on.
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
    assert_eq!(listed, Arch::all().len(), "the table has names that are no architectures");
}

#[test]
fn the_readme_explains_every_strategy() {
    for strategy in Strategy::ALL {
        assert!(README.contains(&format!("`{strategy:?}`:")), "{strategy:?}");
    }
}
