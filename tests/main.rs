//! All integration tests, in one binary.

#[cfg(feature = "image")]
mod advice;
mod api;
mod audit;
mod datasets;
mod failures;
#[cfg(feature = "image")]
mod folder_layout;
mod forecast;
mod freezing;
mod grad_cam;
mod heads;
mod house;
#[cfg(feature = "hub")]
mod hub;
#[cfg(feature = "image")]
mod image_files;
#[cfg(feature = "image")]
mod image_folder;
mod labels;
mod loading;
mod mistakes;
mod own_network;
mod parity;
mod plans;
#[cfg(feature = "plots")]
mod plots;
mod predictor;
mod readme;
mod recipes;
mod regularisation;
mod resume;
mod saved;
mod session;
mod sharing;
mod support;
#[cfg(feature = "image")]
mod tables;
mod training;
mod untrusted;
#[cfg(feature = "zoo")]
mod zoo;
