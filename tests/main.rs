//! All integration tests, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[cfg(feature = "image")]
mod image_files;
#[cfg(feature = "image")]
mod image_folder;
