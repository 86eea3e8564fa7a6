//! Trains once more, on training and validation data together.

use super::fit_loop::steps;
use super::fitted::Fitted;
use super::position::Stop;
use super::run_dir::Keeper;
use super::session::Session;
use crate::data::batch_count;
use crate::error::{Error, Result};
use crate::predict::Predictor;
use crate::report::{Refit, Report, Timings};
use crate::schedule::ScheduleShape;
use tracing::info_span;

/// The steps that a run made in each phase until its best epoch.
pub(super) fn stops(report: &Report) -> Vec<Stop> {
    let per_epoch = batch_count(report.samples.train, report.plan.batch_size);
    let kept = &report.epochs[..report.best_epoch.unwrap_or(report.epochs.len()).min(report.epochs.len())];
    let phases = kept.iter().map(|epoch| epoch.phase).max().unwrap_or(0);
    let of = |phase: usize| {
        let epochs = kept.iter().filter(|epoch| epoch.phase == phase).count();
        let all = report.plan.phases.get(phase - 1).map_or(epochs, |phase| phase.epochs);
        let scheduled = all.saturating_mul(per_epoch);
        let scales = report.plan.phases.get(phase - 1).map_or(vec![], |settings| {
            let reacts = matches!(settings.schedule.shape, ScheduleShape::Plateau { .. });
            let of_phase = kept.iter().filter(|epoch| reacts && epoch.phase == phase);
            // An epoch's rate is that of its last step.
            let plain = |epoch: usize| settings.schedule.factor((epoch * per_epoch).saturating_sub(1), scheduled);
            of_phase.map(|epoch| epoch.lr / (settings.optimizer.lr * plain(epoch.epoch))).collect()
        });
        Stop { scheduled, made: epochs * per_epoch, scales, per_epoch }
    };
    (1..=phases).map(of).collect()
}

/// Trains by the whole plan of a session that was started over all samples, up to its stops. `chosen` is the report of the
/// training that set them.
///
/// # Errors
/// [`Error::Cancelled`], and those of a training.
pub(super) fn train(mut session: Session, chosen: &Report, keeper: &mut Keeper) -> Result<(Predictor, Refit, Timings)> {
    while session.next_phase()? {
        let _phase = session.phase_span().entered();
        while session.next_epoch()? {
            let _epoch = info_span!("epoch", epoch = session.epoch()).entered();
            if steps(&mut session, keeper)? {
                let steps = session.steps();
                return Err(Error::Cancelled { what: "the training on all samples", steps });
            }
        }
    }
    keeper.end(&mut session)?;
    if chosen.averaged {
        session.use_averages()?;
    }
    session.take_thresholds(chosen);
    let Fitted { predictor, report } = session.finish()?;
    let mut steps = vec![0; report.epochs.iter().map(|epoch| epoch.phase).max().unwrap_or(0)];
    report.epochs.iter().for_each(|epoch| steps[epoch.phase - 1] += epoch.steps);
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

/// The second training's predictor with the report of the first one or, if the second one diverged or was cancelled, the
/// first one: its report says so then.
pub(super) fn or_first(
    second: Result<(Predictor, Refit, Timings)>,
    mut first: Fitted,
    validation: String,
) -> Result<Fitted> {
    match second {
        Ok(second) => with_report(second, first.report, validation),
        Err(error @ (Error::Diverged(_) | Error::NotFinite { .. } | Error::Audit { .. } | Error::Cancelled { .. })) => {
            let stopped =
                format!("the training on all samples stopped: {error}; the weights are those of the first one");
            tracing::warn!("{stopped}");
            first.report.stopped = Some(stopped);
            first.with_report()
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Joined;
    use crate::error::Divergence;
    use crate::train::waves::waves;
    use crate::{Backbone, FineTuner, Optimizer, Phase, Plan, Schedule};
    use candle_core::Device;
    use std::sync::Arc;

    #[test]
    fn a_rate_that_has_reacted_to_plateaus_is_taken_over() {
        let backbone = Backbone::embedded(&Device::Cpu).unwrap();
        let data = waves(12, 2);
        let phase = Phase::new(4, Optimizer::sgd(0.5)).schedule(Schedule::plateau(0));
        let plan = Plan::new(vec![phase]).batch_size(4);
        let mut fitted = FineTuner::new(backbone.clone()).plan(plan).fit(&data, &data.clone()).unwrap();
        fitted.report.best_epoch = None;
        let rates: Vec<f64> = fitted.report.epochs.iter().map(|epoch| epoch.lr).collect();
        let found = stops(&fitted.report);
        assert_eq!((found[0].made, found[0].per_epoch, found[0].scales.len()), (12, 3, 4));
        assert!(
            rates.iter().zip(&found[0].scales).all(|(rate, scale)| (rate - 0.5 * scale).abs() < 1e-12),
            "{rates:?}"
        );
        // With more samples of which an epoch has more steps, the same step has the same rate.
        let tuner = FineTuner::new(backbone).plan(fitted.report.plan.clone());
        let scales = vec![1.0, 0.1, 0.1, 0.01];
        let stop = Stop { scales, ..found[0].clone() };
        let twice = Arc::new(Joined::of(Arc::new(data.clone()), Arc::new(data)).unwrap());
        let (mut session, _) = tuner.again(&fitted.report, &[stop], twice).unwrap();
        let mut seen = vec![];
        while session.next_phase().unwrap() {
            while session.next_epoch().unwrap() {
                while let Some(batch) = session.next_batch().unwrap() {
                    seen.push(session.lr().unwrap());
                    session.step(&batch).unwrap();
                }
            }
        }
        let expected = [[0.5; 3], [0.05; 3], [0.05; 3], [0.005; 3]].concat();
        assert!(seen.len() == 12 && seen.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{seen:?}");
    }

    #[test]
    fn a_second_training_that_diverges_leaves_the_first() {
        let backbone = Backbone::embedded(&Device::Cpu).unwrap();
        let data = waves(8, 2);
        let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]);
        let first = FineTuner::new(backbone).plan(plan).fit(&data, &data.clone()).unwrap();
        let diverged = || Error::diverged(Divergence::of_loss("training loss", 3, f64::NAN, None));
        let kept = or_first(Err(diverged()), first.clone(), String::new()).unwrap();
        let stopped = kept.report.stopped.as_deref().unwrap();
        assert!(stopped.contains("on all samples stopped") && stopped.contains("step 3"), "{stopped}");
        assert!(kept.report.refit.is_none() && kept.predictor.report().unwrap().unwrap().stopped.is_some());
        assert_eq!(kept.predictor.evaluate(&data).unwrap(), first.predictor.evaluate(&data).unwrap());
        // What is no divergence is an error.
        assert!(or_first(Err(Error::invalid("sample", "is gone")), first, String::new()).is_err());
    }
}
