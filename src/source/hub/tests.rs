//! Against a local hub, with every fault that it can simulate.

#[path = "../../../examples/support/local_hub.rs"]
mod local_hub;

mod faults;

use super::*;
use crate::arch::Arch;
use crate::backbone::Backbone;
use crate::error::{Error, HubErrorKind};
use crate::source::{Snapshot, Source, gathered};
use candle_core::Device;
use local_hub::{Fault, LocalHub};
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A repository with small weights, its hub, and a cache.
struct Scene {
    dir: tempfile::TempDir,
    hub: Option<LocalHub>,
    settings: Settings,
}

const WEIGHTS: &str = "model.safetensors";

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("hub/acme/net");
        fs::create_dir_all(&repository).unwrap();
        let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu).unwrap();
        crate::weights::write(&repository.join(WEIGHTS), backbone.tensors(), None).unwrap();
        fs::write(repository.join("config.json"), br#"{"architecture": "cifar_resnet20", "num_classes": 0}"#).unwrap();
        let hub = LocalHub::start(&dir.path().join("hub")).unwrap();
        let settings = Settings {
            endpoint: hub.url(),
            cache: dir.path().join("cache"),
            token: None,
            offline: false,
            attempts: 3,
            pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(2),
            request_timeout: Duration::from_secs(20),
            download_timeout: Duration::from_millis(400),
        };
        Self { dir, hub: Some(hub), settings }
    }

    fn hub(&self) -> &LocalHub {
        self.hub.as_ref().unwrap()
    }

    fn fetch_id(&self, id: &str) -> Result<Snapshot> {
        self.fetch_remote(&Remote::new(id.into()))
    }

    fn fetch_remote(&self, remote: &Remote) -> Result<Snapshot> {
        remote.with_settings(self.settings.clone(), |files| gathered(files, None, true))
    }

    /// Fetches, and compares the result with the hub's files.
    fn fetch(&self) -> Result<Snapshot> {
        let found = self.fetch_id("acme/net")?;
        assert_eq!(fs::read(&found.weights).unwrap(), fs::read(self.served(WEIGHTS)).unwrap());
        assert!(found.weights.starts_with(self.cache().join("snapshots")), "{}", found.weights.display());
        Ok(found)
    }

    fn served(&self, name: &str) -> PathBuf {
        self.dir.path().join("hub/acme/net").join(name)
    }

    fn cache(&self) -> PathBuf {
        self.settings.cache.join("models--acme--net")
    }

    /// A file in the cache, through its link.
    fn cached(&self, name: &str) -> PathBuf {
        let commit = fs::read_to_string(self.cache().join("refs/main")).unwrap();
        self.cache().join("snapshots").join(commit).join(name)
    }

    /// Checks that every blob in the cache has the checksum in its name, and that no file lies outside the cache.
    fn is_clean(&self) {
        for blob in fs::read_dir(self.cache().join("blobs")).into_iter().flatten().flatten() {
            let (path, name) = (blob.path(), blob.file_name().into_string().unwrap());
            assert_ne!(checksum::agrees(&path, &name).unwrap(), Some(false), "{name}");
        }
        let top: Vec<String> = fs::read_dir(self.dir.path()).unwrap().flatten().map(|e| name_of(&e.path())).collect();
        assert!(top.iter().all(|name| name == "hub" || name == "cache"), "{top:?}");
    }

    fn refused(&self, kind: HubErrorKind, words: &[&str]) {
        let error = self.fetch_id("acme/net").unwrap_err();
        self.is(&error, kind, words);
    }

    fn is(&self, error: &Error, kind: HubErrorKind, words: &[&str]) {
        let text = error.to_string();
        assert!(matches!(error, Error::Hub { kind: found, .. } if *found == kind), "{error:?}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in: {text}"));
        assert_eq!(error.is_offline(), kind == HubErrorKind::Offline);
        self.is_clean();
    }
}

