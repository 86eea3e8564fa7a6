//! Listeners of a run, and its spans.

use super::*;
use candle_finetune::{HeadStart, csv_lines, json_lines, tensorboard};
use std::fmt::{self, Write};
use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

#[test]
fn several_listeners_hear_the_same_run() {
    let (train, valid) = data();
    let dir = tempfile::tempdir().unwrap();
    let [table, lines] = ["run.csv", "run.jsonl"].map(|name| dir.path().join(name));
    let folder = dir.path().join("scalars");
    let order = Arc::new(Mutex::new(Vec::new()));
    let [first, second] = [1, 2].map(|number| {
        let order = Arc::clone(&order);
        move |event: &Event<'_>| {
            if matches!(event, Event::Start(_)) {
                order.lock().unwrap().push(number);
            }
        }
    });
    let tuner = tuner(plans().remove(2)).on_event(first).on_event(second);
    let tuner = tuner.on_event(csv_lines(File::create(&table).unwrap()));
    let tuner = tuner.on_event(json_lines(File::create(&lines).unwrap())).on_event(tensorboard(&folder).unwrap());
    let report = tuner.fit(&train, &valid).unwrap().report;
    assert_eq!(*order.lock().unwrap(), [1, 2]);

    let table = fs::read_to_string(&table).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 1 + report.epochs.len());
    assert!(rows.iter().all(|row| row.len() == 15), "{table}");
    let column = |name: &str| rows[0].iter().position(|column| *column == name).unwrap();
    for (i, (row, epoch)) in rows[1..].iter().zip(&report.epochs).enumerate() {
        let number = |name: &str| row[column(name)].parse::<f64>().unwrap();
        assert_eq!((number("phase"), number("epoch")), (epoch.phase as f64, epoch.epoch as f64));
        // Three steps of 8, 8 and 5 samples.
        assert_eq!(number("run_step"), 3.0 * (i + 1) as f64);
        assert_eq!((number("train_loss"), number("lr")), (epoch.train_loss, epoch.lr));
        assert_eq!(Some(number("valid_loss")), epoch.valid_loss);
        assert_eq!((Some(number("valid_top1")), number("top1")), (epoch.valid_top1, epoch.valid_top1.unwrap()));
        assert_eq!(row[column("best")], epoch.best.to_string());
    }

    let lines = fs::read_to_string(&lines).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    assert_eq!(of("epoch").len(), report.epochs.len());
    let steps = of("step");
    let counted: Vec<_> =
        steps.iter().map(|line| (line["run_step"].as_u64().unwrap(), line["phase"].as_u64())).collect();
    assert_eq!(counted, (1..=12).map(|step| (step, Some(1 + (step - 1) / 6))).collect::<Vec<_>>());
    let samples: Vec<_> = steps.iter().map(|line| line["samples"].as_u64().unwrap()).collect();
    assert_eq!(samples, [8, 8, 5].repeat(4));

    let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(files.len() == 1 && files[0].metadata().unwrap().len() > 12 * 60, "{files:?}");
}

#[test]
fn a_state_that_is_resumed_is_told() {
    let (train, _) = data();
    let plan = plans().remove(0);
    let mut session = tuner(plan.clone()).session(&train).unwrap();
    assert!(session.next_phase().unwrap() && session.next_epoch().unwrap());
    let batch = session.next_batch().unwrap().unwrap();
    session.step(&batch).unwrap();
    let state = session.state().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let tuner = tuner(plan).resume(&state).on_event(move |event| {
        if let Event::Resumed { step } = event {
            heard.lock().unwrap().push(*step);
        }
    });
    tuner.session(&train).unwrap();
    assert_eq!(*told.lock().unwrap(), [1]);
}

/// Keeps the path of names from the root to each span that is entered: "phase/epoch/step".
#[derive(Clone, Default)]
struct Paths(Arc<Inner>);

#[derive(Default)]
struct Inner {
    next: AtomicU64,
    /// The name and fields of each span by its id.
    spans: Mutex<BTreeMap<u64, (&'static str, String)>>,
    /// Those that are entered now.
    entered: Mutex<Vec<u64>>,
    paths: Mutex<Vec<String>>,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Subscriber for Paths {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("candle_finetune")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fields = String::new();
        span.record(&mut Fields(&mut fields));
        self.0.spans.lock().unwrap().insert(id, (span.metadata().name(), fields));
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &tracing::Event<'_>) {}

    fn enter(&self, span: &Id) {
        let mut entered = self.0.entered.lock().unwrap();
        entered.push(span.into_u64());
        let spans = self.0.spans.lock().unwrap();
        let above: Vec<&str> = entered[..entered.len() - 1].iter().map(|id| spans[id].0).collect();
        let (name, fields) = &spans[&span.into_u64()];
        self.0.paths.lock().unwrap().push([&above[..], &[&format!("{name}{fields}")]].concat().join("/"));
    }

    fn exit(&self, span: &Id) {
        assert_eq!(self.0.entered.lock().unwrap().pop(), Some(span.into_u64()), "spans are not nested");
    }
}

#[test]
fn spans_are_nested() {
    let (train, valid) = data();
    let plan = plan(vec![phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 2)], 11).head_start(HeadStart::Probe);
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::default();
    // With one subscriber alone, tracing asks the thread that comes first to a span, which may be that of another test.
    let _other = tracing::Dispatch::new(Paths::default());
    tracing::subscriber::with_default(paths.clone(), || {
        tuner(plan).run_dir(dir.path().join("run")).fit(&train, &valid).unwrap()
    });
    assert!(paths.0.entered.lock().unwrap().is_empty());
    let paths = paths.0.paths.lock().unwrap();
    let has = |path: &str| paths.iter().any(|other| other == path);
    for path in [
        "head_fit samples=21",
        "head_fit/features samples=21 views=1",
        "validation samples=12",
        "phase phase=1 phases=1 frozen_blocks=10",
        "phase/features samples=21 views=1",
        "phase/features samples=12 views=1",
        "phase/epoch epoch=1",
        "phase/epoch epoch=2",
        "phase/epoch/step step=1",
        "phase/epoch/step step=4",
        "phase/epoch/validation samples=12",
        "checkpoint step=4",
    ] {
        assert!(has(path), "{path} is not in {paths:#?}");
    }
    let count = |end: &str| paths.iter().filter(|path| path.contains(end)).count();
    assert_eq!((count("/step "), count("/validation ")), (4, 2), "{paths:#?}");
}
