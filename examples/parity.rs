//! Compares the crate's networks with values that PyTorch computed.
//!
//! ```text
//! cargo run --release --example parity -- tests/fixtures/parity/*.json
//! ```
//!
//! A parity file holds what PyTorch computed for one architecture. The weights come from a formula, so the file needs
//! none; tests/reference/README.md describes the format, and golden.py there writes such files. For each file this
//! example fills the weights by the same formula, loads them as a file of timm's or torchvision's, and runs evaluation,
//! one training pass with all gradients and, if the file has them, steps of SGD and AdamW. It prints the file's name,
//! and for f64 and then f32 lines of the form
//!
//! ```text
//! f64 eval_logits 3.1e-13
//! ```
//!
//! with the worst error of each kind, relative to the norm of its tensor. An error beyond its tolerance is listed on
//! standard error and makes the exit status 1, as does a file that cannot be compared. In f32 only the logits, the loss
//! and the norms of gradients that are not small have a tolerance; the other lines are for information.
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "support/parity.rs"]
mod parity;

use clap::{Parser, ValueEnum};
use parity::{Failure, Figures, Parity, Precision};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Compares the crate's networks with values that PyTorch computed
#[derive(Parser)]
struct Options {
    /// Parity files, as tests/reference/golden.py writes them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Element types to run in
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["f64", "f32"])]
    precision: Vec<Choice>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// Proves the architecture
    F64,
    /// What training usually runs in
    F32,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut fine = true;
    for file in &options.files {
        match run(file, &options.precision) {
            Ok(within) => fine &= within,
            Err(error) => {
                eprintln!("{}: {error}", file.display());
                fine = false;
            }
        }
    }
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the errors of one file. Returns whether all are within their tolerances.
fn run(file: &Path, precisions: &[Choice]) -> Result<bool, Failure> {
    let parity = Parity::new(Figures::read(file)?)?;
    println!("{}", file.display());
    let mut fine = true;
    for precision in precisions {
        let precision = if matches!(precision, Choice::F64) { Precision::F64 } else { Precision::F32 };
        for worst in parity.compare(precision)?.worst {
            println!("{precision} {} {:.1e}", worst.kind, worst.error);
            if worst.too_large() {
                let allowed = worst.allowed.unwrap_or_default();
                let (kind, at, error) = (&worst.kind, &worst.at, worst.error);
                eprintln!("{}: {precision} {kind} of {at} is {error:.1e}; {allowed:.0e} is allowed", file.display());
                fine = false;
            }
        }
    }
    Ok(fine)
}
