use super::*;
use crate::data::split;
use crate::train::fine_tuner::FineTuner;
use crate::train::waves::waves;
use crate::{Arch, Backbone, BatchNormMode, Cancel, Head, Optimizer, Phase, Plan};
use candle_core::Device;
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

fn parts() -> (crate::Subset, crate::Subset) {
    split(&waves(24, 3), 0.25, 0).unwrap()
}

fn tuner(seed: u64) -> FineTuner {
    let head = Phase::new(2, Optimizer::adamw(1e-2)).freeze(crate::FreezePolicy::Backbone);
    let rest = Phase::new(2, Optimizer::sgd(1e-2).momentum(0.9)).freeze(crate::FreezePolicy::First(7));
    let plan = Plan::new(vec![head, rest.batch_norm(BatchNormMode::Train)]).batch_size(5);
    FineTuner::new(Backbone::embedded(&Device::Cpu).unwrap()).plan(plan).head(Head::linear().dropout(0.2)).seed(seed)
}

/// The file of the predictor, with its report.
fn bytes(fitted: &Fitted) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fitted.predictor.save(file.path()).unwrap();
    fs::read(file.path()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = entries(folder).unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    names
}

/// A session after some steps.
fn after(steps: usize) -> Session {
    let (train, _) = parts();
    let mut session = tuner(5).session(&train).unwrap();
    let mut made = 0;
    while session.next_phase().unwrap() {
        while session.next_epoch().unwrap() {
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
                made += 1;
                if made == steps {
                    return session;
                }
            }
        }
    }
    session
}

/// What a listener was told of a run directory.
fn told(tuner: FineTuner) -> (FineTuner, Arc<Mutex<Vec<String>>>) {
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&events);
    let tuner = tuner.on_event(move |event| match event {
        Event::Resumed { step } => heard.lock().unwrap().push(format!("resumed at step {step}")),
        Event::SkippedCheckpoint(error) => heard.lock().unwrap().push(format!("skipped: {error}")),
        _ => {}
    });
    (tuner, events)
}

#[test]
fn a_run_that_is_cancelled_after_any_step_ends_in_the_same_bytes() {
    let (train, valid) = parts();
    let whole = bytes(&tuner(5).fit(&train, &valid).unwrap());
    let dir = tempfile::tempdir().unwrap();
    for (at, refit) in [(1, false), (4, false), (6, true), (13, false)] {
        let folder = dir.path().join(format!("{at}"));
        let (cancel, mut steps) = (Cancel::new(), 0);
        let stop = cancel.clone();
        let first = tuner(5).run_dir(&folder).refit(refit).cancel(&cancel).on_event(move |event| {
            if let Event::Step { .. } = event {
                steps += 1;
                if steps == at {
                    stop.cancel();
                }
            }
        });
        let first = first.fit(&train, &valid).unwrap();
        let stopped = first.report.stopped.clone().unwrap();
        assert!(stopped.contains(&format!("cancelled after step {at}")), "{stopped}");
        assert!(first.report.refit.is_none(), "a cancelled run does not train again");
        assert_eq!(first.report.epochs.len(), (at - 1) / 4, "the epoch in progress is reported when it has ended");
        assert_eq!(RunState::newest(&folder).unwrap().unwrap().steps(), at);
        let (again, events) = told(tuner(5).run_dir(&folder));
        let again = again.fit(&train, &valid).unwrap();
        assert_eq!(*events.lock().unwrap(), [format!("resumed at step {at}")]);
        assert!(bytes(&again) == whole, "cancelled after step {at}");
        // The folder has the result, and a run that has ended is not trained again.
        assert!(fs::read(folder.join(BEST)).unwrap() == whole);
        assert!(fs::read_to_string(folder.join(REPORT)).unwrap().contains("\"best_epoch\""));
        let (ended, events) = told(tuner(5).run_dir(&folder));
        assert!(bytes(&ended.fit(&train, &valid).unwrap()) == whole);
        assert_eq!(*events.lock().unwrap(), ["resumed at step 16"]);
    }
}

