//! Drives downloads through xet's content-addressed store, on this machine alone; see README.md.
//!
//! `xet` runs all cases, `xet WORD...` those whose names hold one of the words. Each load is a process of its own, so
//! that its environment is known, its panics and its end are seen, and it can be killed when it takes too long.

mod cases;
mod hub;
mod line;
mod scene;
mod store;

use candle_finetune::candle_core::Device;
use candle_finetune::{Backbone, Error, Source};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::{Command, ExitCode};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--load", url, cache] => {
            println!("{}", load(url, Path::new(cache)));
            Ok(true)
        }
        ["--cases", dir, ref words @ ..] => cases::run(Path::new(dir), words),
        ref words => apart(words),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the cases where no setting of the user's can reach them.
fn apart(words: &[&str]) -> Outcome<bool> {
    let dir = tempfile::tempdir()?;
    let mut command = clean(dir.path())?;
    command.arg("--cases").arg(dir.path()).args(words);
    Ok(command.status()?.success())
}

/// This program once more, with a home of its own and nothing else of the environment.
fn clean(home: &Path) -> Outcome<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env_clear().env("HOME", home).env("HF_HOME", home.join("hf")).env("TMPDIR", home);
    // Windows does not open sockets without it.
    command.envs(std::env::var_os("SystemRoot").map(|root| ("SystemRoot", root)));
    Ok(command)
}

/// A user's action, and its outcome.
fn load(url: &str, cache: &Path) -> Value {
    match Backbone::load(Source::hub("acme/net").endpoint(url).cache_dir(cache), &Device::Cpu) {
        Ok(backbone) => match digest(&backbone) {
            Ok(digest) => json!({ "weights": digest }),
            Err(error) => json!({ "kind": "none", "text": error.to_string() }),
        },
        Err(error) => {
            let kind = if let Error::Hub { kind, .. } = &error { format!("{kind:?}") } else { "none".into() };
            json!({ "kind": kind, "text": error.to_string() })
        }
    }
}

/// A checksum of all weights with their names.
pub fn digest(backbone: &Backbone) -> Outcome<String> {
    let mut hasher = Sha256::new();
    for (name, tensor) in backbone.tensors() {
        hasher.update(name);
        for value in tensor.flatten_all()?.to_vec1::<f32>()? {
            hasher.update(value.to_le_bytes());
        }
    }
    Ok(hex(&hasher.finalize()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
