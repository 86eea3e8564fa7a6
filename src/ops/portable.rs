//! Plain loops for any number type: the reference that every faster path is tested against.
//!
//! Work is cut into pieces by the shapes alone, never by the number of threads, so results do not depend on it.

pub(super) mod conv;
pub(super) mod norm;
pub(super) mod pool;
