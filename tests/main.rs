//! All integration tests, in one binary.

mod freezing;
mod house;
#[cfg(feature = "image")]
mod image_files;
#[cfg(feature = "image")]
mod image_folder;
mod loading;
mod parity;
mod predictor;
mod readme;
mod support;
mod training;
