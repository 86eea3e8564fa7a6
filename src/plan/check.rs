//! Validates a plan.

use super::{HeadStart, Init, Phase, Plan, Sampling};
use crate::backbone::{Backbone, residual_branches};
use crate::error::{Error, Result};
use crate::freeze::FreezePolicy;
use crate::head::{Head, HeadKind};

fn wrong(what: &str, problem: impl Into<String>) -> Result<()> {
    Err(Error::invalid(format!("plan: {what}"), problem))
}

impl Plan {
    /// Refuses values that cannot work.
    pub(crate) fn check(&self, backbone: &Backbone) -> Result<()> {
        match self.head_start {
            HeadStart::Random if self.phases.is_empty() => {
                return wrong("phases", "there are none; only a plan whose head is fitted (head_start) may do without");
            }
            HeadStart::Stages if !self.phases.is_empty() => {
                let problem = "a head over the features of all stages is fitted and never trained; remove the phases, or \
                               fit a head for them with HeadStart::Probe";
                return wrong("phases", problem);
            }
            HeadStart::Probe | HeadStart::Stages if self.init == Init::Random && self.phases.is_empty() => {
                return wrong("init", "random weights that no phase trains; use Init::Pretrained");
            }
            _ => {}
        }
        if self.batch_size == 0 {
            return wrong("batch_size", "0; it must be at least 1");
        }
        if self.views == Some(0) {
            return wrong("views", "0; it must be at least 1, or None for a new view each epoch");
        }
        if self.patience == Some(0) {
            return wrong("patience", "0; it must be at least 1, or None to run every phase to its end");
        }
        if let Some((setting, problem)) = self.loss.problem() {
            return wrong(setting, problem);
        }
        for (setting, value) in [("clip", self.clip), ("clip_value", self.clip_value)] {
            if let Some(value) = value.filter(|c| !c.is_finite() || *c <= 0.0) {
                return wrong(setting, format!("{value}; it must be finite and more than 0, or None"));
            }
        }
        if self.grad_accum == 0 {
            return wrong("grad_accum", "0; it must be at least 1");
        }
        if let Some(decay) = self.ema.filter(|decay| !(*decay > 0.0 && *decay < 1.0)) {
            return wrong("ema", format!("{decay} is not in (0, 1)"));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return wrong("drop_path", format!("{} is not in [0, 1)", self.drop_path));
        }
        if self.drop_path > 0.0 && residual_branches(backbone.blueprint())? == Some(0) {
            return wrong("drop_path", format!("{} has no residual branches to skip; set it to 0", backbone.name()));
        }
        if self.l2_sp > 0.0 && self.init == Init::Random {
            return wrong("l2_sp", "pulls back to random weights; use Init::Pretrained, or 0");
        }
        if !(self.l2_sp.is_finite() && self.l2_sp >= 0.0) {
            return wrong("l2_sp", format!("{}; it must be finite and not negative", self.l2_sp));
        }
        if let Sampling::Weighted(weights) = &self.sampling {
            if let Some(weight) = weights.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
                return wrong("sampling", format!("{weight}; weights must be finite and not negative"));
            }
            if weights.iter().all(|weight| *weight == 0.0) {
                return wrong("sampling", "all weights are 0; give a class a weight");
            }
        }
        if self.augment.mixes() && self.views.is_some() {
            return wrong("views", "fixed views cannot be mixed; leave out mixup and cutmix, or set views to None");
        }
        self.phases.iter().enumerate().try_for_each(|(i, phase)| self.check_phase(i + 1, phase, backbone))
    }

    /// The head that the plan trains or fits, where `asked` is the one that the user sets.
    ///
    /// # Errors
    /// For a head that does not fit the plan.
    pub(crate) fn head(&self, asked: Head) -> Result<Head> {
        let wrong = |problem: &str| Err(Error::invalid("head", problem));
        match (self.head_start, asked.kind) {
            (HeadStart::Random, HeadKind::Stages) => {
                wrong("over the features of all stages is fitted and never trained; use a plan with HeadStart::Stages")
            }
            (HeadStart::Random, _) | (HeadStart::Probe, HeadKind::Linear) => Ok(asked),
            (HeadStart::Probe, HeadKind::Original) => {
                wrong("a fit would replace the original classifier; use HeadStart::Random, or Head::linear()")
            }
            (HeadStart::Probe | HeadStart::Stages, _) if !matches!(asked.kind, HeadKind::Linear | HeadKind::Stages) => {
                wrong("only one linear layer is fitted in closed form; use Head::linear(), or HeadStart::Random")
            }
            (HeadStart::Probe, _) => wrong("over the features of all stages needs HeadStart::Stages"),
            (HeadStart::Stages, _) if asked.dropout != 0.0 => {
                wrong("dropout has no effect on a head that is fitted and not trained; use Head::linear()")
            }
            (HeadStart::Stages, _) => Ok(Head { kind: HeadKind::Stages, ..asked }),
        }
    }

    fn check_phase(&self, number: usize, phase: &Phase, backbone: &Backbone) -> Result<()> {
        let what = |field: &str| format!("phase {number} {field}");
        if phase.epochs == 0 {
            return wrong(&what("epochs"), "0; leave the phase out instead");
        }
        let o = &phase.optimizer;
        for (field, value) in
            [("lr", o.lr), ("backbone_lr_scale", phase.backbone_lr_scale), ("layer_decay", phase.layer_decay)]
        {
            if !(value.is_finite() && value > 0.0) {
                return wrong(
                    &what(field),
                    format!("{value}; it must be more than 0 (to keep weights unchanged, freeze them)"),
                );
            }
        }
        if let Some(problem) = o.problem() {
            return wrong(&what("optimizer"), problem);
        }
        if !(o.weight_decay.is_finite() && o.weight_decay >= 0.0) {
            return wrong(&what("weight_decay"), format!("{}; it must be finite and not negative", o.weight_decay));
        }
        if let Some(problem) = phase.schedule.problem() {
            return wrong(&what("schedule"), problem);
        }
        let frozen = phase.freeze.frozen_blocks(backbone)?;
        phase.freeze.check(backbone.blueprint(), phase.batch_norm)?;
        let names = matches!(phase.freeze, FreezePolicy::Named(_));
        if self.init == Init::Random && (frozen > 0 || names) {
            let problem = "freezes blocks that start from random weights and so would never be trained";
            return wrong(&what("freeze"), problem);
        }
        Ok(())
    }
}
