use super::{csv_lines, json_lines, progress_lines};
use crate::error::Error;
use crate::metrics::Metric;
use crate::report::{EpochReport, HeadFit, Report};
use crate::train::event::Event;
use crate::train::fine_tuner::FineTuner;
use crate::train::waves::waves;
use crate::{Backbone, Optimizer, Phase, Plan};
use candle_core::Device;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// A place for lines that a test looks at.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Kept {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// The report of a run that begins.
pub fn started(metric: Metric) -> Report {
    let plan = Plan::new(vec![Phase::new(1, Optimizer::sgd(0.1))]).batch_size(4);
    let tuner = FineTuner::new(Backbone::embedded(&Device::Cpu).unwrap()).plan(plan).metric(metric);
    tuner.session(&waves(4, 2)).unwrap().report().clone()
}

pub fn epoch(number: usize, valid_loss: Option<f64>) -> EpochReport {
    EpochReport {
        phase: 2,
        epoch: number,
        lr: 0.001,
        train_loss: 0.5,
        train_top1: valid_loss.map(|_| 0.75),
        gradient_norm: 2.0,
        steps: 4,
        valid_loss,
        valid_top1: valid_loss.map(|_| 0.25),
        valid_interval: valid_loss.map(|_| (0.0, 0.5)),
        valid_metric: valid_loss.map(|_| 0.125),
        averaged: None,
        best: valid_loss.is_some(),
        seconds: 1.5,
        images_per_second: 64.0,
    }
}

pub fn step(run_step: usize, loss: f64) -> Event<'static> {
    Event::Step { epoch: 1, step: run_step, steps: 9, loss, lr: 0.01, gradient_norm: 3.0, run_step, samples: 8 }
}

pub fn head_fit() -> HeadFit {
    HeadFit {
        samples: 4,
        kept: 64,
        columns: 64,
        penalty: 0.5,
        temperature: 1.5,
        top1: 1.0,
        valid_loss: Some(0.5),
        valid_top1: Some(0.75),
    }
}

#[test]
fn a_table_has_a_header_and_a_row_per_epoch() {
    let kept = Kept::default();
    let mut hear = csv_lines(kept.clone());
    let report = started(Metric::MacroF1);
    hear(&Event::Start(&report));
    for number in 1..=3 {
        hear(&step(number, 0.5));
    }
    hear(&Event::Epoch(&epoch(1, Some(f64::INFINITY))));
    hear(&Event::Resumed { step: 7 });
    hear(&Event::Epoch(&epoch(2, None)));
    // A second run adds rows, and no header unless its metric is another one.
    hear(&Event::Start(&report));
    hear(&Event::Epoch(&epoch(1, Some(0.0))));
    hear(&Event::Start(&started(Metric::Top1)));
    let columns = |metric| {
        format!(
            "phase,epoch,run_step,lr,train_loss,train_top1,gradient_norm,valid_loss,valid_top1,{metric},averaged_loss,\
             averaged_top1,best,seconds,images_per_second"
        )
    };
    let expected = [
        &columns("macro_f1"),
        "2,1,3,0.001,0.5,0.75,2,inf,0.25,0.125,,,true,1.5,64",
        "2,2,7,0.001,0.5,,2,,,,,,false,1.5,64",
        "2,1,0,0.001,0.5,0.75,2,0,0.25,0.125,,,true,1.5,64",
        &columns("top1"),
    ];
    assert_eq!(kept.text(), expected.join("\n") + "\n");
}

