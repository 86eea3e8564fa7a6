//! Progress bars.
//!
//! The examples include this file, so that they have bars in builds without the feature `progress`: it takes from the
//! crate only what stands in `super`.

use super::{Event, progress_lines};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::Write;
use std::time::{Duration, Instant};

/// A listener that draws a progress bar on standard error: the features that are being computed, then each epoch with
/// images per second, loss, the last validation accuracy and the time left of the epoch. The plan and a line per epoch
/// are printed above it, as by [`progress_lines`]. Where standard error is no terminal there are only the lines.
///
/// Where features are cached, an image is a row of features.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, candle_core::Device};
/// use candle_finetune::{FineTuner, progress_bars};
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// let tuner = FineTuner::new(backbone).on_event(progress_bars());
/// # let _ = tuner;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
pub fn progress_bars() -> impl FnMut(&Event<'_>) + Send + 'static {
    drawn_on(ProgressBar::new(1), std::io::stderr())
}

/// The listener, with its bar and the place of its lines.
fn drawn_on(bar: ProgressBar, out: impl Write + Send + 'static) -> impl FnMut(&Event<'_>) + Send + 'static {
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:10}] {pos}/{len} {wide_msg}") {
        bar.set_style(style);
    }
    let mut lines = progress_lines(out);
    let mut phase_text = String::new();
    let (mut epoch_so_far, mut last_top1) = (SoFar::new(), None);
    move |event| {
        match event {
            Event::Step { epoch, step, steps, loss, samples, .. } => {
                epoch_so_far.steps += 1;
                epoch_so_far.samples += samples;
                let left = steps.saturating_sub(*step);
                let text = epoch_so_far.text(epoch_so_far.since.elapsed(), left, *loss, last_top1);
                show(&bar, format!("{phase_text}epoch {epoch}"), (*step, *steps), text);
                return;
            }
            Event::Features { done, total } => {
                show(&bar, "features".into(), (*done, *total), String::new());
                if done < total {
                    return;
                }
            }
            Event::Phase { phase, phases, .. } => phase_text = format!("phase {phase}/{phases} "),
            Event::HeadFit(fit) => last_top1 = fit.valid_top1,
            Event::Epoch(report) => last_top1 = report.valid_top1,
            Event::Start(_) => last_top1 = None,
            _ => {}
        }
        // What comes next is an epoch's first step, or another bar.
        bar.finish_and_clear();
        lines(event);
        epoch_so_far = SoFar::new();
    }
}

fn show(bar: &ProgressBar, what: String, (done, of): (usize, usize), text: String) {
    bar.set_prefix(what);
    bar.set_message(text);
    bar.set_length(of as u64);
    if bar.is_finished() {
        bar.reset();
    }
    bar.set_position(done as u64);
}

/// The steps of an epoch since it began, or since the run was resumed within it.
struct SoFar {
    since: Instant,
    steps: u32,
    samples: usize,
}

impl SoFar {
    fn new() -> Self {
        Self { since: Instant::now(), steps: 0, samples: 0 }
    }

    /// `12s left, 812 images/s, loss 0.123, top1 0.944` after `elapsed`; a narrow terminal cuts off the end.
    fn text(&self, elapsed: Duration, left: usize, loss: f64, last_top1: Option<f64>) -> String {
        let rate = self.samples as f64 / elapsed.as_secs_f64().max(1e-9);
        let top1 = last_top1.map_or(String::new(), |top1| format!(", top1 {top1:.3}"));
        let left = elapsed.mul_f64(left as f64 / f64::from(self.steps.max(1)));
        format!("{:#} left, {rate:.0} images/s, loss {loss:.3}{top1}", HumanDuration(left))
    }
}

#[cfg(test)]
mod tests;
