//! The faults, one by one.

use super::*;
use sha2::{Digest, Sha256};

#[test]
fn forbidden_after_a_good_head() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Forbidden, WEIGHTS, 99);
    for _ in 0..2 {
        scene.refused(HubErrorKind::Denied, &["acme/net", "403", "forbidden", "HF_TOKEN"]);
    }
    scene.hub().behave();
    scene.fetch().unwrap();
}

#[test]
fn errors_for_gated_and_private_repositories_say_how_to_get_access() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Gated, "config", 1);
    scene.refused(HubErrorKind::Denied, &["ask for access at", "/acme/net", "HF_TOKEN"]);
    scene.hub().fault(Fault::Unauthorized, "config", 1);
    scene.refused(HubErrorKind::Denied, &["authentication required", "HF_TOKEN"]);
}

#[test]
fn a_wrong_checksum_is_fetched_again_once() {
    // Large files go by their SHA-256, small ones by git's checksum.
    for name in [WEIGHTS, "config.json"] {
        let scene = Scene::new();
        scene.hub().fault(Fault::Corrupt, name, 1);
        scene.fetch().unwrap();
        let scene = Scene::new();
        scene.hub().fault(Fault::Corrupt, name, 99);
        scene.refused(HubErrorKind::Damaged, &[name, "checksum", "twice"]);
        scene.hub().behave();
        scene.fetch().unwrap();
    }
}

#[test]
fn an_interrupted_download_resumes() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Cut, WEIGHTS, 2);
    scene.fetch().unwrap();
    let size = fs::metadata(scene.served(WEIGHTS)).unwrap().len();
    let asked = scene.hub().asked();
    let gets: Vec<&String> = asked.iter().filter(|line| line.starts_with("GET") && line.contains(WEIGHTS)).collect();
    assert_eq!(gets.len(), 3, "{gets:?}");
    assert!(gets[1].contains(&format!("bytes={}-{}", size / 2, size - 1)), "{gets:?}");
    // Also in a later run.
    let scene = Scene::new();
    scene.hub().fault(Fault::Cut, WEIGHTS, 99);
    scene.refused(HubErrorKind::Busy, &["connection was lost", WEIGHTS]);
    scene.hub().behave();
    scene.hub().asked();
    let told = Arc::new(Mutex::new(vec![]));
    let tell = Arc::clone(&told);
    let mut remote = Remote::new("acme/net".into());
    remote.listener = Some(Arc::new(move |d: &HubDownload| tell.lock().unwrap().push(d.clone())));
    scene.fetch_remote(&remote).unwrap();
    let told = told.lock().unwrap();
    let (first, last) = (told.first().unwrap(), told.last().unwrap());
    assert!(first.done > size / 2 && first.total == size && last.done == size, "{first:?} {last:?}");
    assert!(told.windows(2).all(|pair| pair[0].done <= pair[1].done));
    assert!(last.to_string().contains("100 %"), "{last}");
    scene.fetch().unwrap();
    scene.is_clean();
}

#[test]
fn a_server_without_ranges_sends_the_whole_file_again() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Cut, WEIGHTS, 1);
    scene.hub().fault(Fault::NoRanges, WEIGHTS, 99);
    scene.fetch().unwrap();
    // An earlier run has left wrong bytes.
    let scene = Scene::new();
    let sum = checksum::digest(&scene.served(WEIGHTS), Sha256::new()).unwrap();
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
    // A hub that stays busy, or asks for too long a pause.
    let scene = Scene::new();
    scene.hub().fault(Fault::Status(503, None), WEIGHTS, 99);
    scene.refused(HubErrorKind::Busy, &["503", "try again later"]);
    scene.hub().behave();
    scene.hub().fault(Fault::Status(429, Some(3600)), WEIGHTS, 99);
    scene.hub().asked();
    scene.refused(HubErrorKind::Busy, &["429", "3600s"]);
    assert_eq!(scene.hub().asked().iter().filter(|line| line.starts_with("GET")).count(), 1);
}

#[test]
fn missing_repositories_and_files_are_named() {
    let scene = Scene::new();
    let error = scene.fetch_id("acme/nothere").unwrap_err();
    scene.is(&error, HubErrorKind::NotFound, &["acme/nothere", "main"]);
    let error = scene.fetch_id("acme/net@v9").unwrap_err();
    scene.is(&error, HubErrorKind::NotFound, &["acme/net", "v9"]);
    fs::remove_file(scene.served(WEIGHTS)).unwrap();
    let error = scene.fetch_id("acme/net").unwrap_err();
    assert!(error.to_string().contains("no weights") && error.to_string().contains("pytorch_model.bin"), "{error}");
    // Missing files are remembered for the commit.
    scene.hub().asked();
    scene.fetch_id("acme/net").unwrap_err();
    assert_eq!(scene.hub().asked().len(), 1);
}

#[test]
fn sizes_other_than_announced() {
    let scene = Scene::new();
    scene.hub().fault(Fault::Short, WEIGHTS, 99);
    scene.refused(HubErrorKind::Damaged, &["more than", WEIGHTS]);
    scene.hub().behave();
    scene.hub().fault(Fault::Long, WEIGHTS, 99);
    scene.refused(HubErrorKind::Busy, &["connection was lost"]);
    scene.hub().behave();
    let scene = Scene::new();
    scene.hub().fault(Fault::Huge, "config", 1);
    scene.refused(HubErrorKind::Refused, &["config.json", "200000000"]);
    assert!(!scene.hub().asked().iter().any(|line| line.starts_with("GET") && line.contains("config")));
    scene.fetch().unwrap();
}

#[test]
fn names_that_lead_out_of_the_cache() {
    let scene = Scene::new();
    scene.hub().fault(Fault::HostileEtag, WEIGHTS, 1);
    scene.refused(HubErrorKind::Refused, &["evil", "etag"]);
    scene.hub().fault(Fault::HostileCommit, "config", 1);
    scene.refused(HubErrorKind::Refused, &["evil", "40 hexadecimal"]);
    scene.hub().fault(Fault::NoEtag, "config", 1);
    scene.refused(HubErrorKind::Refused, &["no etag"]);
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
        scene.is(&error, HubErrorKind::Refused, &[]);
    }
    for revision in ["..", "a/../b", "/x", "x/", "", "a b", ".git", "x.lock", "a\\b"] {
        let error = scene.fetch_id(&format!("acme/net@{revision}")).unwrap_err();
        scene.is(&error, HubErrorKind::Refused, &["revision"]);
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
    scene.refused(HubErrorKind::Busy, &["no data of", WEIGHTS]);
    // Slow is not silent.
    let scene = Scene::new();
    scene.hub().fault(Fault::Slow, WEIGHTS, 99);
    scene.fetch().unwrap();
}
