//! A run's state: a session that resumes from it ends in the same bytes, wherever it was taken.

use crate::support::{CPU, pictures, plan, tensors};
use crate::training::{backbone, phase};
use candle_finetune::{
    Arch, Augment, Backbone, BatchNormMode, Dataset, Error, FeatureCache, FineTuner, Fitted, FreezePolicy, Head,
    Metric, Optimizer, Plan, RunState, Sample, Schedule, ScheduleShape, Session, Target, TensorDataset,
    candle_core::{DType, Tensor},
};
use std::path::Path;

/// The file of the predictor that came out, its report included.
fn bytes(fitted: &Fitted) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fitted.predictor.save(file.path()).unwrap();
    std::fs::read(file.path()).unwrap()
}

/// Runs by the plan, and copies the state out at every point, each with a name.
fn states<D: Dataset + Clone + 'static>(tuner: FineTuner, train: &D, valid: &D) -> (Vec<(String, RunState)>, Vec<u8>) {
    let mut session = tuner.session(train).unwrap();
    let mut all = vec![];
    let mut note = |session: &Session, what: &str| {
        let state = session.state().unwrap();
        all.push((format!("{what}: {state:?}"), state));
    };
    note(&session, "before the first phase");
    while session.next_phase().unwrap() {
        note(&session, "phase entered");
        while session.next_epoch().unwrap() {
            note(&session, "epoch begun");
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
                note(&session, "step");
            }
            let evaluation = session.evaluate(valid).unwrap();
            if let Some(averages) = session.evaluate_averages(valid).unwrap() {
                session.offer_averages(&averages).unwrap();
            }
            session.end_epoch(&evaluation).unwrap();
            note(&session, "epoch ended");
        }
    }
    session.restore_best().unwrap();
    (all, bytes(&session.finish().unwrap()))
}

/// Every state of a run ends in the bytes of the run that was not interrupted; every second one through a file.
pub fn check<D: Dataset + Clone + 'static>(tuner: impl Fn() -> FineTuner, train: &D, valid: &D) {
    let whole = bytes(&tuner().fit(train, valid).unwrap());
    let (states, with_copies) = states(tuner(), train, valid);
    assert!(whole == with_copies, "copying the state out changes nothing");
    let dir = tempfile::tempdir().unwrap();
    for (i, (what, state)) in states.iter().enumerate() {
        let state = if i % 2 == 0 { state.clone() } else { through_a_file(state, dir.path()) };
        let resumed = bytes(&tuner().resume(&state).fit(train, valid).unwrap());
        assert!(resumed == whole, "{i}, {what}: {} and {} bytes", resumed.len(), whole.len());
    }
    assert!(states.len() > 12, "{}", states.len());
}

fn through_a_file(state: &RunState, dir: &Path) -> RunState {
    let path = dir.join("state.safetensors");
    state.save(&path).unwrap();
    RunState::from_file(&path).unwrap()
}

/// A head's phase, and one that trains most of the network with the batch's statistics.
fn two_phases(optimizer: Optimizer) -> Plan {
    let head = phase(FreezePolicy::Backbone, BatchNormMode::Frozen, 2);
    let mut later = phase(FreezePolicy::First(6), BatchNormMode::Train, 2);
    (later.optimizer, later.augmented) = (optimizer, true);
    later.schedule = candle_finetune::Schedule::cosine().warmup(0.2);
    plan(vec![head, later], 6)
}

#[test]
fn momentum_dropout_augmentation_and_batch_statistics() {
    let (train, valid) = (pictures(14, 40, 2, 1), pictures(6, 40, 2, 100));
    let mut plan = two_phases(Optimizer::sgd(0.02).momentum(0.9));
    (plan.augment, plan.clip) = (Augment::standard(), Some(1.0));
    plan.phases[0].augmented = true;
    let tuner = || FineTuner::new(backbone()).plan(plan.clone()).seed(5).head(Head::mlp(8).dropout(0.3)).workers(1);
    check(tuner, &train, &valid);
}

