//! A session's beginning: checks, first weights, and what is probably not meant.

#[allow(clippy::wildcard_imports)] // one type in several files
use super::*;
use std::time::SystemTime;

impl Session {
    pub(in crate::train) fn start(mut setup: Setup, backbone: &Backbone, data: Arc<dyn Dataset>) -> Result<Self> {
        let started = Instant::now();
        setup.plan.check(backbone)?;
        setup.plan = setup.plan.with_names(backbone)?;
        if data.is_empty() {
            return Err(Error::invalid("dataset", "holds no samples"));
        }
        let labels = data.classes().to_vec();
        if labels.len() < 2 {
            let problem = format!("has only {} class; at least 2 are needed", labels.len());
            return Err(Error::invalid("dataset", problem));
        }
        setup.head.check_labels(backbone, &labels)?;
        let transform = Transform::train(&setup.profile.spec, &setup.plan.augment)?;
        if setup.plan.augment.is_random() && Loader::gives_tensors(&data)? {
            setup.plan.reasons.push("the samples are tensors, which are not augmented".into());
            setup.plan.augment = Augment::none();
        }
        let Setup { profile, head, plan, seed, .. } = &setup;
        let blueprint = &profile.blueprint;
        let tensors = match plan.init {
            Init::Pretrained => backbone.tensors().clone(),
            Init::Random => random_tensors(blueprint, *seed, profile.dtype, &profile.device)?,
        };
        let mut slots: Slots = tensors.into_iter().map(|(name, t)| (name, Slot::Frozen(t))).collect();
        for (name, tensor) in head.start(backbone, labels.len(), *seed)? {
            slots.insert(name, Slot::Param(variable(&tensor)?));
        }
        // Each phase sets its own transform.
        let mut loader = Loader::new(&data, transform).batch_size(plan.batch_size).seed(*seed);
        if let Some(workers) = setup.workers {
            loader = loader.workers(workers);
        }
        let warnings = plan.warnings(backbone);
        let report = Report {
            version: env!("CARGO_PKG_VERSION").to_string(),
            date: now(),
            arch: blueprint.name().to_string(),
            base_model: profile.origin.name.clone().filter(|_| plan.init == Init::Pretrained),
            strategy: setup.strategy,
            plan: plan.clone(),
            overrides: setup.overrides.clone(),
            warnings,
            stopped: None,
            seed: *seed,
            metric: setup.metric,
            input_size: profile.spec.size,
            samples: SampleCounts { train: data.len(), ..SampleCounts::default() },
            skipped: data.skipped(),
            classes: labels.clone(),
            epochs: vec![],
            best_epoch: None,
            valid_top1: None,
            valid: None,
            top1: None,
            test: None,
            seconds: Timings::default(),
            parameters: ParameterCounts::default(),
            zero_gradients: vec![],
            cached_mb: 0.0,
            peak_rss_mb: None,
        };
        let heads = head.names(blueprint, labels.len());
        for (i, phase) in plan.phases.iter().enumerate() {
            let frozen = phase.freeze.resolve(blueprint, &heads)?;
            let learns = |d: &Declared| frozen.role(d, phase.batch_norm) == Role::Param;
            if heads.iter().all(|name| frozen.names(name)) && !blueprint.declared().iter().any(learns) {
                let problem = "freezes everything, the head too, so nothing would learn";
                return Err(Error::invalid(format!("plan: phase {} freeze", i + 1), problem));
            }
        }
        report.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        emit(&mut setup.listener, &Event::Start(&report));
        Ok(Self {
            setup,
            dataset: data,
            labels,
            loader,
            slots,
            optimizer: OptimizerState::default(),
            current: None,
            next_phase: 0,
            epochs_done: 0,
            steps_done: 0,
            forwards: 0,
            audit_pending: false,
            best: Best::new(report.metric),
            report,
            started,
        })
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
    use super::*;

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
