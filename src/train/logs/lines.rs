//! Lines for people.

use crate::metrics::Metric;
use crate::train::event::Event;
use std::io::Write;

/// A listener that writes the plan, then a line per epoch.
///
/// A line that cannot be written is dropped; the run continues.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, candle_core::Device};
/// use candle_finetune::{FineTuner, progress_lines};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let tuner = FineTuner::new(backbone).on_event(progress_lines(std::io::stderr()));
/// # let _ = tuner;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub fn progress_lines(mut out: impl Write + Send + 'static) -> impl FnMut(&Event<'_>) + Send + 'static {
    // What decides, where a line does not have it anyway.
    let mut metric = None;
    move |event| {
        if let Event::Start(report) = event {
            metric = Some(report.metric).filter(|metric| !matches!(metric, Metric::Top1 | Metric::Loss));
        }
        // A closed pipe is no reason to lose the training.
        let _ = match event {
            Event::Start(report) => writeln!(out, "{}", report.header()),
            Event::Features { done, total } if done == total => writeln!(out, "features of {total} samples computed"),
            Event::HeadFit(fit) => writeln!(out, "{fit}"),
            Event::Epoch(report) => match metric.zip(report.valid_metric) {
                Some((metric, value)) => writeln!(out, "{report}  {metric} {value:.4}"),
                None => writeln!(out, "{report}"),
            },
            Event::Warning(text) => writeln!(out, "warning: {text}"),
            Event::Resumed { step } => writeln!(out, "resumed at step {step}"),
            Event::SkippedCheckpoint(error) => writeln!(out, "a damaged checkpoint is skipped: {error}"),
            Event::Fold { number, folds, top1 } => writeln!(out, "fold {number} of {folds}: top1 {top1:.4}"),
            _ => Ok(()),
        };
    }
}
