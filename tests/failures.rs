//! What a run does when something goes wrong in it.

use crate::support::{CPU, class_names, images, plan, tensors};
use crate::training::{backbone, phase};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    BatchNormMode, Dataset, Error, FeatureCache, FineTuner, FreezePolicy, Optimizer, Plan, Result, RunState, Sample,
    SampleInfo, TensorDataset,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn learning() -> Plan {
    let mut phase = phase(FreezePolicy::First(7), BatchNormMode::Train, 2);
    (phase.optimizer, phase.augmented) = (Optimizer::sgd(1e-3).momentum(0.9), true);
    plan(vec![phase], 4)
}

/// A dataset of which one sample is spoiled, or cannot be read after some reads.
#[derive(Clone)]
struct Spoiled {
    data: TensorDataset,
    /// The sample with an endless value.
    endless: Option<usize>,
    /// After so many reads sample 5 has vanished.
    vanishes: Option<usize>,
    reads: Arc<AtomicUsize>,
}

impl Spoiled {
    fn new(endless: Option<usize>, vanishes: Option<usize>) -> Self {
        Self { data: tensors(18, 32, 3, 1), endless, vanishes, reads: Arc::default() }
    }
}

impl Dataset for Spoiled {
    fn len(&self) -> usize {
        self.data.len()
    }

    fn classes(&self) -> &[String] {
        self.data.classes()
    }

    fn info(&self, i: usize) -> SampleInfo<'_> {
        self.data.info(i).name(format!("photo{i}.jpg"))
    }

    fn sample(&self, i: usize) -> Result<Sample> {
        let reads = self.reads.fetch_add(1, Ordering::SeqCst);
        if i == 5 && self.vanishes.is_some_and(|after| reads >= after) {
            let cause = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::Io { action: "read", path: PathBuf::from("photo5.jpg"), cause });
        }
        let Sample::Tensor(image) = self.data.sample(i)? else { panic!("no tensor") };
        Ok(Sample::Tensor(if self.endless == Some(i) { (image * f64::INFINITY)? } else { image }))
    }

    fn fingerprint(&self, i: usize) -> Option<u64> {
        Some(i as u64)
    }
}

fn tuner(run_dir: &Path) -> FineTuner {
    tuner_of(learning()).run_dir(run_dir)
}

fn tuner_of(plan: Plan) -> FineTuner {
    FineTuner::new(backbone()).plan(plan).seed(3).workers(0).cache(&FeatureCache::off())
}

#[test]
fn a_step_that_diverges_is_kept_and_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (train, valid) = (Spoiled::new(Some(11), None), tensors(6, 32, 3, 2));
    let error = tuner(dir.path()).fit(&train, &valid).unwrap_err();
    let text = error.to_string();
    let Error::Diverged(found) = error else { panic!("{text}") };
    let folder = dir.path().join("failed");
    assert_eq!(found.kept.as_deref(), Some(folder.as_path()));
    assert!(text.contains("failed") && text.contains("learning rate 1.00e-3"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("step.json")).unwrap()).unwrap();
    let samples: Vec<usize> =
        json["samples"].as_array().unwrap().iter().map(|s| s["index"].as_u64().unwrap() as usize).collect();
    assert!(samples.contains(&11) && json["step"].as_u64() == Some(found.step as u64), "{json}");
    assert!(json["samples"].as_array().unwrap().iter().any(|sample| sample["name"] == "photo11.jpg"));

    // From the state before it, the step is the same again: its samples, and what it refuses.
    let state = RunState::from_file(folder.join("state.safetensors")).unwrap();
    assert_eq!(state.steps() + 1, found.step);
    let plain = FineTuner::new(backbone()).plan(learning()).seed(3).workers(0).cache(&FeatureCache::off());
    let plain = plain.head(state.head());
    let mut session = plain.resume(&state).session(&train).unwrap();
    assert!(session.next_phase().unwrap() && session.next_epoch().unwrap());
    let before = session.tensors().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    assert_eq!(batch.indices, samples);
    let Error::Diverged(again) = session.step(&batch).unwrap_err() else { panic!("no divergence") };
    assert_eq!((again.step, again.what, &again.tensors), (found.step, found.what, &found.tensors));
    // The running statistics of the state are those from before the failed forward pass: finite.
    for (name, tensor) in before {
        let sum = tensor.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(sum.is_finite(), "{name}");
    }
}