#[test]
fn adamw_with_cached_features_of_fixed_views() {
    let (train, valid) = (pictures(14, 40, 2, 1), pictures(6, 40, 2, 100));
    let mut plan = two_phases(Optimizer::adamw(2e-3));
    (plan.augment, plan.views) = (Augment::light(), Some(2));
    let tuner = || FineTuner::new(backbone()).plan(plan.clone()).seed(5).head(Head::linear().dropout(0.3)).workers(0);
    check(tuner, &train, &valid);
    // Cached or not is the same.
    let (all, whole) = states(tuner(), &train, &valid);
    let state = &all[all.len() / 2].1;
    let uncached = tuner().cache(&FeatureCache::off()).resume(state).fit(&train, &valid).unwrap();
    assert!(bytes(&uncached) == whole);
}

/// A schedule that reacts to the validation, and one that moves the momentum.
#[test]
fn plateaus_and_cycles() {
    let (train, valid) = (tensors(21, 32, 3, 1), tensors(12, 32, 3, 2));
    let mut first = phase(FreezePolicy::First(8), BatchNormMode::Train, 4);
    (first.optimizer, first.schedule) = (Optimizer::sgd(0.3).momentum(0.9), Schedule::plateau(0));
    let mut second = phase(FreezePolicy::First(8), BatchNormMode::Train, 2);
    (second.optimizer, second.schedule) = (Optimizer::adamw(1e-3), Schedule::one_cycle());
    let plan = plan(vec![first, second], 8);
    let tuner = || FineTuner::new(backbone()).plan(plan.clone()).seed(5);
    check(tuner, &train, &valid);
    let report = tuner().fit(&train, &valid).unwrap().report;
    let rates: Vec<f64> = report.epochs.iter().map(|epoch| epoch.lr).collect();
    assert!(rates[0] == 0.3 && rates[3] < 0.2 && rates.is_sorted_by(|a, b| a >= b), "{rates:?}");
    let losses: Vec<f64> = report.epochs.iter().filter_map(|epoch| epoch.valid_loss).collect();
    assert_eq!(losses[1] < losses[0] * 0.9999, rates[2] == 0.3, "{losses:?} {rates:?}");
    // The momentum that a cycle moves is part of the update.
    let mut still = plan.clone();
    if let ScheduleShape::OneCycle { momentum, .. } = &mut still.phases[1].schedule.shape {
        *momentum = None;
    }
    assert!(bytes(&tuner().plan(still).fit(&train, &valid).unwrap()) != bytes(&tuner().fit(&train, &valid).unwrap()));
}

/// Parameters trained in the first phase are frozen in the second, trained on with their moments in the third, and the
/// best epoch may be of any.
#[test]
fn parameters_that_pause_and_patience() {
    let (train, valid) = (tensors(21, 32, 3, 1), tensors(12, 32, 3, 2));
    let part = |k: usize, epochs: usize| phase(FreezePolicy::First(k), BatchNormMode::Train, epochs);
    let mut plan = plan(vec![part(7, 2), part(9, 3), part(8, 2)], 8);
    plan.patience = Some(1);
    plan.phases[1].optimizer = Optimizer::sgd(0.1);
    check(|| FineTuner::new(backbone()).plan(plan.clone()).seed(5), &train, &valid);
}

fn data() -> TensorDataset {
    tensors(21, 32, 3, 1)
}

/// The images of a dataset as one tensor, and the class of a sample.
fn images_of(data: &TensorDataset) -> Tensor {
    let image = |i: usize| match data.sample(i).unwrap() {
        Sample::Tensor(image) => image,
        other => panic!("{other:?}"),
    };
    Tensor::stack(&(0..data.len()).map(image).collect::<Vec<_>>(), 0).unwrap()
}

fn class_of(data: &TensorDataset, i: usize) -> u32 {
    match data.info(i).target {
        Target::Class(class) => class,
        other => panic!("{other:?}"),
    }
}

