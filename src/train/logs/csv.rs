//! A table of the epochs as CSV (RFC 4180).

use super::writer::LineWriter;
use crate::metrics::Metric;
use crate::report::EpochReport;
use crate::train::event::Event;
use std::io::Write;

/// A listener that writes a table of the epochs as CSV: a header, then a row per epoch.
///
/// | column | |
/// |---|---|
/// | `phase`, `epoch` | from 1 |
/// | `run_step` | optimizer steps of the run so far |
/// | `lr` | the head's learning rate at the epoch's end |
/// | `train_loss`, `train_top1` | over the epoch's batches |
/// | `gradient_norm` | its mean before clipping |
/// | `valid_loss`, `valid_top1` | on the validation data |
/// | the metric's name, `macro_f1` say | the run's metric ([`FineTuner::metric`](crate::FineTuner::metric)) on the validation data |
/// | `averaged_loss`, `averaged_top1` | of the moving averages of the weights ([`Plan::ema`](crate::Plan::ema)) on the validation data |
/// | `best` | `true` if it was the best epoch so far |
/// | `seconds`, `images_per_second` | of training |
///
/// A number that does not exist is an empty field, that of a validation that was not made for example; one that is not
/// finite is `NaN`, `inf` or `-inf`. A training on all samples at the end adds its epochs, from step 1 again.
///
/// The header is written at [`Event::Start`]. To append a run that resumes to a file that has a header, leave that event
/// out. The run repeats the epochs after its checkpoint, so of rows with the same phase and epoch the last one counts.
///
/// Each line is flushed. One that cannot be written is dropped with a warning of `tracing`, the first time; the run
/// continues.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, Optimizer, Phase, Plan, TensorDataset};
/// # use candle_finetune::candle_core::{Device, Tensor};
/// use candle_finetune::{FineTuner, csv_lines};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]);
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("epochs.csv");
/// let file = std::fs::File::create(&path).unwrap();
/// FineTuner::new(backbone).plan(plan).on_event(csv_lines(file)).fit(&train, &valid)?;
/// let text = std::fs::read_to_string(&path).unwrap();
/// assert!(text.starts_with("phase,epoch,run_step,lr,train_loss,") && text.lines().count() == 3);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub fn csv_lines(out: impl Write + Send + 'static) -> impl FnMut(&Event<'_>) + Send + 'static {
    let mut out = LineWriter::new(out);
    let (mut header, mut run_step) = (String::new(), 0);
    move |event| match event {
        Event::Start(report) => {
            let new = columns(report.metric);
            // Of several runs, folds say, the first one writes it.
            if new != header {
                out.line(&new);
                header = new;
            }
            run_step = 0;
        }
        Event::Resumed { step } | Event::Step { run_step: step, .. } => run_step = *step,
        Event::Epoch(report) => out.line(&row(report, run_step)),
        _ => {}
    }
}

fn columns(metric: Metric) -> String {
    format!(
        "phase,epoch,run_step,lr,train_loss,train_top1,gradient_norm,valid_loss,valid_top1,{},averaged_loss,averaged_top1,\
         best,seconds,images_per_second",
        quoted(metric.name())
    )
}

/// Numbers, `true` and `false` need no quotes.
fn row(report: &EpochReport, run_step: usize) -> String {
    let EpochReport { phase, epoch, lr, train_loss, gradient_norm, best, seconds, images_per_second, .. } = report;
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let [top1, valid_loss, valid_top1, metric] =
        [report.train_top1, report.valid_loss, report.valid_top1, report.valid_metric].map(optional);
    let [averaged_loss, averaged_top1] =
        [report.averaged.map(|averaged| averaged.loss), report.averaged.map(|averaged| averaged.top1)].map(optional);
    format!(
        "{phase},{epoch},{run_step},{lr},{train_loss},{top1},{gradient_norm},{valid_loss},{valid_top1},{metric},\
         {averaged_loss},{averaged_top1},{best},{seconds},{images_per_second}"
    )
}

/// A field of text, in quotes if it holds a comma, a quote or a line break.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn fields_are_quoted_where_they_need_it() {
        for (field, expected) in [
            ("macro_f1", "macro_f1"),
            ("a b", "a b"),
            ("a,b", "\"a,b\""),
            ("5\"", "\"5\"\"\""),
            ("a\nb", "\"a\nb\""),
            ("", ""),
        ] {
            assert_eq!(quoted(field), expected);
        }
    }
}