#[test]
fn a_second_training_on_all_samples_resumes_in_a_folder_of_its_own() {
    let (train, valid) = parts();
    let whole = tuner(5).refit(true).fit(&train, &valid).unwrap();
    let of_refit: usize = whole.report.refit.as_ref().unwrap().steps.iter().sum();
    assert!(of_refit > 2, "{of_refit}");
    let dir = tempfile::tempdir().unwrap();
    let (cancel, mut steps) = (Cancel::new(), 0);
    let stop = cancel.clone();
    let first = tuner(5).run_dir(dir.path()).refit(true).cancel(&cancel).on_event(move |event| {
        if let Event::Step { .. } = event {
            steps += 1;
            if steps == 16 + 2 {
                stop.cancel();
            }
        }
    });
    let first = first.fit(&train, &valid).unwrap();
    assert!(first.report.stopped.unwrap().contains("the training on all samples"));
    let (again, events) = told(tuner(5).run_dir(dir.path()).refit(true));
    assert!(bytes(&again.fit(&train, &valid).unwrap()) == bytes(&whole));
    assert_eq!(*events.lock().unwrap(), ["resumed at step 16", "resumed at step 2"]);
}

#[test]
fn a_folder_has_one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new/folder");
    let first = RunDir::open(&folder, 2).unwrap();
    let error = RunDir::open(&folder, 2).map(drop).unwrap_err();
    assert!(matches!(&error, Error::InUse { process: Some(id), .. } if *id == std::process::id()), "{error}");
    assert!(error.to_string().contains("in use by another run (process"), "{error}");
    drop(first);
    // A look into a folder that holds no run leaves it as it is.
    fs::remove_file(folder.join(LOCK)).unwrap();
    assert!(RunState::newest(&folder).unwrap().is_none() && names(&folder).is_empty());
    // What a kill left half written goes; other files stay.
    fs::write(folder.join(".candle-finetune-x1.tmp"), "half").unwrap();
    fs::write(folder.join("notes.tmp"), "mine").unwrap();
    RunDir::open(&folder, 2).unwrap();
    assert_eq!(names(&folder), ["lock", "notes.tmp"]);
    assert!(RunDir::open(&folder, 0).is_err());
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(matches!(RunDir::open(&dir.path().join("file"), 2).map(drop), Err(Error::Io { .. })));
}