fn tuner(plan: &Plan) -> FineTuner {
    FineTuner::new(backbone()).plan(plan.clone()).seed(5)
}

/// After some steps of a plan.
fn after(plan: &Plan, steps: usize) -> Session {
    let mut session = tuner(plan).session(&data()).unwrap();
    for _ in 0..steps {
        let batch = crate::support::next(&mut session).unwrap().unwrap();
        session.step(&batch).unwrap();
    }
    session
}

#[test]
fn a_state_is_a_value_and_a_session_goes_back_to_it() {
    let plan = two_phases(Optimizer::adamw(2e-3));
    let dir = tempfile::tempdir().unwrap();
    let (early, late) = (dir.path().join("early"), dir.path().join("late"));
    let mut session = after(&plan, 10);
    let state = session.state().unwrap();
    assert_eq!((state.steps(), state.report().epochs.len()), (10, 2));
    state.save(&early).unwrap();
    let finish = |session: &mut Session| {
        while let Some(batch) = crate::support::next(session).unwrap() {
            session.step(&batch).unwrap();
        }
        crate::support::all_bits(&session.tensors().unwrap())
    };
    let first = finish(&mut session);
    // Training on has not changed the state, and the session starts again from it.
    state.save(&late).unwrap();
    assert!(std::fs::read(&early).unwrap() == std::fs::read(&late).unwrap());
    session.resume(&state).unwrap();
    assert_eq!((session.phase(), session.epoch()), (Some(2), Some(1)));
    assert_eq!(crate::support::differing(&finish(&mut session), &first), [""; 0]);
    // A state from a file leaves out the initial weights, and this session has them no more for the first phase's.
    let mut early_on = after(&plan, 2);
    early_on.state().unwrap().save(&early).unwrap();
    let error = session.resume(&RunState::from_file(&early).unwrap()).unwrap_err().to_string();
    assert!(error.contains("began with other weights"), "{error}");
    assert_eq!(crate::support::differing(&finish(&mut early_on), &first), [""; 0]);
}

#[test]
fn the_loops_continue_in_the_middle() {
    let plan = two_phases(Optimizer::adamw(2e-3));
    // After the first of four batches of the second phase's first epoch.
    let state = after(&plan, 9).state().unwrap();
    let mut session = tuner(&plan).session(&data()).unwrap();
    session.resume(&state).unwrap();
    let mut seen = vec![];
    while session.next_phase().unwrap() {
        while session.next_epoch().unwrap() {
            let mut batches = 0;
            while let Some(batch) = session.next_batch().unwrap() {
                session.step(&batch).unwrap();
                batches += 1;
            }
            seen.push((session.phase().unwrap(), session.epoch().unwrap(), batches));
        }
    }
    assert_eq!(seen, [(2, 1, 3), (2, 2, 4)]);
    assert_eq!(session.report().epochs.len(), 4);
    // Whoever ends the phase does not come back to it.
    session.resume(&state).unwrap();
    session.end_phase().unwrap();
    assert!(!session.next_phase().unwrap());
}