fn name_of(path: &std::path::Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_first_start_fetches_and_a_second_asks_once() {
    let scene = Scene::new();
    let found = scene.fetch().unwrap();
    assert_eq!(found.wanted.and_then(|wanted| wanted.arch()), Some(Arch::CIFAR_RESNET20));
    assert_eq!(found.repository.as_deref(), Some("acme/net"));
    let asked = scene.hub().asked();
    assert_eq!(asked.iter().filter(|line| line.starts_with("GET")).count(), 2, "{asked:?}");
    scene.fetch().unwrap();
    let asked = scene.hub().asked();
    assert!(matches!(&asked[..], [one] if one.starts_with("HEAD") && one.contains("main/config.json")), "{asked:?}");
    // The layout is Python's.
    for folder in ["blobs", "snapshots", "refs"] {
        assert!(scene.cache().join(folder).is_dir());
    }
    #[cfg(unix)]
    assert!(fs::read_link(scene.cached(WEIGHTS)).unwrap().starts_with("../../blobs"));
    // A commit needs no question.
    let commit = fs::read_to_string(scene.cache().join("refs/main")).unwrap();
    scene.fetch_id(&format!("acme/net@{commit}")).unwrap();
    assert_eq!(scene.hub().asked(), [""; 0]);
    scene.is_clean();
}

#[test]
fn a_revision_that_moves_is_followed() {
    let scene = Scene::new();
    let first = scene.fetch().unwrap();
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 2, &Device::Cpu).unwrap();
    crate::weights::write(&scene.served(WEIGHTS), backbone.tensors(), None).unwrap();
    let second = scene.fetch().unwrap();
    assert_ne!(first.weights, second.weights);
    assert!(first.weights.exists(), "files that another run may use stay");
}

#[test]
fn a_hub_that_is_gone() {
    let mut scene = Scene::new();
    let found = scene.fetch().unwrap();
    drop(scene.hub.take());
    assert_eq!(scene.fetch().unwrap().weights, found.weights);
    // Damaged, with no hub to download it from: the file is left in place.
    let blob = fs::canonicalize(scene.cached(WEIGHTS)).unwrap();
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, &bytes[..1000]).unwrap();
    let error = scene.fetch_id("acme/net").unwrap_err();
    assert!(matches!(error, Error::Hub { kind: HubErrorKind::Damaged, .. }) && blob.exists(), "{error}");
    fs::remove_dir_all(&scene.settings.cache).unwrap();
    scene.refused(HubErrorKind::Offline, &["cannot be reached", "cache"]);
    assert!(scene.fetch_id("acme/net@0123456789012345678901234567890123456789").unwrap_err().is_offline());
}

#[test]
fn offline_uses_the_cache_alone() {
    let mut scene = Scene::new();
    scene.settings.offline = true;
    scene.refused(HubErrorKind::Offline, &["HF_HUB_OFFLINE", "cache"]);
    scene.settings.offline = false;
    scene.fetch().unwrap();
    scene.settings.offline = true;
    scene.hub().asked();
    scene.fetch().unwrap();
    assert_eq!(scene.hub().asked(), [""; 0]);
    // Both files are needed: the weights and the config.
    for name in [WEIGHTS, "config.json"] {
        let blob = fs::canonicalize(scene.cached(name)).unwrap();
        fs::rename(scene.cached(name), scene.cached("aside")).unwrap();
        scene.refused(HubErrorKind::Offline, &["not completely"]);
        fs::rename(scene.cached("aside"), scene.cached(name)).unwrap();
        assert_eq!(fs::canonicalize(scene.cached(name)).unwrap(), blob);
    }
}

#[test]
fn damaged_entries_are_fetched_again() {
    for (name, gets) in [(WEIGHTS, 1), ("config.json", 1)] {
        let scene = Scene::new();
        scene.fetch().unwrap();
        let blob = fs::canonicalize(scene.cached(name)).unwrap();
        let bytes = fs::read(&blob).unwrap();
        let message = b"{\"error\":\"forbidden\"}".to_vec();
        for broken in [message, bytes[..bytes.len() / 2].to_vec(), vec![], vec![b' '; bytes.len()]] {
            fs::write(&blob, broken).unwrap();
            scene.hub().asked();
            scene.fetch().unwrap();
            let asked = scene.hub().asked();
            assert_eq!(asked.iter().filter(|line| line.starts_with("GET")).count(), gets, "{name} {asked:?}");
            assert_eq!(fs::read(scene.cached(name)).unwrap(), bytes);
        }
        scene.is_clean();
    }
}