#[test]
fn another_run_in_the_folder_is_refused_by_name_of_what_differs() {
    let (train, valid) = parts();
    let dir = tempfile::tempdir().unwrap();
    tuner(5).run_dir(dir.path()).fit(&train, &valid).unwrap();
    let before = names(dir.path());
    let other = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-2))]);
    let wide = FineTuner::new(Backbone::random(Arch::CIFAR_RESNET20, 9, &Device::Cpu).unwrap());
    for (tuner, what) in
        [(tuner(6), "seed"), (tuner(5).plan(other.clone()), "plan"), (wide.plan(other).seed(5), "plan")]
    {
        let error = tuner.run_dir(dir.path()).fit(&train, &valid).map(drop).unwrap_err().to_string();
        assert!(error.contains("differs") && error.contains(what), "{error}");
    }
    let error = tuner(5).run_dir(dir.path()).fit(&valid, &train).map(drop).unwrap_err().to_string();
    assert!(error.contains("training data") && !error.contains("seed"), "{error}");
    let error = tuner(5).run_dir(dir.path()).fit(&train, &train).map(drop).unwrap_err().to_string();
    assert!(error.contains("validation data") && !error.contains("training data"), "{error}");
    assert_eq!(names(dir.path()), before);
    // Reasons are no part of what is trained.
    let mut said = tuner(5);
    said.plan.as_mut().unwrap().reasons.push("because".into());
    said.run_dir(dir.path()).fit(&train, &valid).unwrap();
    let state = after(3).state().unwrap();
    let error = tuner(5).resume(&state).run_dir(dir.path()).fit(&train, &valid).map(drop).unwrap_err().to_string();
    assert!(error.contains("one of the two"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_skipped_said_and_kept_aside() {
    let (train, valid) = parts();
    let whole = bytes(&tuner(5).resume(&after(6).state().unwrap()).fit(&train, &valid).unwrap());
    let dir = tempfile::tempdir().unwrap();
    for damage in [0, 100, 3_000, 50_000, usize::MAX] {
        let folder = dir.path().join(damage.to_string());
        let mut run = RunDir::open(&folder, 2).unwrap();
        for steps in [3, 6, 9] {
            run.save(&mut after(steps)).unwrap();
        }
        let found = run.checkpoints().unwrap();
        assert_eq!(found.iter().map(|(steps, _)| *steps).collect::<Vec<_>>(), [6, 9], "two are kept");
        drop(run);
        let newest = &found[1].1;
        let mut content = fs::read(newest).unwrap();
        match damage {
            usize::MAX => content.truncate(content.len() / 2),
            at => content[at] ^= 0x10,
        }
        fs::write(newest, &content).unwrap();
        let (again, events) = told(tuner(5).run_dir(&folder));
        assert!(bytes(&again.fit(&train, &valid).unwrap()) == whole, "{damage}");
        let events = events.lock().unwrap().clone();
        assert!(events[0].starts_with("skipped") && events[0].contains("checkpoint-00000009"), "{events:?}");
        assert_eq!(events[1..], ["resumed at step 6"]);
        assert!(names(&folder).contains(&"checkpoint-00000009.damaged".to_string()), "{:?}", names(&folder));
        // All damaged: nothing is started anew in silence.
        for (_, file) in RunDir::open(&folder, 2).unwrap().checkpoints().unwrap() {
            fs::write(file, "no checkpoint at all").unwrap();
        }
        let error = tuner(5).run_dir(&folder).fit(&train, &valid).map(drop).unwrap_err().to_string();
        assert!(
            error.contains("no checkpoint of the run is whole") && error.contains("start from the beginning"),
            "{error}"
        );
    }
}

#[test]
fn checkpoints_keep_within_their_share_of_the_time() {
    let ago = |seconds: f64| Instant::now().checked_sub(std::time::Duration::from_secs_f64(seconds)).unwrap();
    let mut pace = Pace { phase: Some(1), since: ago(10.0), spent: 0.0, each: None };
    assert!(!pace.is_due(Some(1), || 0.6) && pace.each == Some(0.6));
    pace.each = None;
    assert!(pace.is_due(Some(1), || 0.4));
    pace.note(0.45);
    assert!(!pace.is_due(Some(1), || 0.0), "0.9 of 10 seconds is more than a twentieth");
    pace.since = ago(20.0);
    assert!(pace.is_due(Some(1), || 0.0));
    // Another phase counts anew.
    assert!(!pace.is_due(Some(2), || 0.0) && pace.spent == 0.0);
}

/// Copies the folder as it is before the n-th call, counted from zero: what a kill or a crash at that moment leaves.
struct Crash<'a> {
    folder: &'a Path,
    copy: &'a Path,
    calls: usize,
    at: usize,
    /// A power cut instead of a kill: what was not synced is lost, which is bytes of files, and new names.
    power_cut: bool,
    /// The names in the folder that are known to be on the disk, with their bytes.
    durable: Vec<(String, Vec<u8>)>,
    /// Files whose bytes were synced.
    synced: BTreeSet<String>,
}

impl Crash<'_> {
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let all = entries(self.folder).unwrap().into_iter();
        all.filter(|(name, _)| name != LOCK).map(|(name, file)| (name, fs::read(file).unwrap())).collect()
    }

    fn take(&self) {
        fs::create_dir_all(self.copy).unwrap();
        let files = if self.power_cut { self.durable.clone() } else { self.files() };
        for (name, bytes) in files {
            fs::write(self.copy.join(name), bytes).unwrap();
        }
        if self.power_cut {
            // New names may have reached the disk, their bytes only if they were synced.
            for (name, bytes) in self.files().into_iter().filter(|(name, _)| name.ends_with(TEMPORARY.1)) {
                let kept = if self.synced.contains(&name) { bytes.len() } else { bytes.len() / 2 };
                fs::write(self.copy.join(name), &bytes[..kept]).unwrap();
            }
        }
    }
}

impl Disk for Crash<'_> {
    fn call<T>(&mut self, what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.calls == self.at {
            self.take();
        }
        self.calls += 1;
        let done = call();
        match what {
            "sync" => self.synced.extend(self.files().into_iter().map(|(name, _)| name)),
            "sync folder" => self.durable = self.files(),
            _ => {}
        }
        done
    }
}

