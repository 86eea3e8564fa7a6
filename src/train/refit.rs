//! Trains once more, on training and validation data together.

use super::fitted::Fitted;
use super::position::Stop;
use super::session::Session;
use crate::data::batch_count;
use crate::error::Result;
use crate::predict::Predictor;
use crate::report::{Refit, Report, Timings};

/// The steps that a run made in each phase until its best epoch.
pub(super) fn stops(report: &Report) -> Vec<Stop> {
    let per_epoch = batch_count(report.samples.train, report.plan.batch_size);
    let kept = &report.epochs[..report.best_epoch.unwrap_or(report.epochs.len()).min(report.epochs.len())];
    let phases = kept.iter().map(|epoch| epoch.phase).max().unwrap_or(0);
    let of = |phase: usize| {
        let epochs = kept.iter().filter(|epoch| epoch.phase == phase).count();
        let all = report.plan.phases.get(phase - 1).map_or(epochs, |phase| phase.epochs);
        Stop { scheduled: all.saturating_mul(per_epoch), made: epochs * per_epoch }
    };
    (1..=phases).map(of).collect()
}

/// Trains by the whole plan of a session that was started over all samples, up to these steps.
pub(super) fn train(mut session: Session, stops: &[Stop]) -> Result<(Predictor, Refit, Timings)> {
    while session.next_phase()? {
        while session.next_epoch()? {
            while let Some(batch) = session.next_batch()? {
                session.step(&batch)?;
            }
        }
    }
    let Fitted { predictor, report } = session.finish()?;
    let steps = stops.iter().map(|stop| stop.made).collect();
    let refit =
        Refit { samples: report.samples.train, steps, validation: String::new(), seconds: report.seconds.total };
    Ok((predictor, refit, report.seconds))
}

/// The second training's predictor, with the report of the first one, to which the second is added; `validation` says
/// whose accuracy that shows.
pub(super) fn with_report(
    (predictor, refit, seconds): (Predictor, Refit, Timings),
    mut report: Report,
    validation: String,
) -> Result<Fitted> {
    report.seconds.features += seconds.features;
    report.seconds.train += seconds.train;
    report.seconds.total += seconds.total;
    report.refit = Some(Refit { validation, ..refit });
    Fitted { predictor, report }.with_report()
}
