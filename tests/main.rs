//! All integration tests, in one binary.

mod audit;
#[cfg(feature = "image")]
mod folder_layout;
mod forecast;
mod freezing;
mod house;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "image")]
mod image_files;
#[cfg(feature = "image")]
mod image_folder;
mod loading;
mod parity;
mod predictor;
mod readme;
mod recipes;
mod saved;
mod session;
mod sharing;
mod support;
mod training;
mod untrusted;
