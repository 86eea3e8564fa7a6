//! A repository, its hub, the store behind it, and the line between; and those who load from there.

use crate::hub::{COMMIT, Hub, Says, WEIGHTS};
use crate::line::{Line, Manner};
use crate::store::Store;
use crate::{Outcome, clean, digest, hex};
use candle_finetune::candle_core::{Device, safetensors};
use candle_finetune::{Arch, Backbone};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

pub struct Scene {
    dir: PathBuf,
    pub store: Store,
    pub line: Line,
    pub hub: Hub,
    /// The hub's responses without a fault.
    truth: Says,
    bytes: Vec<u8>,
    weights: String,
    caches: usize,
}

/// One who loads, with a cache of their own.
pub struct User {
    pub cache: PathBuf,
    pub environment: Vec<(&'static str, &'static str)>,
    /// When to give up on it: nothing may wait without end.
    pub limit: Duration,
}

/// The outcome of a load.
#[derive(Debug)]
pub struct Loaded {
    pub weights: Option<String>,
    pub kind: String,
    pub text: String,
    pub seconds: f64,
    /// Assertions of xet's client that failed on its own threads.
    pub inside: usize,
}

/// Where an item's size changes, xet's client has a `debug_assert` that does not hold for files that its store does not
/// know or that are shorter than announced. Its thread ends, the stream ends with it, and release builds have none.
fn is_inside_xet(line: &str) -> bool {
    line.contains("thread 'hf-xet-") && line.contains("progress_types.rs")
}

/// An error if something is not as it should be.
pub fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome<()> {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

impl Scene {
    pub fn new(dir: &Path) -> Outcome<Self> {
        // 87 MB: two of the store's blocks, which hold 64 MB at most.
        let backbone = Backbone::random(Arch::RESNET34, 7, &Device::Cpu)?;
        let file = dir.join(WEIGHTS);
        let tensors: HashMap<_, _> = backbone.tensors().iter().map(|(name, tensor)| (name, tensor.clone())).collect();
        safetensors::save(&tensors, &file)?;
        let bytes = fs::read(&file)?;
        let store = Store::start(&dir.join("store"))?;
        let stored = store.upload(&file)?;
        let line = Line::start(store.url())?;
        let truth = Says {
            sum: hex(&Sha256::digest(&bytes)),
            size: bytes.len() as u64,
            hash: stored.hash().to_string(),
            store: line.url(),
            token: None,
            stale: 0,
            redirects: false,
        };
        let config = r#"{"architecture": "resnet34", "num_classes": 0}"#;
        let hub = Hub::start(config, bytes.clone(), truth.clone())?;
        Ok(Self { dir: dir.to_path_buf(), store, line, hub, truth, bytes, weights: digest(&backbone)?, caches: 0 })
    }

    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Someone new, for whom everything is in order.
    pub fn user(&mut self) -> User {
        self.heal();
        self.caches += 1;
        let cache = self.dir.join(format!("cache{}", self.caches));
        let environment = vec![("HF_HUB_DOWNLOAD_TIMEOUT", "30"), ("HF_TOKEN", "hf_test")];
        User { cache, environment, limit: Duration::from_secs(180) }
    }

    /// Someone who waits a few seconds for a sign of life where it is usually a minute, so that silence ends soon.
    pub fn hasty_user(&mut self) -> User {
        let mut user = self.user();
        user.environment[0].1 = "4";
        user
    }

    /// Everything is in order again.
    pub fn heal(&self) {
        *self.hub.says() = self.truth.clone();
        self.line.set(Manner::Good);
        self.hub.asked();
    }

    pub fn load(&self, user: &User) -> Outcome<Loaded> {
        let mut command = clean(&self.dir)?;
        command.envs(user.environment.iter().copied());
        command.arg("--load").arg(self.hub.url()).arg(&user.cache);
        let (out, err) = (self.dir.join("out"), self.dir.join("err"));
        command.stdin(Stdio::null()).stdout(fs::File::create(&out)?).stderr(fs::File::create(&err)?);
        let begun = Instant::now();
        let mut child = command.spawn()?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begun.elapsed() > user.limit {
                child.kill()?;
                child.wait()?;
                return Err(format!("no end after {:?}", user.limit).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let (out, err) = (fs::read_to_string(out)?, fs::read_to_string(err)?);
        let panics: Vec<&str> = err.lines().filter(|line| line.contains("panicked")).collect();
        let (inside, ours) = panics.into_iter().partition::<Vec<_>, _>(|line| is_inside_xet(line));
        check(status.success() && ours.is_empty(), || format!("{status}: {err}"))?;
        let said: Value = serde_json::from_str(&out).map_err(|error| format!("{error}: {out:?}, {err}"))?;
        let seconds = begun.elapsed().as_secs_f64();
        let of = |name: &str| said[name].as_str().map(String::from);
        let (kind, text) = (of("kind").unwrap_or_default(), of("text").unwrap_or_default());
        let loaded = Loaded { weights: of("weights"), kind, text, seconds, inside: inside.len() };
        self.is_clean(user, loaded.weights.is_some())?;
        Ok(loaded)
    }

    /// Loads, and holds all that came against what was stored.
    pub fn right(&self, user: &User) -> Outcome<Loaded> {
        let loaded = self.load(user)?;
        check(loaded.weights.as_deref() == Some(&self.weights), || format!("not the right weights: {loaded:?}"))?;
        check(fs::read(user.weights())? == self.bytes, || "the cache has other bytes".into())?;
        let record = fs::read_to_string(user.folder().join(".verified").join(COMMIT).join(WEIGHTS))?;
        let verified = format!("{} {} ", self.truth.sum, self.truth.size);
        check(record.starts_with(&verified), || format!("verified was {record}"))?;
        Ok(loaded)
    }

    /// Loads, which must end in an error of this kind whose message contains these words.
    pub fn refused(&self, user: &User, kind: &str, words: &[&str]) -> Outcome<Loaded> {
        let loaded = self.load(user)?;
        check(loaded.kind == kind, || format!("should be {kind}: {loaded:?}"))?;
        for word in words {
            check(loaded.text.contains(word), || format!("{word:?} is not said: {loaded:?}"))?;
        }
        Ok(loaded)
    }

    /// No blob may be other bytes than its name says, and no weights known where none were loaded.
    fn is_clean(&self, user: &User, loaded: bool) -> Outcome<()> {
        for entry in fs::read_dir(user.folder().join("blobs"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.len() == 64 {
                let sum = hex(&Sha256::digest(fs::read(entry.path())?));
                check(sum == name, || format!("the blob {name} is {sum}"))?;
            }
        }
        check(user.weights().exists() == loaded, || {
            "the cache has weights that were not loaded, or none that were".into()
        })
    }
}

impl User {
    fn folder(&self) -> PathBuf {
        self.cache.join("models--acme--net")
    }

    fn weights(&self) -> PathBuf {
        self.folder().join("snapshots").join(COMMIT).join(WEIGHTS)
    }

    /// How much of the weights an earlier attempt has left.
    pub fn partial(&self, scene: &Scene) -> u64 {
        let path = self.folder().join("blobs").join(format!("{}.incomplete", scene.hub.says().sum));
        fs::metadata(path).map_or(0, |about| about.len())
    }
}