#[test]
fn the_state_of_another_run_is_refused() {
    let plan = two_phases(Optimizer::adamw(2e-3));
    let state = after(&plan, 2).state().unwrap();
    let mut longer = plan.clone();
    longer.phases[0].epochs += 1;
    let refused = |tuner: FineTuner, data: &TensorDataset, what: &str| {
        let error = tuner.resume(&state).session(data).err().unwrap_or_else(|| panic!("{what} is accepted"));
        let text = error.to_string();
        let differences =
            text.split("differs from this session in: ").nth(1).unwrap_or_else(|| panic!("{what}: {text}"));
        assert!(matches!(&error, Error::Invalid { .. }) && differences.contains(what), "{what}: {text}");
    };
    refused(tuner(&plan).seed(6), &data(), "seed");
    refused(tuner(&longer), &data(), "plan (phases.1.epochs 3 (the saved run has 2))");
    refused(tuner(&plan).head(Head::mlp(8)), &data(), "head");
    refused(tuner(&plan), &tensors(22, 32, 3, 1), "number of training samples");
    refused(tuner(&plan), &tensors(21, 32, 2, 1), "list of classes");
    refused(tuner(&plan), &tensors(21, 32, 3, 7), "training data");
    // The same images with another label for one.
    let relabelled: Vec<u32> = (0..21).map(|i| if i == 4 { 0 } else { class_of(&data(), i) }).collect();
    let relabelled = TensorDataset::new(images_of(&data()), relabelled, data().classes().to_vec()).unwrap();
    assert_eq!((0..21).find(|&i| relabelled.fingerprint(i) != data().fingerprint(i)), None);
    refused(tuner(&plan), &relabelled, "training data (files, labels or groups)");
    refused(tuner(&plan).metric(Metric::Loss), &data(), "metric");
    let cropped = backbone().for_input_spec(backbone().input_spec().clone().crop_pct(0.5)).unwrap();
    refused(FineTuner::new(cropped).plan(plan.clone()).seed(5), &data(), "input specification");
    let half = FeatureCache::new().dtype(DType::F16);
    refused(tuner(&plan).cache(&half), &data(), "element type");
    let other = Backbone::random(Arch::CIFAR_RESNET32, 3, &CPU).unwrap();
    refused(FineTuner::new(other).plan(plan.clone()).seed(5), &data(), "architecture");

    // A file has the checksums of the weights that it leaves out.
    let dir = tempfile::tempdir().unwrap();
    let state = through_a_file(&state, dir.path());
    let other = Backbone::random(Arch::CIFAR_RESNET20, 4, &CPU).unwrap();
    let error = FineTuner::new(other).plan(plan).seed(5).resume(&state).session(&data()).err().unwrap().to_string();
    assert!(error.contains("began with other weights") && error.contains("conv1.weight"), "{error}");
}

#[test]
fn files_of_states() {
    let plan = two_phases(Optimizer::adamw(2e-3));
    let session = after(&plan, 2);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    session.state().unwrap().save(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    // The head and its moments, 195 parameters each; the frozen backbone of a megabyte is left out.
    let tensors: Vec<String> = crate::support::read(&path).into_keys().collect();
    assert_eq!(tensors.iter().filter(|name| name.contains("linear.weight")).count(), 3, "{tensors:?}");
    assert!(tensors.len() == 6 && file.len() < 60_000, "{} bytes, {tensors:?}", file.len());

    // A newer format is refused before anything else is looked at.
    let find = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).position(|w| w == text).unwrap();
    let version = b"\\\"run_state\\\":4";
    let mut newer = file.clone();
    newer[find(&file, version) + version.len() - 1] = b'7';
    std::fs::write(&path, &newer).unwrap();
    let error = RunState::from_file(&path).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 7, known: 4, .. }), "{error}");
    assert!(error.to_string().contains("update the crate") && error.to_string().contains("state.safetensors"));

    newer[find(&file, version) + version.len() - 1] = b'1';
    std::fs::write(&path, &newer).unwrap();
    assert!(RunState::from_file(&path).unwrap_err().to_string().contains("start the run from the beginning"));

    // A description that is damaged, a tensor that has another name or value, other files.
    let mut damaged = file.clone();
    damaged[find(&file, b"counters")] = b'k';
    std::fs::write(&path, &damaged).unwrap();
    assert!(matches!(RunState::from_file(&path), Err(Error::Weights { .. })));
    for at in [find(&file, b"moment1/linear.bias"), file.len() - 1] {
        let mut other = file.clone();
        other[at] ^= 1;
        std::fs::write(&path, &other).unwrap();
        let error = RunState::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("checksum"), "{error}");
    }
    session.finish().unwrap().predictor.save(&path).unwrap();
    assert!(RunState::from_file(&path).unwrap_err().to_string().contains("no saved state"));
    let missing = dir.path().join("nothing");
    assert!(matches!(RunState::from_file(&missing), Err(Error::Io { .. })));
}