#[test]
fn every_event_is_a_line_of_json() {
    let kept = Kept::default();
    let mut hear = json_lines(kept.clone());
    let (report, fit, damaged) = (started(Metric::Loss), head_fit(), Error::invalid("a", "is\nb"));
    let (of_epoch, mut diverged) = (epoch(1, Some(f64::NAN)), step(5, f64::NEG_INFINITY));
    if let Event::Step { lr, gradient_norm, .. } = &mut diverged {
        (*lr, *gradient_norm) = (f64::INFINITY, f64::NAN);
    }
    let events = [
        Event::Start(&report),
        Event::Phase { phase: 2, phases: 3, frozen_blocks: 4 },
        Event::Features { done: 1, total: 2 },
        Event::HeadFit(&fit),
        step(4, 0.5),
        diverged,
        Event::Warning("look at \"lr\""),
        Event::Epoch(&of_epoch),
        Event::Resumed { step: 3 },
        Event::Epoch(&of_epoch),
        Event::SkippedCheckpoint(&damaged),
        Event::Fold { number: 1, folds: 5, top1: 0.5 },
    ];
    events.iter().for_each(&mut hear);
    let mut expected = vec![
        r#"{"event":"phase","phase":2,"phases":3,"frozen_blocks":4}"#.to_string(),
        r#"{"event":"features","done":1,"total":2}"#.into(),
        r#"{"event":"head_fit","samples":4,"kept":64,"columns":64,"penalty":0.5,"temperature":1.5,"top1":1.0,"valid_loss":0.5,"valid_top1":0.75}"#.into(),
        r#"{"event":"step","phase":2,"epoch":1,"step":4,"steps":9,"run_step":4,"samples":8,"loss":0.5,"lr":0.01,"gradient_norm":3.0}"#.into(),
        r#"{"event":"step","phase":2,"epoch":1,"step":5,"steps":9,"run_step":5,"samples":8,"loss":"-inf","lr":"inf","gradient_norm":"NaN"}"#.into(),
        r#"{"event":"warning","text":"look at \"lr\""}"#.into(),
    ];
    let of_epoch = |run_step| {
        format!(
            r#"{{"event":"epoch","run_step":{run_step},"phase":2,"epoch":1,"lr":0.001,"train_loss":0.5,"train_top1":0.75,"gradient_norm":2.0,"steps":4,"valid_loss":"NaN","valid_top1":0.25,"valid_interval":[0.0,0.5],"valid_metric":0.125,"best":true,"seconds":1.5,"images_per_second":64.0}}"#
        )
    };
    expected.extend([
        of_epoch(5),
        r#"{"event":"resumed","step":3}"#.into(),
        of_epoch(3),
        r#"{"event":"skipped_checkpoint","error":"a: is\nb"}"#.into(),
        r#"{"event":"fold","number":1,"folds":5,"top1":0.5}"#.into(),
    ]);
    let text = kept.text();
    let (first, others) = text.split_once('\n').unwrap();
    assert_eq!(others.lines().collect::<Vec<_>>(), expected);
    let first: serde_json::Value = serde_json::from_str(first).unwrap();
    assert_eq!(first["event"], "start");
    assert_eq!(first["report"], serde_json::from_str::<serde_json::Value>(&report.to_json().unwrap()).unwrap());
}

#[test]
fn warnings_are_lines() {
    let kept = Kept::default();
    progress_lines(kept.clone())(&Event::Warning("the loss does not fall"));
    assert_eq!(kept.text(), "warning: the loss does not fall\n");
}

/// A disk that has room for some bytes, until more is made.
struct Full {
    kept: Kept,
    room: Arc<Mutex<usize>>,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.room.lock().unwrap();
        let fits = bytes.len().min(*room);
        if fits == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *room -= fits;
        self.kept.write(&bytes[..fits])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_after_one_that_could_not_be_written_are_whole() {
    let (kept, room) = (Kept::default(), Arc::new(Mutex::new(45)));
    let mut hear = json_lines(Full { kept: kept.clone(), room: Arc::clone(&room) });
    for done in 1..=3 {
        hear(&Event::Features { done, total: 9 });
    }
    *room.lock().unwrap() = 1000;
    for done in 4..=5 {
        hear(&Event::Features { done, total: 9 });
    }
    let expected = [
        r#"{"event":"features","done":1,"total":9}"#,
        r#"{"eve"#,
        r#"{"event":"features","done":4,"total":9}"#,
        r#"{"event":"features","done":5,"total":9}"#,
    ];
    assert_eq!(kept.text(), expected.join("\n") + "\n");
}
