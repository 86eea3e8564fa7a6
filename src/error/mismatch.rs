//! The texts of errors about weights that do not fit an architecture, and about unknown architectures.

use super::{listed, shown};
use std::fmt;
use std::path::PathBuf;

/// The differences between the tensors of a file and those of an architecture, in the names of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightsMismatch {
    /// The file.
    pub path: PathBuf,
    /// The architecture.
    pub arch: String,
    /// Tensors that the architecture has and the file lacks.
    pub missing: Vec<String>,
    /// Tensors that the file has and the architecture does not.
    pub unknown: Vec<String>,
    /// Tensors whose shapes or element types differ, with both.
    pub shapes: Vec<String>,
    /// Another architecture that the tensors fit.
    pub looks_like: Option<String>,
    /// A prefix of all names, if the rest of the names fits no architecture either.
    pub prefix: Option<String>,
}

impl fmt::Display for WeightsMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not hold the weights of {}:", self.path.display(), self.arch)?;
        let lists = [(" missing", &self.missing), (" not part of it", &self.unknown), (" different", &self.shapes)];
        for (what, names) in lists {
            f.write_str(&listed(what, names, 3))?;
        }
        if let Some(arch) = &self.looks_like {
            write!(f, " it looks like {arch}: set that as the architecture (`Source::arch`, `--arch`)")?;
        }
        if let Some(prefix) = &self.prefix {
            let prefix = shown(prefix);
            write!(f, " every name begins with \"{prefix}\", which `Source::prefix` (`--prefix`) removes")?;
        }
        Ok(())
    }
}

/// The architectures that are known, for an unknown name.
pub(super) fn known_archs(nearest: &[String], families: &[&str]) -> String {
    if nearest.is_empty() {
        format!("the families are {}; `Arch::all` lists every name", families.join(", "))
    } else {
        format!("the nearest names are {}", nearest.join(", "))
    }
}
