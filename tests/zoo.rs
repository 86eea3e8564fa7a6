//! Networks of candle-transformers as backbones: the same bits as the originals, and typed errors for what they cannot
//! do.

mod limits;

use crate::support::{CPU, all_bits, bits, class_names, differing, images, next, numbers, tensors};
use candle_finetune::candle_core::{DType, Device, Module, Result, Shape, Tensor, Var, safetensors};
use candle_finetune::{
    Backbone, BatchNormMode, Error, FineTuner, FreezePolicy, Loss, Optimizer, Phase, Plan, Predictor, Source, Strategy,
    ZooModel,
};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, Linear, VarBuilder};
use candle_transformers::models::{convnext, dinov2, mobileone, repvgg, vit};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Mutex;

/// One network for each way in which the models are built, with the side of test images.
const CASES: [(&str, usize); 8] = [
    ("zoo/convnext_atto", 64),
    ("zoo/convnext_tiny", 64),
    ("zoo/convnextv2_atto", 64),
    ("zoo/repvgg_a0", 64),
    ("zoo/mobileone_s0", 64),
    ("zoo/mobileone_s4", 64),
    ("zoo/deit_tiny_patch16_224", 224),
    ("zoo/vit_small_patch14_dinov2", 56),
];

fn model(name: &str) -> ZooModel {
    name.parse().unwrap()
}

/// The classes of a classifier; DINOv2's has a fixed number.
fn classes(name: &str) -> usize {
    if name.ends_with("dinov2") { 1000 } else { 7 }
}

/// The original with its classifier.
fn original(name: &str, vb: VarBuilder<'_>) -> Box<dyn Module> {
    let classes = classes(name);
    match name {
        "zoo/convnext_atto" | "zoo/convnextv2_atto" => {
            Box::new(convnext::convnext(&convnext::Config::atto(), classes, vb).unwrap())
        }
        "zoo/convnext_tiny" => Box::new(convnext::convnext(&convnext::Config::tiny(), classes, vb).unwrap()),
        "zoo/repvgg_a0" => Box::new(repvgg::repvgg(&repvgg::Config::a0(), classes, vb).unwrap()),
        "zoo/mobileone_s0" => Box::new(mobileone::mobileone(&mobileone::Config::s0(), classes, vb).unwrap()),
        "zoo/mobileone_s4" => Box::new(mobileone::mobileone(&mobileone::Config::s4(), classes, vb).unwrap()),
        "zoo/vit_small_patch14_dinov2" => Box::new(dinov2::vit_small(vb).unwrap()),
        "zoo/deit_tiny_patch16_224" => {
            let base = vit::Config::vit_base_patch16_224();
            let (hidden_size, num_attention_heads, intermediate_size) = (192, 3, 768);
            let config = vit::Config { hidden_size, num_attention_heads, intermediate_size, ..base };
            let model = vit::Model::new(&config, classes, vb).unwrap();
            Box::new(candle_nn::func(move |x| model.forward(x)))
        }
        other => panic!("{other}"),
    }
}

/// Values that let every tensor count: norms and scales near 1, matrices that keep the size of what goes through.
fn weights(name: &str) -> HashMap<String, Tensor> {
    let model = model(name);
    let backbone = Backbone::random(model, 1, &CPU).unwrap();
    let mut shapes: BTreeMap<String, Vec<usize>> =
        backbone.tensors().iter().map(|(name, t)| (name.clone(), t.dims().to_vec())).collect();
    shapes.insert(format!("{}.weight", model.classifier()), vec![classes(name), model.feature_dim()]);
    shapes.insert(format!("{}.bias", model.classifier()), vec![classes(name)]);
    let value = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let fan = shape.iter().skip(1).product::<usize>().max(1);
        let is_scale = shape.len() == 1 && !name.ends_with("bias") && !name.ends_with("mean");
        // Norms of branches that are added are smaller, or their sums would grow from layer to layer.
        let (scale, shift) = match is_scale {
            true if name.contains("bn.") || name.contains("identity.") => (0.1, 0.5),
            true => (0.3, 1.0),
            false => (1.5 / (fan as f32).sqrt(), 0.0),
        };
        let values = numbers(shape.iter().product(), i as u64 + 1).iter().map(|v| v * scale + shift).collect();
        (name, Tensor::from_vec(values, shape, &CPU).unwrap())
    };
    shapes.into_iter().enumerate().map(value).collect()
}

/// The weights in a file, and as a backbone.
fn loaded(name: &str, folder: &Path) -> (HashMap<String, Tensor>, Backbone) {
    let weights = weights(name);
    let path = folder.join("weights.safetensors");
    safetensors::save(&weights, &path).unwrap();
    let backbone = Backbone::from_file(model(name), &path, &CPU).unwrap();
    (weights, backbone)
}

/// The original's logits. DINOv2 takes one image at a time.
fn logits(name: &str, weights: &HashMap<String, Tensor>, images: &Tensor) -> Tensor {
    logits_of(name, &*original(name, of_tensors(weights)), images)
}

