//! Ends a run from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends a run early: from another thread, from a signal handler, or from the run's own listener. Clones are the same.
///
/// The run finishes its step, writes a checkpoint if it has a run directory, and returns what it has so far:
/// [`Report::stopped`](crate::Report::stopped) says so.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
/// # use candle_finetune::candle_core::{Device, Tensor};
/// use candle_finetune::{Cancel, Event};
///
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// # let plan = Plan::new(vec![Phase::new(9, Optimizer::adamw(1e-3))]);
/// let cancel = Cancel::new();
/// let stop = cancel.clone();
/// let tuner = FineTuner::new(backbone).plan(plan).cancel(&cancel).on_event(move |event| {
///     if let Event::Epoch(epoch) = event && epoch.epoch == 2 {
///         stop.cancel();
///     }
/// });
/// let tuned = tuner.fit(&train, &valid)?;
/// assert_eq!(tuned.report.epochs.len(), 2);
/// assert!(tuned.report.stopped.unwrap().contains("cancelled"));
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the run after its step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
