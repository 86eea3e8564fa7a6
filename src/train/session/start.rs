//! A session's beginning: checks, first weights, and what is probably not meant.

#[allow(clippy::wildcard_imports)] // one type in several files
use super::*;
use crate::freeze::covers;
use crate::optim::OptimizerRule;
use std::time::SystemTime;

impl Session {
    pub(in crate::train) fn start(mut setup: Setup, data: Arc<dyn Dataset>) -> Result<Self> {
        let started = Instant::now();
        setup.plan.check(&setup.backbone)?;
        setup.plan = setup.plan.with_names(&setup.backbone)?;
        if data.is_empty() {
            return Err(Error::invalid("dataset", "holds no samples"));
        }
        let labels = data.classes().to_vec();
        if labels.len() < 2 {
            let problem = format!("has only {} class; at least 2 are needed", labels.len());
            return Err(Error::invalid("dataset", problem));
        }
        setup.head.check_labels(&setup.backbone, &labels)?;
        let transform = Transform::train(&setup.backbone.inner.spec, &setup.plan.augment)?;
        if setup.plan.augment.is_random() && Loader::gives_tensors(&data)? {
            setup.plan.reasons.push("the samples are tensors, which are not augmented".into());
            setup.plan.augment = Augment::none();
        }
        let Setup { backbone, head, plan, seed, .. } = &setup;
        let inner = &backbone.inner;
        let channels = inner.spec.channels;
        let tensors = match plan.init {
            Start::Pretrained => inner.tensors.clone(),
            Start::Random => random_tensors(inner.arch, channels, *seed, inner.dtype, &inner.device)?,
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
        let warnings = warnings(plan, backbone);
        let report = Report {
            version: env!("CARGO_PKG_VERSION").to_string(),
            date: Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string()),
            arch: inner.arch.name().to_string(),
            base_model: inner.origin.name.clone().filter(|_| plan.init == Start::Pretrained),
            strategy: setup.strategy,
            plan: plan.clone(),
            overrides: setup.overrides.clone(),
            warnings,
            seed: *seed,
            input_size: inner.spec.size,
            samples: Samples { train: data.len(), ..Samples::default() },
            skipped: data.skipped(),
            classes: labels.clone(),
            epochs: vec![],
            best_epoch: None,
            valid_top1: None,
            valid: None,
            top1: None,
            test: None,
            seconds: Seconds::default(),
            parameters: Parameters::default(),
            zero_gradients: vec![],
            cached_mb: 0.0,
            peak_rss_mb: None,
        };
        let declared = inner.arch.declared(channels)?;
        let heads = head.names(inner.arch, labels.len());
        for (i, phase) in plan.phases.iter().enumerate() {
            let in_head = |name: &str| heads.iter().any(|tensor| covers(name, tensor));
            let frozen = phase.freeze.resolve(&inner.network.blocks, &declared, in_head)?;
            let learns = |d: &Declared| frozen.role(d, phase.batch_norm) == Role::Param;
            if heads.iter().all(|name| frozen.names(name)) && !declared.iter().any(learns) {
                let problem = "freezes everything, the head too, so nothing would learn";
                return Err(Error::invalid(format!("plan: phase {} freeze", i + 1), problem));
            }
        }
        // What learns is copied, what is frozen shared: nothing else of the weights need stay in memory.
        setup.backbone = setup.backbone.outline();
        report.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        emit(&mut setup.listener, &Event::Start(&report));
        Ok(Self {
            setup,
            dataset: data,
            labels,
            loader,
            slots,
            declared,
            optimizer: OptimizerState::default(),
            current: None,
            next_phase: 0,
            epochs_done: 0,
            steps_done: 0,
            forwards: 0,
            audit_pending: false,
            best: Best::default(),
            report,
            started,
        })
    }
}

/// What works and is probably not meant.
fn warnings(plan: &Plan, backbone: &Backbone) -> Vec<String> {
    let mut warnings: Vec<String> = unoptimised(env!("CANDLE_FINETUNE_OPT_LEVEL")).into_iter().collect();
    for (i, phase) in plan.phases.iter().enumerate() {
        // Rates at which nothing is learnt: AdamW's usual ones are 1e-5 to 1e-2, SGD's 1e-3 to 1.
        let highest = match phase.optimizer.rule {
            OptimizerRule::Sgd { .. } => 5.0,
            OptimizerRule::AdamW { .. } => 0.1,
        };
        if phase.optimizer.lr > highest {
            let (lr, rule) = (phase.optimizer.lr, phase.optimizer.rule.name());
            warnings.push(format!("phase {}: a learning rate of {lr} is far above what {rule} can use", i + 1));
        }
    }
    let ((h, w), (usual, _)) = (backbone.input_spec().size, backbone.arch().input_spec().size);
    if h.min(w) * 4 <= usual {
        let arch = backbone.arch();
        warnings.push(format!("images of {h} x {w} pixels are far smaller than the {usual} that {arch} is made for"));
    }
    warnings
}

/// What to say of a build of this crate at this optimisation level. Only the build script knows it: assertions may be on
/// in an optimised build.
fn unoptimised(level: &str) -> Option<String> {
    (level == "0").then(|| {
        "this build is not optimised and trains many times slower; add `[profile.dev.package.\"*\"] opt-level = 3` to \
         Cargo.toml, or build with --release"
            .to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Optimizer};

    #[test]
    fn what_is_probably_not_meant_is_said() {
        let backbone = Backbone::random(Arch::RESNET18, 1, &Device::Cpu).unwrap();
        let of = |optimizer: Optimizer, backbone: &Backbone| {
            let mut found = warnings(&Plan::new(vec![Phase::new(1, optimizer)]), backbone);
            found.retain(|warning| !warning.contains("not optimised"));
            found
        };
        assert_eq!(of(Optimizer::adamw(1e-2), &backbone), [""; 0]);
        assert_eq!(of(Optimizer::sgd(1.0), &backbone), [""; 0]);
        for optimizer in [Optimizer::adamw(1e3), Optimizer::sgd(1e3)] {
            let found = of(optimizer, &backbone);
            assert!(found.len() == 1 && found[0].contains("1000") && found[0].contains("phase 1"), "{found:?}");
        }
        let found = of(Optimizer::sgd(0.1), &backbone.input_size(8, 8).unwrap());
        assert!(found.len() == 1 && found[0].contains("8 x 8") && found[0].contains("224"), "{found:?}");
        assert_eq!(of(Optimizer::sgd(0.1), &backbone.input_size(96, 96).unwrap()), [""; 0]);
    }

    #[test]
    fn the_level_of_optimisation_decides_what_is_said_of_it() {
        assert!(unoptimised("0").is_some_and(|text| text.contains("opt-level")));
        assert!(["1", "2", "3", "s"].iter().all(|level| unoptimised(level).is_none()));
    }
}
