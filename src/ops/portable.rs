//! Plain loops for any element type: `Algorithm::Portable`, operations that need nothing faster, and the reference that
//! every fast kernel is tested against.
//!
//! Work is divided by the shapes alone, never by the number of threads, so results do not depend on it.

pub(super) mod conv;
#[cfg(test)]
pub(super) mod norm;
pub(super) mod pixels;
pub(super) mod pool;
