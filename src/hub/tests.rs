//! Against a hub on this machine, with every fault that it knows.

#[path = "../../examples/support/local_hub.rs"]
mod local_hub;

use super::*;
use crate::backbone::Backbone;
use crate::backbone::Source;
use candle_core::Device;
use local_hub::{Fault, LocalHub};
use std::fs;
use std::sync::Mutex;
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
            patience: Duration::from_secs(20),
            stall: Duration::from_millis(400),
        };
        Self { dir, hub: Some(hub), settings }
    }

    fn hub(&self) -> &LocalHub {
        self.hub.as_ref().unwrap()
    }

    fn fetch_id(&self, id: &str) -> Result<Snapshot> {
        Remote::new(id.into()).fetch_with(self.settings.clone(), None)
    }

    /// Fetches, and holds what came against what the hub has.
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

    /// What the cache has of a file, through its link.
    fn cached(&self, name: &str) -> PathBuf {
        let commit = fs::read_to_string(self.cache().join("refs/main")).unwrap();
        self.cache().join("snapshots").join(commit).join(name)
    }

    /// No file of the cache may be other bytes than its name says, and none may lie outside.
    fn is_clean(&self) {
        for blob in fs::read_dir(self.cache().join("blobs")).into_iter().flatten().flatten() {
            let (path, name) = (blob.path(), blob.file_name().into_string().unwrap());
            if cache::is_sha256(&name) {
                assert_eq!(cache::sha256(&path).unwrap(), name);
            }
        }
        let top: Vec<String> = fs::read_dir(self.dir.path()).unwrap().flatten().map(|e| name_of(&e.path())).collect();
        assert!(top.iter().all(|name| name == "hub" || name == "cache"), "{top:?}");
    }

    fn refused(&self, kind: HubError, words: &[&str]) {
        let error = self.fetch_id("acme/net").unwrap_err();
        self.is(&error, kind, words);
    }

    fn is(&self, error: &Error, kind: HubError, words: &[&str]) {
        let text = error.to_string();
        assert!(matches!(error, Error::Hub { kind: found, .. } if *found == kind), "{error:?}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in: {text}"));
        assert_eq!(error.is_offline(), kind == HubError::Offline);
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
    assert_eq!(found.arch, Some(Arch::CIFAR_RESNET20));
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
    // A commit's digits need no question.
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
    assert!(first.weights.exists(), "what another run may use stays");
}

#[test]
fn forbidden_after_a_good_head() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Forbidden, WEIGHTS, 99);
    for _ in 0..2 {
        scene.refused(HubError::Denied, &["acme/net", "403", "forbidden", "HF_TOKEN"]);
    }
    scene.hub().behave();
    scene.fetch().unwrap();
}

#[test]
fn gated_and_private_say_how_to_get_in() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Gated, "config", 1);
    scene.refused(HubError::Denied, &["ask for access at", "/acme/net", "HF_TOKEN"]);
    scene.hub().fault(Fault::Unauthorized, "config", 1);
    scene.refused(HubError::Denied, &["who asks", "HF_TOKEN"]);
}

#[test]
fn a_wrong_checksum_is_fetched_again_once() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Corrupt, WEIGHTS, 1);
    scene.fetch().unwrap();
    let scene = Scene::new();
    scene.hub().fault(Fault::Corrupt, WEIGHTS, 99);
    scene.refused(HubError::Damaged, &[WEIGHTS, "checksum", "twice"]);
    scene.hub().behave();
    scene.fetch().unwrap();
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Cut, WEIGHTS, 2);
    scene.fetch().unwrap();
    let size = fs::metadata(scene.served(WEIGHTS)).unwrap().len();
    let asked = scene.hub().asked();
    let gets: Vec<&String> = asked.iter().filter(|line| line.starts_with("GET") && line.contains(WEIGHTS)).collect();
    assert_eq!(gets.len(), 3, "{gets:?}");
    assert!(gets[1].contains(&format!("bytes={}-{}", size / 2, size - 1)), "{gets:?}");
    // Over several runs too.
    let scene = Scene::new();
    scene.hub().fault(Fault::Cut, WEIGHTS, 99);
    scene.refused(HubError::Busy, &["broke off", WEIGHTS]);
    scene.hub().behave();
    scene.hub().asked();
    let told = Arc::new(Mutex::new(vec![]));
    let tell = Arc::clone(&told);
    let mut remote = Remote::new("acme/net".into());
    remote.listener = Some(Arc::new(move |d: &Download| tell.lock().unwrap().push(d.clone())));
    remote.fetch_with(scene.settings.clone(), None).unwrap();
    let told = told.lock().unwrap();
    let (first, last) = (told.first().unwrap(), told.last().unwrap());
    assert!(first.done > size / 2 && first.total == size && last.done == size, "{first:?} {last:?}");
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done));
    assert!(last.to_string().contains("100 %"), "{last}");
    scene.fetch().unwrap();
    scene.is_clean();
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Cut, WEIGHTS, 1);
    scene.hub().fault(Fault::NoRanges, WEIGHTS, 99);
    scene.fetch().unwrap();
    // What is there of an earlier run is not what it should be.
    let scene = Scene::new();
    let sum = cache::sha256(&scene.served(WEIGHTS)).unwrap();
    fs::create_dir_all(scene.cache().join("blobs")).unwrap();
    fs::write(scene.cache().join("blobs").join(format!("{sum}.incomplete")), vec![7; 1000]).unwrap();
    scene.fetch().unwrap();
}

