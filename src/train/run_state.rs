//! A checkpoint of a run, as a value.

mod file;

use super::best::Best;
use super::learner::LearnerState;
use super::pending::PendingSums;
use super::position::Position;
use super::snapshot::Snapshot;
use crate::arch::Naming;
use crate::error::{Error, Result};
use crate::head::Head;
use crate::input_spec::InputSpec;
use crate::report::Report;
use crate::weights::{Disk, Os};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// A checkpoint of a run: its position in the plan, the weights, the optimizer's moments by parameter name, the best
/// epochs' weights, the counters that address its random numbers, and the report so far.
///
/// It is a value: training on does not change it. A session that resumes from it ends in the same bytes as the run that
/// was not interrupted, with the same data, on the same machine. [`Session::state`](crate::Session::state) copies it
/// out, [`Session::resume`](crate::Session::resume) and [`FineTuner::resume`](crate::FineTuner::resume) continue it.
///
/// ```
/// # use candle_finetune::{Arch, Backbone, FineTuner, Optimizer, Phase, Plan, TensorDataset};
/// # use candle_finetune::candle_core::{Device, Tensor};
/// use candle_finetune::RunState;
///
/// # let backbone = Backbone::random(Arch::CIFAR_RESNET20, 1, &Device::Cpu)?;
/// # let images = (Tensor::arange(0f32, 24576.0, &Device::Cpu)? * 0.01)?.sin()?.reshape((8, 3, 32, 32))?;
/// # let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["a".into(), "b".into()])?;
/// # let valid = train.clone();
/// # let plan = Plan::new(vec![Phase::new(2, Optimizer::adamw(1e-3))]).batch_size(4);
/// let tuner = || FineTuner::new(backbone.clone()).plan(plan.clone()).seed(3);
/// let mut session = tuner().session(&train)?;
/// session.next_phase()?;
/// session.next_epoch()?;
/// let batch = session.next_batch()?.expect("the first of two batches");
/// session.step(&batch)?;
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("run.safetensors");
/// session.state()?.save(&path)?;
///
/// let state = RunState::from_file(&path)?; // in another process, say
/// let tuned = tuner().resume(&state).fit(&train, &valid)?;
/// # let _ = tuned;
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Clone)]
pub struct RunState {
    pub(super) head: Head,
    pub(super) setting: Setting,
    pub(super) report: Report,
    /// Seconds of the run until now.
    pub(super) seconds: f64,
    pub(super) position: Position,
    pub(super) model: Snapshot,
    pub(super) learners: BTreeMap<String, LearnerState>,
    pub(super) best: Best,
    /// The moving averages of the weights, if the plan keeps them.
    pub(super) averages: BTreeMap<String, Tensor>,
    /// The gradients of batches that wait for their step, and their sums.
    pub(super) pending: (PendingSums, BTreeMap<String, Tensor>),
    /// The validation samples in their order, if they were known.
    pub(super) valid: Option<u64>,
    /// The instruction set of the kernels that the run used.
    pub(super) instructions: String,
    /// In a state that was read from a file: checksums of the initial weights that the file leaves out.
    pub(super) initial: BTreeMap<String, u64>,
}

/// What the bytes of a run depend on besides plan, seed and head: a run resumes where all of it is equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Setting {
    /// Layers and pooling of the network.
    pub structure: u64,
    pub naming: Naming,
    pub input: InputSpec,
    /// The element type of the network, and of cached features.
    pub dtypes: (String, String),
    /// The samples in their order with their targets and groups, if the dataset identifies them all.
    pub data: Option<u64>,
    /// The weights that a penalty pulls back to, if there is one.
    #[serde(default)]
    pub anchors: Option<u64>,
}

/// The format of a saved state.
const VERSION: u32 = 4;

