//! All integration tests, in one binary.

#[cfg(feature = "image")]
mod image_files;
#[cfg(feature = "image")]
mod image_folder;
mod readme;
