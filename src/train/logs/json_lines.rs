//! Events as lines of JSON.

use super::writer::LineWriter;
use crate::metrics::any_float;
use crate::report::{EpochReport, HeadFit, Report};
use crate::train::event::Event;
use serde::Serialize;
use std::io::Write;

/// An event as it is written: a form of its own, so that a change of [`Event`] does not change the files.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line<'a> {
    Start {
        report: &'a Report,
    },
    Phase {
        phase: usize,
        phases: usize,
        frozen_blocks: usize,
    },
    Features {
        done: usize,
        total: usize,
    },
    HeadFit(&'a HeadFit),
    Step {
        phase: usize,
        epoch: usize,
        step: usize,
        steps: usize,
        run_step: usize,
        samples: usize,
        #[serde(with = "any_float")]
        loss: f64,
        #[serde(with = "any_float")]
        lr: f64,
        #[serde(with = "any_float")]
        gradient_norm: f64,
    },
    Warning {
        text: &'a str,
    },
    Resumed {
        step: usize,
    },
    SkippedCheckpoint {
        error: String,
    },
    Epoch {
        run_step: usize,
        #[serde(flatten)]
        report: &'a EpochReport,
    },
    Fold {
        number: usize,
        folds: usize,
        #[serde(with = "any_float")]
        top1: f64,
    },
}

/// A listener that writes every event as one line of JSON (<https://jsonlines.org>), with its name in the field `event`.
///
/// | `event` | fields |
/// |---|---|
/// | `start` | `report`, as [`Report::to_json`] has it |
/// | `phase` | `phase`, `phases`, `frozen_blocks` |
/// | `features` | `done`, `total` |
/// | `head_fit` | those of [`HeadFit`] |
/// | `step` | `phase`, `epoch`, `step`, `steps`, `run_step`, `samples`, `loss`, `lr`, `gradient_norm` |
/// | `epoch` | `run_step` and those of [`EpochReport`] |
/// | `warning` | `text` |
/// | `resumed` | `step` |
/// | `skipped_checkpoint` | `error` |
/// | `fold` | `number`, `folds`, `top1` |
///
/// The fields are those of [`Event`]. JSON has no NaN and no infinity: they are the texts `"NaN"`, `"inf"` and `"-inf"`.
///
/// A run that resumes repeats the steps after its checkpoint: those up to `step` of the line `resumed` count, and what
/// follows it.
///
/// Each line is flushed. One that cannot be written is dropped with a warning of `tracing`, the first time; the run
/// continues.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, Optimizer, Phase, Plan, TensorDataset};
/// # use candle_finetune::candle_core::{Device, Tensor};
/// use candle_finetune::{FineTuner, json_lines};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]);
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("run.jsonl");
/// let file = std::fs::File::create(&path).unwrap();
/// FineTuner::new(backbone).plan(plan).on_event(json_lines(file)).fit(&train, &valid)?;
/// let text = std::fs::read_to_string(&path).unwrap();
/// let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
/// assert_eq!(lines[0]["event"], "start");
/// assert_eq!(lines.iter().filter(|line| line["event"] == "epoch").count(), 2);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub fn json_lines(out: impl Write + Send + 'static) -> impl FnMut(&Event<'_>) + Send + 'static {
    let mut out = LineWriter::new(out);
    let (mut in_phase, mut steps_made) = (0, 0);
    move |event| {
        match event {
            Event::Start(_) => (in_phase, steps_made) = (0, 0),
            Event::Phase { phase, .. } => in_phase = *phase,
            Event::Step { run_step, .. } => steps_made = *run_step,
            Event::Resumed { step } => steps_made = *step,
            _ => {}
        }
        // Not reached: all of this has a form in JSON.
        let Ok(text) = serde_json::to_string(&line(event, in_phase, steps_made)) else { return };
        out.line(&text);
    }
}

fn line<'a>(event: &'a Event<'a>, in_phase: usize, steps_made: usize) -> Line<'a> {
    match *event {
        Event::Start(report) => Line::Start { report },
        Event::Phase { phase, phases, frozen_blocks } => Line::Phase { phase, phases, frozen_blocks },
        Event::Features { done, total } => Line::Features { done, total },
        Event::HeadFit(fit) => Line::HeadFit(fit),
        Event::Step { epoch, step, steps, loss, lr, gradient_norm, run_step, samples } => {
            Line::Step { phase: in_phase, epoch, step, steps, run_step, samples, loss, lr, gradient_norm }
        }
        Event::Warning(text) => Line::Warning { text },
        Event::Resumed { step } => Line::Resumed { step },
        Event::SkippedCheckpoint(error) => Line::SkippedCheckpoint { error: error.to_string() },
        Event::Epoch(report) => Line::Epoch { run_step: steps_made, report },
        Event::Fold { number, folds, top1 } => Line::Fold { number, folds, top1 },
    }
}
