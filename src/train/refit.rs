//! Trains once more, on training and validation data together.

use super::fitted::Fitted;
use super::position::Stop;
use super::run_dir::Keeper;
use super::session::Session;
use crate::data::batch_count;
use crate::error::{Error, Result};
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
///
/// # Errors
/// [`Error::Cancelled`], and those of a training.
pub(super) fn train(mut session: Session, stops: &[Stop], keeper: &mut Keeper) -> Result<(Predictor, Refit, Timings)> {
    while session.next_phase()? {
        while session.next_epoch()? {
            while let Some(batch) = session.next_batch()? {
                session.step(&batch)?;
                if keeper.after(&mut session)? {
                    let steps = session.state()?.steps();
                    return Err(Error::Cancelled { what: "the training on all samples", steps });
                }
            }
        }
    }
    keeper.end(&mut session)?;
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

/// The second training's predictor with the report of the first one or, if the second one diverged or was cancelled, the
/// first one: its report says so then.
pub(super) fn or_first(
    second: Result<(Predictor, Refit, Timings)>,
    mut first: Fitted,
    validation: String,
) -> Result<Fitted> {
    match second {
        Ok(second) => with_report(second, first.report, validation),
        Err(
            error @ (Error::Diverged { .. } | Error::NotFinite { .. } | Error::Audit { .. } | Error::Cancelled { .. }),
        ) => {
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
    use crate::{Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
    use candle_core::{Device, Tensor};

    #[test]
    fn a_second_training_that_diverges_leaves_the_first() {
        let backbone = Backbone::embedded(&Device::Cpu).unwrap();
        let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu).unwrap() * 0.01).unwrap().sin().unwrap();
        let images = images.reshape((8, 3, 32, 32)).unwrap();
        let data = TensorDataset::new(images, (0..8).map(|i| i % 2).collect(), vec!["a".into(), "b".into()]).unwrap();
        let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]);
        let first = FineTuner::new(backbone).plan(plan).fit(&data, &data.clone()).unwrap();
        let diverged = || Error::Diverged { what: "training loss", step: 3, loss: f64::NAN };
        let kept = or_first(Err(diverged()), first.clone(), String::new()).unwrap();
        let stopped = kept.report.stopped.as_deref().unwrap();
        assert!(stopped.contains("on all samples stopped") && stopped.contains("step 3"), "{stopped}");
        assert!(kept.report.refit.is_none() && kept.predictor.report().unwrap().unwrap().stopped.is_some());
        assert_eq!(kept.predictor.evaluate(&data).unwrap(), first.predictor.evaluate(&data).unwrap());
        // What is no divergence is an error.
        assert!(or_first(Err(Error::invalid("sample", "is gone")), first, String::new()).is_err());
    }
}
