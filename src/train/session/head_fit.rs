//! Fits the head in closed form, and offers the result to the choice of the best epoch.

use super::Session;
use crate::backbone::Network;
use crate::error::{Error, Result};
use crate::features::FeatureExtractor;
use crate::metrics::Evaluation;
use crate::params::AllFrozen;
use crate::plan::HeadStart;
use crate::train::event::Event;
use crate::train::head_fit::{Fitted, Samples};
use std::time::Instant;
use tracing::info_span;

impl Session {
    /// Fits the head in closed form to the features of the frozen network, if the plan says so
    /// ([`Plan::head_start`](crate::Plan::head_start)) and it has not been fitted yet. Returns whether it did.
    /// [`Session::next_phase`] calls it before the first phase.
    ///
    /// A custom loop that validates calls it first, and offers the fitted head as epoch 0:
    ///
    /// ```
    /// # use candle_finetune::{Arch, Backbone, FineTuner, HeadStart, Optimizer, Phase, Plan, TensorDataset};
    /// # use candle_finetune::candle_core::{Device, Tensor};
    /// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
    /// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
    /// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
    /// # let valid = train.clone();
    /// # let plan = Plan::new(vec![Phase::new(1, Optimizer::adamw(1e-3))]).head_start(HeadStart::Probe);
    /// let mut session = FineTuner::new(backbone).plan(plan).session(&train)?;
    /// session.fit_head()?;
    /// let evaluation = session.evaluate(&valid)?;
    /// session.offer_start(&evaluation)?;
    /// while session.next_phase()? {
    ///     // epochs, each with end_epoch
    /// #   while session.next_epoch()? {
    /// #       while let Some(batch) = session.next_batch()? {
    /// #           session.step(&batch)?;
    /// #       }
    /// #       let evaluation = session.evaluate(&valid)?;
    /// #       session.end_epoch(&evaluation)?;
    /// #   }
    /// }
    /// session.restore_best()?; // that of epoch 0, if training made it worse
    /// # session.finish()?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// For a sample that cannot be read, and features that are not finite.
    pub fn fit_head(&mut self) -> Result<bool> {
        if self.plan.head_start == HeadStart::Random || self.counters.head_fitted {
            return Ok(false);
        }
        let _span = info_span!("head_fit", samples = self.dataset.len()).entered();
        let begun = Instant::now();
        let network = Network::build(self.model.blueprint(), &AllFrozen(&self.model.slots))?;
        let extractor = FeatureExtractor::over(&network, &self.model.profile, self.model.weights())?;
        let extractor = self.workers.into_iter().fold(extractor, FeatureExtractor::workers);
        let listener = &mut self.listener;
        let progress = |done, total| listener.tell(&Event::Features { done, total });
        let mut samples = Samples::new(&self.dataset, &extractor, &self.cache, self.seed, progress)?;
        let Fitted { weight, bias, columns, report } = match self.plan.head_start {
            HeadStart::Stages => samples.over_stages()?,
            _ => samples.over_features()?,
        };
        let gathering = samples.seconds();
        let Self { model, .. } = self;
        let (classes, kept) = (model.labels.len(), report.kept);
        let tensor = |values: Vec<f64>, shape: &[usize]| -> Result<candle_core::Tensor> {
            let tensor = candle_core::Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?;
            Ok(tensor.to_dtype(model.profile.dtype)?.to_device(&model.profile.device)?)
        };
        let mut tensors = vec![tensor(weight, &[classes, kept])?, tensor(bias, &[classes])?];
        if let Some(columns) = columns {
            let columns: Vec<i64> = columns.into_iter().map(|column| column as i64).collect();
            tensors.push(candle_core::Tensor::from_vec(columns, kept, &model.profile.device)?);
        }
        model.set_head(model.head_names().into_iter().zip(tensors).collect())?;
        self.report.parameters = self.model.counts();
        self.report.seconds.features += gathering;
        self.report.seconds.train += begun.elapsed().as_secs_f64() - gathering;
        self.report.head_fit = Some(report);
        self.counters.head_fitted = true;
        Ok(true)
    }

    /// Offers the head as it was fitted to the choice of the best epoch, as epoch 0. A later epoch is better by the
    /// rule of [`Session::end_epoch`]; if none is, [`Session::restore_best`] restores this one. Returns whether it is
    /// the best so far. [`FineTuner::fit`](crate::FineTuner::fit) calls it; a custom loop may, see
    /// [`Session::fit_head`].
    ///
    /// # Errors
    /// If no head was fitted ([`Session::fit_head`]), a step has been made since, or it was offered before.
    pub fn offer_start(&mut self, valid: &Evaluation) -> Result<bool> {
        if !self.has_start_to_offer() {
            let problem = if self.counters.steps > 0 {
                "the fitted head has been trained since; call offer_start before the first step"
            } else if self.counters.start_offered {
                "the fitted head was offered before"
            } else {
                "no head was fitted; call fit_head first, with a plan whose head is fitted (Plan::head_start)"
            };
            return Err(Error::invalid("session", problem));
        }
        self.report.samples.valid = Some(valid.total);
        let best = self.best.offer((0, false), valid, || self.model.snapshot())?;
        self.counters.start_offered = true;
        if let Some(fit) = &mut self.report.head_fit {
            (fit.valid_loss, fit.valid_top1) = (Some(valid.loss), Some(valid.top1()));
            self.listener.tell(&Event::HeadFit(fit));
        }
        Ok(best)
    }

    /// Whether the head was fitted, and neither trained nor offered since.
    pub(in crate::train) fn has_start_to_offer(&self) -> bool {
        let counters = &self.counters;
        counters.head_fitted && !counters.start_offered && counters.steps == 0
    }
}
