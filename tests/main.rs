//! All integration tests, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod freezing;
mod house;
#[cfg(feature = "image")]
mod image_files;
#[cfg(feature = "image")]
mod image_folder;
mod loading;
mod predictor;
mod support;
mod training;
