//! Warnings for valid but unlikely settings.

use super::Plan;
use crate::backbone::Backbone;
use crate::optim::OptimizerRule;

impl Plan {
    /// Valid settings that are probably a mistake: learning rates at which training fails, images far smaller than
    /// the network was designed for, an unoptimised build. A run reports them once, when it starts.
    ///
    /// ```
    /// use candle_finetune::{Arch, Backbone, Optimizer, Phase, Plan, candle_core::Device};
    /// let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e3))]);
    /// assert!(plan.warnings(&backbone).iter().any(|warning| warning.contains("learning rate")));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn warnings(&self, backbone: &Backbone) -> Vec<String> {
        let mut warnings: Vec<String> = unoptimised(env!("CANDLE_FINETUNE_OPT_LEVEL")).into_iter().collect();
        for (i, phase) in self.phases.iter().enumerate() {
            // Usual rates are 1e-5 to 1e-2 for AdamW and 1e-3 to 1 for SGD.
            let highest = match phase.optimizer.rule {
                OptimizerRule::Sgd { .. } => 5.0,
                OptimizerRule::AdamW { .. } => 0.1,
            };
            let (lr, rule) = (phase.optimizer.lr * phase.backbone_lr_scale.max(1.0), phase.optimizer.rule.name());
            if lr > highest {
                warnings.push(format!("phase {}: a learning rate of {lr} is far too high for {rule}", i + 1));
            }
        }
        let ((h, w), (usual, _)) = (backbone.input_spec().size, backbone.blueprint().input_spec().size);
        if h.min(w) * 4 <= usual {
            let arch = backbone.name();
            warnings.push(format!(
                "images of {h} x {w} pixels are far smaller than the {usual} that {arch} is designed for"
            ));
        }
        warnings
    }
}

/// The warning for a build of this crate at this optimisation level. The build script passes the level: debug
/// assertions do not show it, since an optimised build may have them.
fn unoptimised(level: &str) -> Option<String> {
    (level == "0").then(|| {
        "this build is not optimised and trains many times slower: build with --release, or set opt-level = 3 under \
         [profile.dev.package.\"*\"] in Cargo.toml"
            .to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arch, Optimizer, Phase};
    use candle_core::Device;

    #[test]
    fn probable_mistakes_are_warned_of() {
        let backbone = Backbone::random(Arch::RESNET18, 1, &Device::Cpu).unwrap();
        let of = |optimizer: Optimizer, backbone: &Backbone| {
            let mut found = Plan::new(vec![Phase::new(1, optimizer)]).warnings(backbone);
            found.retain(|warning| !warning.contains("not optimised"));
            found
        };
        assert_eq!(of(Optimizer::adamw(1e-2), &backbone), [""; 0]);
        assert_eq!(of(Optimizer::sgd(1.0), &backbone), [""; 0]);
        for optimizer in [Optimizer::adamw(1e3), Optimizer::sgd(1e3)] {
            let found = of(optimizer, &backbone);
            assert!(found.len() == 1 && found[0].contains("1000") && found[0].contains("phase 1"), "{found:?}");
        }
        let found = of(Optimizer::sgd(0.1), &backbone.for_input_size(8, 8).unwrap());
        assert!(found.len() == 1 && found[0].contains("8 x 8") && found[0].contains("224"), "{found:?}");
        assert_eq!(of(Optimizer::sgd(0.1), &backbone.for_input_size(96, 96).unwrap()), [""; 0]);
    }

    #[test]
    fn only_an_unoptimised_build_is_warned_of() {
        assert!(unoptimised("0").is_some_and(|text| text.contains("opt-level")));
        assert!(["1", "2", "3", "s"].iter().all(|level| unoptimised(level).is_none()));
    }
}