fn logits_of(name: &str, original: &dyn Module, images: &Tensor) -> Tensor {
    if !name.ends_with("dinov2") {
        return original.forward(images).unwrap();
    }
    let count = images.dim(0).unwrap();
    let one = |i: usize| original.forward(&images.narrow(0, i, 1).unwrap()).unwrap();
    Tensor::cat(&(0..count).map(one).collect::<Vec<_>>(), 0).unwrap()
}

fn of_tensors(weights: &HashMap<String, Tensor>) -> VarBuilder<'static> {
    VarBuilder::from_tensors(weights.clone(), DType::F32, &CPU)
}

#[test]
fn features_through_the_models_own_classifier_are_its_logits_bit_for_bit() {
    for (name, side) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let (weights, backbone) = loaded(name, folder.path());
        let classifier = backbone.blueprint().classifier();
        let part = |part: &str| weights[&format!("{classifier}.{part}")].clone();
        let classifier = Linear::new(part("weight"), Some(part("bias")));
        for count in [1, 3] {
            let images = images(count, 3, side, 5);
            let features = backbone.forward(&images).unwrap();
            assert_eq!(features.dims(), [count, model(name).feature_dim()]);
            let rows = features.to_vec2::<f32>().unwrap();
            assert!(rows.iter().all(|row| row.iter().all(|v| v.is_finite()) && row.iter().any(|v| *v != row[0])));
            // Row by row where the original computes so: the product of a matrix with several rows rounds otherwise.
            let ours = logits_of(name, &classifier, &features);
            assert_eq!(bits(&ours), bits(&logits(name, &weights, &images)), "{name}, {count} images");
        }
    }
}

/// Serves tensors from a file, and records the requested names.
struct Asking<'a> {
    file: &'a HashMap<String, Tensor>,
    found: Mutex<BTreeSet<String>>,
}

impl SimpleBackend for &Asking<'_> {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = SimpleBackend::get(self.file, shape, name, init, dtype, device)?;
        self.found.lock().unwrap().insert(name.to_string());
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        panic!("{name} without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.file.contains_key(name)
    }
}

#[test]
fn saved_predictors_have_the_models_own_names_and_load_to_the_same_bits() {
    for (name, side) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let (weights, backbone) = loaded(name, folder.path());
        assert_eq!(backbone.num_classes(), Some(classes(name)));
        let source = Source::file(folder.path().join("weights.safetensors")).blueprint(backbone.blueprint());
        let predictor = Predictor::load(source, &CPU).unwrap();
        let saved = folder.path().join("saved.safetensors");
        predictor.save(&saved).unwrap();
        let images = images(2, 3, side, 6);
        let ours = predictor.logits(&images).unwrap();
        // Its description names the network, so nothing else does.
        let again = Predictor::from_file(&saved, &CPU).unwrap();
        assert_eq!(again.backbone().name(), name);
        assert_eq!(bits(&again.logits(&images).unwrap()), bits(&ours), "{name}");
        // The original reads all of the file but the counters of PyTorch's batch norms.
        let mut file = safetensors::load(&saved, &CPU).unwrap();
        file.retain(|name, _| !name.ends_with("num_batches_tracked"));
        let asking = Asking { file: &file, found: Mutex::default() };
        let theirs = original(name, VarBuilder::from_backend(Box::new(&asking), DType::F32, CPU));
        let names: BTreeSet<String> = file.keys().cloned().collect();
        assert_eq!(*asking.found.lock().unwrap(), names, "{name}");
        assert_eq!(names, weights.keys().cloned().collect(), "{name}");
        assert_eq!(bits(&logits_of(name, &*theirs, &images)), bits(&logits(name, &weights, &images)), "{name}");
    }
}

#[test]
fn every_networks_facts_are_the_originals() {
    let mut names = BTreeSet::new();
    for model in ZooModel::all() {
        assert!(names.insert(model.name()) && model.name().starts_with("zoo/"), "{model}");
        assert_eq!(model.name().parse::<ZooModel>().unwrap(), *model);
        assert_eq!(model.hub_id().split('/').count(), 2, "{model}");
        // The checkpoint of timm and transformers is called like the network.
        let like = model.name().trim_start_matches("zoo/").replace('_', "-");
        assert!(model.hub_id().replace('_', "-").contains(&like), "{model} {}", model.hub_id());
        assert_eq!(model.input_spec().channels, 3);
    }
    let error = "zoo/convnext_tinny".parse::<ZooModel>().unwrap_err();
    assert!(matches!(&error, Error::UnknownArch { nearest, .. } if nearest[0] == "zoo/convnext_tiny"), "{error}");
}

fn plan(freeze: FreezePolicy, mode: BatchNormMode) -> Plan {
    let phase = Phase::new(1, Optimizer::sgd(0.02)).freeze(freeze).batch_norm(mode);
    Plan::new(vec![phase]).batch_size(4)
}

