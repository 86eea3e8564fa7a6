use super::{Source, Weights};
use crate::Result;
pub(super) fn read(source: Source) -> Result<Weights> {
    Err(source.error("a zip is not read yet"))
}