impl RunState {
    /// Writes the state as one safetensors file, atomically: through a temporary file beside it that is renamed.
    /// Tensors that are still those of the initial weights are not written; the file has their checksums, and a session
    /// takes them from its backbone.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_through(&mut Os, path.as_ref())
    }

    /// As [`RunState::save`], with every system call going through `disk`.
    pub(super) fn save_through(&self, disk: &mut impl Disk, path: &Path) -> Result<()> {
        file::write(self, path, disk)
    }

    /// Reads a state that [`RunState::save`] wrote. Its tensors are on the CPU; resuming moves them to the session's
    /// device.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] if a newer version of the crate wrote it, [`Error::Weights`] if it is damaged (it has a
    /// checksum), holds something else, or an earlier version wrote it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        file::read(path.as_ref())
    }

    /// The head that is trained.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The report so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Optimizer steps made so far.
    pub fn steps(&self) -> usize {
        self.position.counters.steps
    }

    /// Refuses to continue the run of another plan, seed, network or data than that of a session, which has `report`
    /// and `head`.
    pub(super) fn check(&self, report: &Report, head: Head, setting: &Setting) -> Result<()> {
        let (old, new) = (&self.report, report);
        // With the settings that differ, as far as they have names.
        let plan = match new.plan.differences(&old.plan, "saved run") {
            settings if settings.is_empty() => "plan".to_string(),
            settings => format!("plan ({})", settings.join("; ")),
        };
        let parts = [
            ("architecture", old.arch == new.arch),
            ("input size", old.input_size == new.input_size),
            ("head", self.head == head),
            ("network (layers or pooling)", self.setting.structure == setting.structure),
            ("naming", self.setting.naming == setting.naming),
            ("input specification", self.setting.input == setting.input),
            ("element type of weights or cached features", self.setting.dtypes == setting.dtypes),
            ("training data (files, labels or groups)", self.setting.data == setting.data),
            ("weights that L2-SP pulls back to", self.setting.anchors == setting.anchors),
            (&plan, old.plan.without_reasons() == new.plan.without_reasons()),
            ("seed", old.seed == new.seed),
            ("metric", old.metric == new.metric),
            ("list of classes", old.classes == new.classes),
            ("number of training samples", old.samples.train == new.samples.train),
        ];
        let other: Vec<&str> = parts.iter().filter(|(_, same)| !same).map(|(what, _)| *what).collect();
        if !other.is_empty() {
            let problem = format!("the saved run differs from this session in: {}", other.join(", "));
            return Err(Error::invalid("run state", problem));
        }
        let phase = self.position.phase.as_ref().map(|phase| phase.index);
        if phase.is_some_and(|index| index >= old.plan.phases.len()) {
            return Err(Error::invalid("run state", "is in a phase that its plan lacks"));
        }
        Ok(())
    }

    /// The same with every tensor, on `device`; `present` are the tensors of the session that resumes it.
    pub(super) fn completed(&self, device: &Device, present: impl FnOnce() -> Result<Snapshot>) -> Result<Self> {
        let mut all = self.clone();
        let snapshots = std::iter::once(&mut all.model).chain(all.best.kept.iter_mut().map(|epoch| &mut epoch.weights));
        let mut snapshots: Vec<&mut Snapshot> = snapshots.collect();
        if !self.initial.is_empty() {
            let present = present()?;
            for snapshot in &mut snapshots {
                snapshot.complete(&present, &self.initial)?;
            }
        }
        let averages = all.averages.values_mut();
        for tensor in snapshots.into_iter().flat_map(|snapshot| snapshot.tensors.values_mut()).chain(averages) {
            *tensor = tensor.to_device(device)?;
        }
        Ok(all)
    }
}

impl fmt::Debug for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Position { counters, phase, epoch } = &self.position;
        write!(f, "RunState({} steps, {} epochs", counters.steps, counters.epochs)?;
        if let Some(phase) = phase {
            write!(f, "; in phase {}, epoch {}", phase.index + 1, phase.epoch + 1)?;
        }
        if let Some(epoch) = epoch {
            write!(f, ", after {} samples", epoch.taken)?;
        }
        f.write_str(")")
    }
}