#[test]
fn learning_networks_get_every_gradient_and_the_original_agrees_after_a_step() {
    for (name, side) in CASES.into_iter().filter(|(name, _)| model(name).is_trainable()) {
        let folder = tempfile::tempdir().unwrap();
        let (_, backbone) = loaded(name, folder.path());
        let names: BTreeSet<String> =
            backbone.tensors().keys().filter(|name| !name.contains(".running_")).cloned().collect();
        let train = tensors(8, side, classes(name), 3);
        // The gradients of random weights are large in deep networks.
        let plan = plan(FreezePolicy::Nothing, BatchNormMode::FrozenStats).clip(1.0);
        let tuner = FineTuner::new(backbone.for_input_size(side, side).unwrap()).plan(plan).seed(1);
        let mut session = tuner.session(&train).unwrap();
        let before = session.tensors().unwrap();
        let batch = next(&mut session).unwrap().unwrap();
        let loss = Loss::cross_entropy().forward(&session.forward(&batch).unwrap(), &batch.targets).unwrap();
        let gradients = session.gradients(&loss.backward().unwrap()).unwrap();
        let head = backbone.blueprint().classifier();
        let reached: BTreeSet<String> =
            gradients.iter().map(|(name, _)| name.clone()).filter(|n| !is_below(n, head)).collect();
        assert_eq!(reached, names, "{name}");
        session.step_with(gradients, loss.to_scalar::<f32>().unwrap().into()).unwrap();
        // Trained parameters changed, and statistics did not.
        let after = session.tensors().unwrap();
        let changed = differing(&all_bits(&before), &all_bits(&after));
        assert!(changed.iter().all(|name| !name.contains(".running_")), "{name} {changed:?}");
        assert!(changed.len() * 2 > names.len(), "{name}: {} of {} changed", changed.len(), names.len());
        // The next step computes with the new weights, also where the constructor makes weights of weights.
        let batch = next(&mut session).unwrap().unwrap();
        let ours = session.forward(&batch).unwrap().detach();
        let [old, new] = [before, after].map(|tensors| {
            let theirs = logits(name, &tensors.into_iter().collect(), batch.images().unwrap());
            (&ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        });
        assert!(new.is_finite() && old > 20.0 * new, "{name}: {new} from the new weights' logits, {old} from the old");
    }
}

fn is_below(name: &str, module: &str) -> bool {
    name == format!("{module}.weight") || name == format!("{module}.bias")
}

#[test]
fn networks_that_cannot_learn_really_lack_gradients() {
    let mut seen = 0;
    for (name, side) in CASES.into_iter().filter(|(name, _)| !model(name).is_trainable()) {
        let variables: HashMap<String, Var> =
            weights(name).into_iter().map(|(name, t)| (name, Var::from_tensor(&t).unwrap())).collect();
        let tracked = variables.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
        let logits = logits(name, &tracked, &images(2, 3, side, 4));
        let gradients = logits.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let missing = variables.values().filter(|v| gradients.get(v.as_tensor()).is_none()).count();
        assert!(missing > variables.len() / 4, "{name}: {missing} of {}; it may be trainable now", variables.len());
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn frozen_features_train_a_head_and_the_predictor_loads_to_the_same_bits() {
    for (name, side) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let (_, backbone) = loaded(name, folder.path());
        let backbone = backbone.for_input_size(side, side).unwrap();
        let train = tensors(6, side, 2, 3);
        let mut plan = Strategy::SmallSimilar.plan(&backbone, 6);
        plan.phases[0].epochs = 1;
        let tuned = FineTuner::new(backbone.clone()).plan(plan).fit(&train, &train.clone()).unwrap();
        assert_eq!(tuned.report.parameters.learning, 2 * (backbone.feature_dim() + 1), "{name}");
        let same = all_bits(tuned.predictor.backbone().tensors());
        assert_eq!(differing(&same, &all_bits(backbone.tensors())), [""; 0], "{name}");
        let path = folder.path().join("tuned.safetensors");
        tuned.predictor.save(&path).unwrap();
        let again = Predictor::from_file(&path, &CPU).unwrap();
        let images = images(2, 3, side, 8);
        assert_eq!(bits(&again.logits(&images).unwrap()), bits(&tuned.predictor.logits(&images).unwrap()), "{name}");
        assert_eq!(again.labels(), class_names(2));
    }
}

/// A network of one block has one stage, whose columns a run shows.
#[test]
fn a_head_over_all_stages_is_fitted_and_saved() {
    let backbone = Backbone::random(model("zoo/convnext_atto"), 1, &CPU).unwrap().for_input_size(32, 32).unwrap();
    let data = tensors(8, 32, 2, 1);
    let tuned = FineTuner::new(backbone).strategy(Strategy::Intermediate).fit(&data, &data).unwrap();
    assert_eq!(tuned.report.head_fit.as_ref().unwrap().columns, 17 * model("zoo/convnext_atto").feature_dim());
    let file = tempfile::NamedTempFile::new().unwrap();
    tuned.predictor.save(file.path()).unwrap();
    let loaded = Predictor::from_file(file.path(), &CPU).unwrap();
    let batch = images(2, 3, 32, 3);
    assert_eq!(bits(&loaded.logits(&batch).unwrap()), bits(&tuned.predictor.logits(&batch).unwrap()));
}
