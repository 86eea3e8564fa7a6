//! Plans as text.

use super::{HeadStart, Init, Plan, Sampling};
use crate::error::wrapped;
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::loss::ClassWeights;
use crate::metrics::Metric;
use std::fmt::{self, Write as _};

/// At most 80 columns wide.
impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.describe(&mut text)?;
        out.write_str(&wrapped(&text))
    }
}

impl Plan {
    /// The lines of its text, however long they are.
    #[cfg(feature = "plots")]
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = self.describe(&mut text);
        text.lines().map(|line| line.trim().to_string()).collect()
    }

    fn describe(&self, f: &mut String) -> fmt::Result {
        for reason in &self.reasons {
            writeln!(f, "  because {reason}")?;
        }
        let start = if self.init == Init::Pretrained { "pretrained weights" } else { "random weights" };
        match self.head_start {
            HeadStart::Random => {}
            HeadStart::Probe => writeln!(f, "  the head is fitted to the features of the {start}")?,
            HeadStart::Stages => writeln!(f, "  the head is fitted to the features of all stages of the {start}")?,
        }
        if self.phases.is_empty() {
            return writeln!(f, "  no phases: the fitted head is the result");
        }
        write!(f, "  start from {start}, batches of {}, {}", self.batch_size, self.augment)?;
        if let Some(views) = self.views.filter(|_| self.augment.is_random()) {
            write!(f, " in {views} fixed views")?;
        }
        if self.grad_accum > 1 {
            write!(f, ", steps of {} batches", self.grad_accum)?;
        }
        match &self.sampling {
            Sampling::Shuffled => {}
            Sampling::Balanced => write!(f, ", classes drawn equally often")?,
            Sampling::Weighted(_) => write!(f, ", classes drawn by weight")?,
        }
        if self.loss.label_smoothing > 0.0 {
            write!(f, ", label smoothing {}", self.loss.label_smoothing)?;
        }
        if self.loss.focal > 0.0 {
            write!(f, ", focal exponent {}", self.loss.focal)?;
        }
        match self.loss.class_weights {
            ClassWeights::Even => {}
            ClassWeights::Balanced => write!(f, ", balanced class weights")?,
            ClassWeights::Given(_) => write!(f, ", class weights")?,
        }
        if let Some(value) = self.clip_value {
            write!(f, ", gradient elements cut at {value}")?;
        }
        if let Some(clip) = self.clip {
            write!(f, ", gradients clipped at {clip}")?;
        }
        if self.l2_sp > 0.0 {
            write!(f, ", L2-SP {}", self.l2_sp)?;
        }
        if self.drop_path > 0.0 {
            write!(f, ", stochastic depth {}", self.drop_path)?;
        }
        if let Some(decay) = self.ema {
            write!(f, ", weights averaged with decay {decay}")?;
        }
        if let Some(patience) = self.patience {
            write!(f, ", patience {patience}")?;
        }
        if self.watches() && self.watch != Metric::Loss {
            write!(f, ", watching {}", self.watch)?;
        }
        writeln!(f)?;
        for (i, p) in self.phases.iter().enumerate() {
            let frozen = match &p.freeze {
                FreezePolicy::Nothing => "everything is trained".to_string(),
                FreezePolicy::Backbone => "the head is trained".to_string(),
                FreezePolicy::First(k) => format!("the first {k} blocks are frozen"),
                FreezePolicy::AllBut(k) => format!("the last {k} blocks are trained"),
                FreezePolicy::UpTo(name) => format!("frozen up to {name}"),
                FreezePolicy::Named(names) => format!("frozen: {}", names.join(", ")),
            };
            write!(f, "  phase {}: {} epochs, {frozen}, head lr {:.2e}", i + 1, p.epochs, p.optimizer.lr)?;
            if p.freeze != FreezePolicy::Backbone {
                write!(f, ", backbone lr {:.2e}", p.optimizer.lr * p.backbone_lr_scale)?;
                let norms = match p.batch_norm {
                    BatchNormMode::Frozen => "batch norms frozen",
                    BatchNormMode::FrozenStats => "batch norms' statistics frozen",
                    BatchNormMode::Train => "batch norms are trained",
                };
                write!(f, ", {norms}")?;
            }
            write!(f, ", {} with weight decay {}, {}", p.optimizer.rule.name(), p.optimizer.weight_decay, p.schedule)?;
            if self.augment.is_random() && !p.augmented {
                write!(f, ", no augmentation")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