#[test]
fn busy_hubs_are_asked_again() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Status(503, None), WEIGHTS, 1);
    scene.hub().fault(Fault::HeadStatus(500, None), "config", 2);
    scene.fetch().unwrap();
    let scene = Scene::new();
    scene.hub().fault(Fault::HeadStatus(429, Some(1)), "config", 1);
    let begun = Instant::now();
    scene.fetch().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "the pause that the hub asked for");
    let scene = Scene::new();
    scene.hub().fault(Fault::Status(429, Some(1)), WEIGHTS, 1);
    scene.fetch().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2));
    // It never gets better, or asks for too much.
    let scene = Scene::new();
    scene.hub().fault(Fault::Status(503, None), WEIGHTS, 99);
    scene.refused(HubError::Busy, &["503", "try again later"]);
    scene.hub().behave();
    scene.hub().fault(Fault::Status(429, Some(3600)), WEIGHTS, 99);
    scene.hub().asked();
    scene.refused(HubError::Busy, &["429", "3600s"]);
    assert_eq!(scene.hub().asked().iter().filter(|line| line.starts_with("GET")).count(), 1);
}

#[test]
fn what_is_not_there_is_named() {
    let scene = Scene::new();
    let error = scene.fetch_id("acme/nothere").unwrap_err();
    scene.is(&error, HubError::NotFound, &["acme/nothere", "main"]);
    let error = scene.fetch_id("acme/net@v9").unwrap_err();
    scene.is(&error, HubError::NotFound, &["acme/net", "v9"]);
    fs::remove_file(scene.served(WEIGHTS)).unwrap();
    let error = scene.fetch_id("acme/net").unwrap_err();
    assert!(error.to_string().contains("no weights") && error.to_string().contains("pytorch_model.bin"), "{error}");
    // What is not there is remembered for the commit.
    scene.hub().asked();
    scene.fetch_id("acme/net").unwrap_err();
    assert_eq!(scene.hub().asked().len(), 1);
}

#[test]
fn sizes_that_are_not_kept() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Short, WEIGHTS, 99);
    scene.refused(HubError::Damaged, &["more than", WEIGHTS]);
    scene.hub().behave();
    scene.hub().fault(Fault::Long, WEIGHTS, 99);
    scene.refused(HubError::Busy, &["broke off"]);
    scene.hub().behave();
    scene.fetch().unwrap();
}

#[test]
fn names_that_lead_out_of_the_cache() {
    let scene = Scene::new();
    scene.hub().fault(Fault::HostileEtag, WEIGHTS, 1);
    scene.refused(HubError::Refused, &["evil", "etag"]);
    scene.hub().fault(Fault::HostileCommit, "config", 1);
    scene.refused(HubError::Refused, &["evil", "40 hexadecimal"]);
    scene.hub().fault(Fault::NoEtag, "config", 1);
    scene.refused(HubError::Refused, &["no etag"]);
    fs::remove_file(scene.served(WEIGHTS)).unwrap();
    for name in ["../../../evil", "/etc/passwd", "a/b", "..", "C:x", ""] {
        let index = serde_json::json!({"weight_map": {"conv1.weight": name}});
        fs::write(scene.served("model.safetensors.index.json"), index.to_string()).unwrap();
        let error = scene.fetch_id("acme/net").unwrap_err().to_string();
        assert!(error.contains("is refused"), "{name}: {error}");
        scene.is_clean();
    }
    for id in ["acme", "acme/..", "../net", "acme/a/b", "acme/n\\t", "acme/.x", "/net", "acme/", "a c/x", ""] {
        let error = scene.fetch_id(id).unwrap_err();
        scene.is(&error, HubError::Refused, &[]);
    }
    for revision in ["..", "a/../b", "/x", "x/", "", "a b", ".git", "x.lock", "a\\b"] {
        let error = scene.fetch_id(&format!("acme/net@{revision}")).unwrap_err();
        scene.is(&error, HubError::Refused, &["revision"]);
    }
    assert!(Repository::parse("acme/net@a", Some("b")).is_err());
    assert_eq!(Repository::parse("hf-hub:acme/net@refs/pr/1", None).unwrap().revision, "refs/pr/1");
    assert_eq!(Repository::parse("acme/net", Some("v1")).unwrap().to_string(), "acme/net@v1");
}