#[test]
fn a_crash_at_any_call_of_a_save_leaves_a_whole_checkpoint() {
    let (train, valid) = parts();
    let dir = tempfile::tempdir().unwrap();
    let mut ends = BTreeSet::new();
    for power_cut in [false, true] {
        for at in 0.. {
            let (folder, copy) =
                (dir.path().join(format!("{power_cut}{at}")), dir.path().join(format!("copy{power_cut}{at}")));
            let mut run = RunDir::open(&folder, 2).unwrap();
            run.save(&mut after(3)).unwrap();
            run.save(&mut after(6)).unwrap();
            let mut session = after(9);
            // A best epoch, whose predictor is written as well.
            let evaluation = session.evaluate(&valid).unwrap();
            session.end_epoch(&evaluation).unwrap();
            let mut disk = Crash {
                folder: &folder,
                copy: &copy,
                calls: 0,
                at,
                power_cut,
                durable: vec![],
                synced: BTreeSet::new(),
            };
            disk.durable = disk.files();
            run.save_through(&mut disk, &mut session).unwrap();
            if disk.calls <= at {
                assert!(at > 14, "{at} calls: a predictor, a checkpoint, and one removed");
                break;
            }
            let restarted = RunDir::open(&copy, 2).unwrap();
            let state = restarted.latest(|error| panic!("call {at}: {error}")).unwrap().expect("a checkpoint");
            ends.insert((power_cut, state.steps()));
            // It can be gone on from.
            let mut resumed = tuner(5).session(&train).unwrap();
            resumed.resume(&state).unwrap();
            let best = copy.join(BEST);
            assert!(!best.exists() || crate::Predictor::from_file(&best, &Device::Cpu).is_ok());
        }
    }
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), [(false, 6), (false, 9), (true, 6), (true, 9)]);
}

/// Lets the n-th call fail, before or after its work is done: a full disk.
struct Failing {
    calls: usize,
    at: usize,
    after: bool,
}

impl Disk for Failing {
    fn call<T>(&mut self, _what: &'static str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let fails = self.calls == self.at;
        self.calls += 1;
        let full = || io::Error::new(io::ErrorKind::StorageFull, "no space left");
        if fails && !self.after {
            return Err(full());
        }
        let done = call();
        if fails { Err(full()) } else { done }
    }
}

#[test]
fn a_full_disk_at_any_call_of_a_save_loses_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    for after_work in [false, true] {
        for at in 0.. {
            let folder = dir.path().join(format!("{after_work}{at}"));
            let mut run = RunDir::open(&folder, 2).unwrap();
            run.save(&mut after(6)).unwrap();
            let mut disk = Failing { calls: 0, at, after: after_work };
            let saved = run.save_through(&mut disk, &mut after(9));
            let state = run.latest(|error| panic!("call {at}: {error}")).unwrap().expect("a checkpoint");
            if disk.calls <= at {
                assert!(saved.is_ok() && state.steps() == 9);
                break;
            }
            let error = saved.unwrap_err();
            assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("no space left"), "{error}");
            assert!([6, 9].contains(&state.steps()));
            assert!(names(&folder).iter().all(|name| !name.ends_with(TEMPORARY.1)), "{:?}", names(&folder));
        }
    }
}

#[test]
fn a_plan_that_was_advised_is_not_advised_again() {
    let (train, valid) = parts();
    let tuner = || FineTuner::new(Backbone::embedded(&Device::Cpu).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let first = tuner().run_dir(dir.path()).fit(&train, &valid).unwrap();
    assert!(first.report.seconds.advice > 0.0);
    let cache = crate::FeatureCache::new();
    let again = tuner().run_dir(dir.path()).cache(&cache).fit(&train, &valid).unwrap();
    assert!(bytes(&again) == bytes(&first));
    assert_eq!(cache.computed(), 0, "nothing was looked at again");
    assert_eq!(again.report.strategy, first.report.strategy);
    assert_eq!(again.report.overrides, first.report.overrides);
    // Nor one that was cancelled on the way.
    let folder = dir.path().join("cancelled");
    let (cancel, mut steps) = (Cancel::new(), 0);
    let stop = cancel.clone();
    let cancelled = tuner().run_dir(&folder).cancel(&cancel).on_event(move |event| {
        if let Event::Step { .. } = event {
            steps += 1;
            if steps == 3 {
                stop.cancel();
            }
        }
    });
    cancelled.fit(&train, &valid).unwrap();
    assert!(!folder.join(BEST).exists(), "no epoch was validated");
    let (again, events) = told(tuner().run_dir(&folder));
    assert!(bytes(&again.fit(&train, &valid).unwrap()) == bytes(&first));
    assert_eq!(*events.lock().unwrap(), ["resumed at step 3"]);
}
