//! Starts a session: checks, initial weights, and warnings.

use super::{Continues, Session};
use crate::data::{Augment, Dataset, Loader, Target, Transform};
use crate::error::{Error, Result};
use crate::metrics::{Metric, Task};
use crate::plan::{Init, Plan};
use crate::report::{FeatureCounts, ParameterCounts, Report, SampleCounts, Timings};
use crate::train::anchors::Anchors;
use crate::train::averages::Averages;
use crate::train::best::Best;
use crate::train::event::Event;
use crate::train::learner::Learners;
use crate::train::memory;
use crate::train::model::Model;
use crate::train::pending::Pending;
use crate::train::position::Counters;
use crate::train::sampler::Weights;
use crate::train::setup::Setup;
use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

impl Session {
    pub(in crate::train) fn start(setup: Setup, data: Arc<dyn Dataset>) -> Result<Self> {
        let started = Instant::now();
        let Setup { backbone, head, plan, strategy, overrides, advice_seconds, seed, .. } = setup;
        let Setup { workers, cache, audit, metric, listener, stops, .. } = setup;
        plan.check(&backbone)?;
        let head = plan.head(head)?;
        let mut plan = plan.with_names(&backbone)?;
        if data.is_empty() {
            return Err(Error::invalid("dataset", "holds no samples"));
        }
        let labels = data.classes().to_vec();
        let task = Task::of_data(&data)?;
        // One label alone is to have or not.
        let least = if task == Task::Labels { 1 } else { 2 };
        if labels.len() < least {
            let problem = format!("has only {} class; at least {least} are needed", labels.len());
            return Err(Error::invalid("dataset", problem));
        }
        head.check_labels(&backbone, &labels)?;
        // An augmentation that cannot be is refused now, not when its phase begins.
        Transform::train(backbone.input_spec(), &plan.augment)?;
        let of_images = plan.augment.clone().mixup(0.0).cutmix(0.0);
        if of_images.is_random() && Loader::gives_tensors(&data)? {
            plan.reasons.push("the samples are tensors, which are not augmented".into());
            let Augment { mixup, cutmix, .. } = plan.augment;
            plan.augment = Augment::none().mixup(mixup).cutmix(cutmix);
        }
        let metric = metric.unwrap_or(Metric::of_task(task));
        let weights = Weights::of(&plan.sampling, &data)?;
        let loss = plan.loss.resolved(task, || counts(&data), data.len());
        loss.check_classes(labels.len())?;
        let model = Model::start(&backbone, head, labels, task, &plan, seed)?;
        let anchors = (plan.l2_sp > 0.0).then(|| Anchors::new(backbone.tensors()));
        let warnings = plan.warnings(&backbone);
        // Of this moment on this machine: no part of the report, which equal runs share.
        let tight = memory::check(&plan, &backbone, head, (data.len(), model.labels.len()))?;
        let (computed, reused) = (cache.computed(), cache.reused());
        let base_model = backbone.inner.profile.origin.name.clone().filter(|_| plan.init == Init::Pretrained);
        drop(backbone);
        model.check(&plan)?;
        let report = Report { base_model, strategy, overrides, warnings, ..report(&plan, &model, seed, &data) };
        let seconds = Timings { advice: advice_seconds, ..Timings::default() };
        let report = Report { metric, seconds, ..report };
        report.warnings.iter().chain(&tight).for_each(|warning| tracing::warn!("{warning}"));
        listener.tell(&Event::Start(&report));
        tight.iter().for_each(|warning| listener.tell(&Event::Warning(warning)));
        Ok(Self {
            plan,
            seed,
            workers,
            cache,
            audit,
            listener,
            dataset: data,
            data_identity: OnceCell::new(),
            valid_identity: None,
            model,
            loss,
            weights,
            learners: Learners::default(),
            pending: Pending::default(),
            anchors,
            averages: Averages::default(),
            averages_valid: None,
            counters: Counters::default(),
            phase: None,
            keeps_before: false,
            before: None,
            stops,
            continues: Continues::default(),
            best: Best::new(metric),
            report,
            started,
            seconds_before: advice_seconds,
            counted_before: (computed, reused),
        })
    }
}

/// The samples of each class; of soft targets the sum of the probabilities.
fn counts(data: &Arc<dyn Dataset>) -> Vec<f64> {
    let mut counts = vec![0.0; data.classes().len()];
    let mut add = |class: usize, share: f64| counts.get_mut(class).into_iter().for_each(|count| *count += share);
    for i in 0..data.len() {
        match data.info(i).target {
            Target::Class(class) => add(class as usize, 1.0),
            Target::Soft(p) => p.iter().enumerate().for_each(|(class, p)| add(class, f64::from(*p))),
            Target::Labels(labels) => labels.iter().for_each(|&class| add(class as usize, 1.0)),
        }
    }
    counts
}

/// The report of a run that begins.
fn report(plan: &Plan, model: &Model, seed: u64, data: &Arc<dyn Dataset>) -> Report {
    Report {
        version: env!("CARGO_PKG_VERSION").to_string(),
        date: now(),
        arch: model.blueprint().name().to_string(),
        base_model: None,
        strategy: None,
        plan: plan.clone(),
        overrides: vec![],
        warnings: vec![],
        stopped: None,
        seed,
        metric: Metric::of_task(model.task),
        thresholds: None,
        input_size: model.profile.spec.size,
        samples: SampleCounts { train: data.len(), ..SampleCounts::default() },
        skipped: data.skipped(),
        classes: model.labels.clone(),
        head_fit: None,
        epochs: vec![],
        best_epoch: None,
        averaged: false,
        valid_top1: None,
        valid: None,
        top1: None,
        test: None,
        refit: None,
        seconds: Timings::default(),
        parameters: ParameterCounts::default(),
        zero_gradients: vec![],
        cached_mb: 0.0,
        features: FeatureCounts::default(),
        peak_rss_mb: None,
    }
}

/// The time in UTC as ISO 8601 writes it, if the clock is after 1970.
fn now() -> Option<String> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Some(date(seconds))
}

/// `seconds` since 1970 as a date and time. The year counts from March, so that a leap day is the last one of a year
/// ("days from civil" turned round, Hinnant 2013).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::date;

    /// Python: `datetime.fromtimestamp(seconds, UTC)`.
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