#[test]
fn a_hub_that_falls_silent() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Stall(1500), WEIGHTS, 1);
    scene.fetch().unwrap();
    let scene = Scene::new();
    scene.hub().fault(Fault::Stall(1500), WEIGHTS, 99);
    scene.refused(HubError::Busy, &["nothing of", WEIGHTS]);
    // Slow is not silent.
    let scene = Scene::new();
    scene.hub().fault(Fault::Slow, WEIGHTS, 99);
    scene.fetch().unwrap();
}

#[test]
fn a_hub_that_is_gone() {
    let mut scene = Scene::new();
    let found = scene.fetch().unwrap();
    drop(scene.hub.take());
    assert_eq!(scene.fetch().unwrap().weights, found.weights);
    // Damaged, and nowhere to fetch it from; it is left for whoever may know better.
    let blob = fs::canonicalize(scene.cached(WEIGHTS)).unwrap();
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, &bytes[..1000]).unwrap();
    let error = scene.fetch_id("acme/net").unwrap_err();
    assert!(matches!(error, Error::Hub { kind: HubError::Damaged, .. }) && blob.exists(), "{error}");
    fs::remove_dir_all(&scene.settings.cache).unwrap();
    scene.refused(HubError::Offline, &["cannot be reached", "cache"]);
    assert!(scene.fetch_id("acme/net@0123456789012345678901234567890123456789").unwrap_err().is_offline());
}

#[test]
fn offline_uses_the_cache_alone() {
    let mut scene = Scene::new();
    scene.settings.offline = true;
    scene.refused(HubError::Offline, &["HF_HUB_OFFLINE", "cache"]);
    scene.settings.offline = false;
    scene.fetch().unwrap();
    scene.settings.offline = true;
    scene.hub().asked();
    scene.fetch().unwrap();
    assert_eq!(scene.hub().asked(), [""; 0]);
    // Half of it is not enough.
    fs::remove_file(scene.cached(WEIGHTS)).unwrap();
    scene.refused(HubError::Offline, &["not wholly"]);
}

#[test]
fn damaged_entries_are_fetched_again() {
    for (name, gets) in [(WEIGHTS, 1), ("config.json", 1)] {
        let scene = Scene::new();
        scene.fetch().unwrap();
        let blob = fs::canonicalize(scene.cached(name)).unwrap();
        let bytes = fs::read(&blob).unwrap();
        for broken in [b"{\"error\":\"forbidden\"}".to_vec(), bytes[..bytes.len() / 2].to_vec(), vec![]] {
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
    // Other bytes of the same size and time would only be found by computing it again.
    let mut other = bytes.clone();
    other[5000] ^= 1;
    fs::write(&blob, &other).unwrap();
    fs::File::options().write(true).open(&blob).unwrap().set_modified(changed).unwrap();
    scene.fetch_id("acme/net").unwrap();
    assert_eq!(fs::read(&blob).unwrap(), other);
    // Once the time is another, they are found.
    fs::File::options().write(true).open(&blob).unwrap().set_modified(changed + Duration::from_secs(1)).unwrap();
    scene.fetch().unwrap();
    assert_eq!(fs::read(&blob).unwrap(), bytes);
    // And good bytes of another time are good, without a download.
    fs::File::options().write(true).open(&blob).unwrap().set_modified(changed).unwrap();
    scene.hub().asked();
    scene.fetch().unwrap();
    assert!(scene.hub().asked().iter().all(|line| line.starts_with("HEAD")));
}

#[test]
fn what_others_put_into_the_cache_is_used_and_verified() {
    let scene = Scene::new();
    scene.fetch().unwrap();
    // As Python leaves it: without our notes.
    fs::remove_dir_all(scene.cache().join(".verified")).unwrap();
    scene.hub().asked();
    scene.fetch().unwrap();
    let asked = scene.hub().asked();
    assert!(asked.iter().all(|line| line.starts_with("HEAD")), "{asked:?}");
    // Poisoned, as some clients leave it.
    fs::remove_dir_all(scene.cache().join(".verified")).unwrap();
    fs::write(fs::canonicalize(scene.cached("config.json")).unwrap(), "{\"error\":\"forbidden\"}").unwrap();
    scene.fetch().unwrap();
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
    assert_eq!(gets, 1, "one downloads, the others wait");
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