/// Of a step of several batches all are repeated; and what was kept is gone when the run has passed the step.
#[test]
fn a_step_of_several_batches_is_repeated_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let valid = tensors(6, 32, 3, 2);
    let plan = learning().grad_accum(2);
    let tuner = || tuner_of(plan.clone()).run_dir(dir.path());
    for sample in 0..18 {
        let folder = dir.path().join("failed");
        let (train, run) = (Spoiled::new(Some(sample), None), tuner());
        let Error::Diverged(found) = run.fit(&train, &valid).unwrap_err() else { panic!("no divergence") };
        let text = std::fs::read_to_string(folder.join("step.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let samples: Vec<usize> =
            json["samples"].as_array().unwrap().iter().map(|s| s["index"].as_u64().unwrap() as usize).collect();
        assert!(samples.contains(&sample));
        let state = RunState::from_file(folder.join("state.safetensors")).unwrap();
        let mut session = tuner_of(plan.clone()).resume(&state).session(&train).unwrap();
        assert!(session.next_phase().unwrap() && session.next_epoch().unwrap());
        let mut taken = vec![];
        let again = loop {
            let batch = session.next_batch().unwrap().unwrap();
            taken.extend_from_slice(&batch.indices);
            if let Err(error) = session.step(&batch) {
                break error;
            }
        };
        let Error::Diverged(again) = again else { panic!("{again}") };
        assert_eq!((taken, again.step, again.what), (samples, found.step, found.what), "sample {sample}");
        if sample == 17 {
            tuner().fit(&Spoiled::new(None, None), &valid).unwrap();
            assert!(!folder.exists());
        }
    }
}

#[test]
fn a_cut_by_value_hides_no_endless_gradient() {
    let plan = learning().clip_value(1.0);
    let mut session = tuner_of(plan).session(&Spoiled::new(None, None)).unwrap();
    session.next_phase().unwrap();
    session.next_epoch().unwrap();
    let batch = session.next_batch().unwrap().unwrap();
    let logits = session.forward(&batch).unwrap();
    // A finite loss with an infinite gradient: the square root of zero.
    let root = (&logits - &logits).unwrap().sqrt().unwrap().sum_all().unwrap();
    let error = session.backward_step(&root).unwrap_err();
    assert!(matches!(&error, Error::Diverged(found) if found.what == "gradients"), "{error}");
}

#[test]
fn a_run_whose_file_vanishes_goes_on_when_it_is_back() {
    let valid = tensors(6, 32, 3, 2);
    let whole = tempfile::tempdir().unwrap();
    let expected = tuner(whole.path()).fit(&Spoiled::new(None, None), &valid).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // One read at the start, then a whole epoch; the file is missed in the second one.
    let error = tuner(dir.path()).fit(&Spoiled::new(None, Some(20)), &valid).unwrap_err();
    assert!(error.to_string().contains("photo5.jpg"), "{error}");
    let checkpoints = || {
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("checkpoint-"))
    };
    assert!(checkpoints().count() > 0);
    let fitted = tuner(dir.path()).fit(&Spoiled::new(None, None), &valid).unwrap();
    let bytes = |dir: &Path| std::fs::read(dir.join("best.safetensors")).unwrap();
    assert!(bytes(dir.path()) == bytes(whole.path()));
    assert_eq!(fitted.report.best_epoch, expected.report.best_epoch);
}

#[test]
fn a_loss_that_does_not_move_is_told() {
    // The same image again and again, at a rate that changes nothing.
    let one = images(1, 3, 32, 1);
    let all = Tensor::cat(&vec![one; 16], 0).unwrap();
    let train = TensorDataset::new(all, vec![1; 16], class_names(2)).unwrap();
    let mut plan = learning();
    plan.batch_size = 2;
    (plan.phases[0].optimizer, plan.phases[0].batch_norm) = (Optimizer::sgd(1e-12), BatchNormMode::Frozen);
    let report = FineTuner::new(backbone()).plan(plan.clone()).fit(&train, &train).unwrap().report;
    let told: Vec<&String> = report.warnings.iter().filter(|text| text.contains("stays at")).collect();
    assert!(told.len() == 1 && told[0].contains("phase 1 epoch 1") && told[0].contains("learning rate"), "{told:?}");
    plan.phases[0].optimizer = Optimizer::sgd(1e-2);
    let report = FineTuner::new(backbone()).plan(plan).fit(&train, &train).unwrap().report;
    assert!(!report.warnings.iter().any(|text| text.contains("stays at")), "{:?}", report.warnings);
}

#[test]
fn a_batch_beyond_the_machines_memory_is_refused_before_it_runs() {
    #[derive(Clone)]
    struct Huge(Vec<String>);
    impl Dataset for Huge {
        fn len(&self) -> usize {
            50_000
        }
        fn classes(&self) -> &[String] {
            &self.0
        }
        fn info(&self, i: usize) -> SampleInfo<'_> {
            SampleInfo::new(i, candle_finetune::Target::Class((i % 2) as u32))
        }
        fn sample(&self, _: usize) -> Result<Sample> {
            panic!("nothing is read")
        }
    }
    let vgg = candle_finetune::Backbone::random(candle_finetune::Arch::RESNET18, 1, &CPU).unwrap();
    let mut plan = learning();
    (plan.batch_size, plan.phases[0].freeze) = (20_000, FreezePolicy::Nothing);
    let error = FineTuner::new(vgg).plan(plan).session(&Huge(class_names(2))).err().unwrap().to_string();
    assert!(error.contains("batch_size") && (error.contains("grad_accum") || error.contains("GB")), "{error}");
}