#[test]
fn a_checksum_is_computed_once() {
    let scene = Scene::new();
    scene.fetch().unwrap();
    let blob = fs::canonicalize(scene.cached(WEIGHTS)).unwrap();
    let (bytes, changed) = (fs::read(&blob).unwrap(), fs::metadata(&blob).unwrap().modified().unwrap());
    // Other bytes of the same size and time would only be noticed by recomputing the checksum.
    let mut other = bytes.clone();
    other[5000] ^= 1;
    fs::write(&blob, &other).unwrap();
    fs::File::options().write(true).open(&blob).unwrap().set_modified(changed).unwrap();
    scene.fetch_id("acme/net").unwrap();
    assert_eq!(fs::read(&blob).unwrap(), other);
    // With another time, they are noticed.
    fs::File::options().write(true).open(&blob).unwrap().set_modified(changed + Duration::from_secs(1)).unwrap();
    scene.fetch().unwrap();
    assert_eq!(fs::read(&blob).unwrap(), bytes);
    // Good bytes with another time are verified without a download.
    fs::File::options().write(true).open(&blob).unwrap().set_modified(changed).unwrap();
    scene.hub().asked();
    scene.fetch().unwrap();
    assert!(scene.hub().asked().iter().all(|line| line.starts_with("HEAD")));
}

#[test]
fn what_others_put_into_the_cache_is_used_and_verified() {
    let scene = Scene::new();
    scene.fetch().unwrap();
    // As Python leaves it: without our records.
    fs::remove_dir_all(scene.cache().join(".verified")).unwrap();
    scene.hub().asked();
    scene.fetch().unwrap();
    let asked = scene.hub().asked();
    assert!(asked.iter().all(|line| line.starts_with("HEAD")), "{asked:?}");
    // An error's text in place of the file, as some clients leave it.
    fs::remove_dir_all(scene.cache().join(".verified")).unwrap();
    fs::write(fs::canonicalize(scene.cached("config.json")).unwrap(), "{\"error\":\"forbidden\"}").unwrap();
    scene.fetch().unwrap();
}

#[test]
fn without_network_what_python_left_is_enough() {
    // Python requests one file of weights, and no index.
    let mut scene = Scene::new();
    fs::rename(scene.served(WEIGHTS), scene.served("pytorch_model.bin")).unwrap();
    let weights = scene.fetch_id("acme/net").unwrap().weights;
    fs::remove_dir_all(scene.cache().join(".no_exist")).unwrap();
    scene.settings.offline = true;
    assert_eq!(scene.fetch_id("acme/net").unwrap().weights, weights);
    // Without links, Python leaves files whose checksum only the hub knows.
    fs::remove_dir_all(scene.cache().join(".verified")).unwrap();
    let blob = fs::canonicalize(&weights).unwrap();
    fs::remove_file(&weights).unwrap();
    fs::rename(blob, &weights).unwrap();
    scene.fetch_id("acme/net").unwrap();
    scene.settings.offline = false;
    scene.hub().asked();
    scene.fetch_id("acme/net").unwrap();
    assert!(scene.hub().asked().iter().all(|line| !line.starts_with("GET")));
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[1..]).unwrap();
    scene.fetch_id("acme/net").unwrap();
    assert_eq!(fs::read(&weights).unwrap(), bytes);
}

#[test]
fn without_a_token_none_is_sent() {
    // hf-hub looks for one in the environment, which all tests share, so this runs in a separate process.
    const CHILD: &str = "CANDLE_FINETUNE_TEST_HAS_A_TOKEN";
    if std::env::var_os(CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "source::hub::tests::without_a_token_none_is_sent"])
            .env(CHILD, "1")
            .env("HF_TOKEN", "hf_env");
        let out = child.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let mut scene = Scene::new();
    scene.fetch().unwrap();
    assert_eq!(scene.hub().authorizations(), [""; 0]);
    scene.settings.token = Some("hf_mine".into());
    fs::remove_dir_all(&scene.settings.cache).unwrap();
    scene.fetch().unwrap();
    let sent = scene.hub().authorizations();
    assert!(sent.len() > 2 && sent.iter().all(|who| who == "Bearer hf_mine"), "{sent:?}");
}

#[test]
fn two_at_once_both_get_it() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Slow, WEIGHTS, 99);
    let scene = &scene;
    std::thread::scope(|scope| {
        let both = [(); 3].map(|()| scope.spawn(|| scene.fetch().map(drop)));
        both.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
    let asked = scene.hub().asked();
    let gets = asked.iter().filter(|line| line.starts_with("GET") && line.contains(WEIGHTS)).count();
    assert_eq!(gets, 1, "one thread downloads, the others wait");
    scene.is_clean();
}

#[test]
fn renamed_repositories_are_found() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Renamed, "old/net", 99);
    scene.fetch_id("old/net").unwrap();
}

#[test]
fn from_within_a_runtime() {
    let scene = Scene::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { scene.fetch().map(drop) }).unwrap();
}

#[test]
fn options_of_the_hub_are_for_the_hub() {
    let error = Backbone::load(Source::embedded().revision("main"), &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("Source::revision") && error.contains("Source::hub"), "{error}");
}
