//! Grad-CAM through the public names: what it returns, for which networks, and what it refuses. That its numbers are
//! those of the formula is tested beside the code.

use crate::support::{CPU, bits, numbers, plan, tensors};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    Arch, Backbone, Block, Blueprint, Conv2d, Error, FineTuner, FreezePolicy, Head, Image, InputSpec, Layer, Optimizer,
    Phase, Pooling, Predictor, Source,
};

fn image(height: usize, width: usize, seed: u64) -> Image {
    let bytes = numbers(height * width * 3, seed).iter().map(|v| (128.0 + 120.0 * v) as u8).collect();
    Image::new(height, width, 3, bytes).unwrap()
}

fn embedded() -> Predictor {
    Predictor::load(Source::embedded(), &CPU).unwrap()
}

/// A predictor of two classes with a head that has hardly been trained.
fn tuned(backbone: Backbone, head: Head) -> Predictor {
    let size = backbone.input_spec().size.0;
    let train = tensors(8, size, 2, 1);
    let plan = plan(vec![Phase::new(1, Optimizer::sgd(1e-3)).freeze(FreezePolicy::Backbone)], 4);
    FineTuner::new(backbone).head(head).plan(plan).fit(&train, &train.clone()).unwrap().predictor
}

/// A predictor of an own network over images of 16 pixels.
fn own(blocks: Vec<Block>, features: usize, pooling: Pooling) -> Predictor {
    let blueprint = Blueprint::from_blocks("own", InputSpec::new(16), features, blocks).unwrap();
    tuned(Backbone::random(blueprint.pooled_by(pooling).unwrap(), 1, &CPU).unwrap(), Head::linear())
}

fn conv(inputs: usize, outputs: usize) -> Layer {
    Conv2d::new(inputs, outputs, 3).stride(2).batch_norm().relu().into()
}

#[test]
fn the_map_is_between_0_and_1_and_of_the_class_that_is_predicted() {
    let predictor = embedded();
    for seed in 0..4 {
        let image = image(40, 60, seed);
        let cam = predictor.grad_cam(&image, None).unwrap();
        let prediction = predictor.predict(&image).unwrap();
        assert_eq!((cam.class, &cam.label), (prediction.class, &prediction.label));
        assert_eq!((cam.block.as_str(), cam.map.dims(), cam.weighted.dims()), ("layer3.2", &[32, 32][..], &[8, 8][..]));
        let values = cam.map.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)) && values.iter().any(|v| *v > 0.8));
        // Between the centres of the map's pixels, which are four pixels apart, it is interpolated: nowhere steep.
        let steepest = values.windows(2).filter(|w| w[0] - w[1] > 0.26).count();
        assert!(steepest <= 32, "{steepest}"); // the ends of rows alone
        let again = predictor.grad_cam(&image, Some(cam.class)).unwrap();
        assert_eq!(bits(&again.map), bits(&cam.map));
    }
}

#[test]
fn another_block_or_stage_gives_its_own_map() {
    let (predictor, image) = (embedded(), image(32, 32, 5));
    let sized = |name: &str| {
        let cam = predictor.grad_cam_after(&image, Some(3), name).unwrap();
        (cam.block, cam.weighted.dims().to_vec(), bits(&cam.weighted))
    };
    let stage = sized("layer2");
    assert_eq!((stage.0.as_str(), stage.1.as_slice()), ("layer2.2", &[16, 16][..]));
    assert_eq!(sized("layer2.2"), stage);
    assert_eq!(sized("stem").1, [32, 32]);
    let last = predictor.grad_cam(&image, Some(3)).unwrap();
    assert_eq!(sized("layer3").2, bits(&last.weighted));
}

#[test]
fn it_works_for_heads_of_two_layers_fully_connected_blocks_and_other_poolings() {
    let image = image(20, 20, 7);
    let backbone = Backbone::random(Arch::TF_EFFICIENTNET_LITE0, 1, &CPU).unwrap().for_input_size(64, 64).unwrap();
    let cam = tuned(backbone, Head::mlp(8)).grad_cam(&image, Some(1)).unwrap();
    assert_eq!((cam.block.as_str(), cam.weighted.dims(), cam.map.dims()), ("conv_head", &[2, 2][..], &[64, 64][..]));
    let blocks = |last: Layer| {
        let connected = Conv2d::new(8, 8, 4).padding(0).relu();
        vec![
            Block::new("stem", conv(3, 8)),
            Block::new("body", conv(8, 8)),
            Block::new("connected", connected),
            Block::new("last", last),
        ]
    };
    // A closure over Candle's operations after the map: the gradient passes through Candle's graph.
    let closure = Layer::custom(|_| Ok(|x: &Tensor| x.flatten_from(1)?.sqr()));
    for last in [Layer::from(Conv2d::new(8, 8, 1).relu()), closure] {
        for pooling in [Pooling::Mean, Pooling::GeneralizedMean(3.0)] {
            let cam = own(blocks(last.clone()), 8, pooling).grad_cam(&image, None).unwrap();
            assert_eq!((cam.block.as_str(), cam.weighted.dims()), ("body", &[4, 4][..]));
        }
    }
}

#[test]
fn networks_without_a_map_are_refused_with_what_to_do() {
    let image = image(16, 16, 9);
    let refused = |predictor: Predictor| match predictor.grad_cam(&image, None) {
        Err(error @ Error::Unsupported { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let pooled = Layer::sequential([conv(3, 8), Layer::global_average_pool()]);
    let text = refused(own(vec![Block::new("all", pooled)], 8, Pooling::Mean));
    assert!(
        text.starts_with("own cannot ") && text.contains("more than one pixel") && text.contains("use a "),
        "{text}"
    );
    let tokens = refused(own(vec![Block::new("stem", conv(3, 8))], 8, Pooling::ClassToken));
    assert!(tokens.contains("class token"), "{tokens}");
    let cut = Layer::custom(|_| Ok(|x: &Tensor| Ok(x.mean((2, 3))?.detach())));
    let text = refused(own(vec![Block::new("stem", conv(3, 8)), Block::new("cut", cut)], 8, Pooling::Mean));
    assert!(text.contains("cuts the graph"), "{text}");
}

#[test]
fn classes_and_blocks_that_are_not_there_are_refused() {
    let (predictor, image) = (embedded(), image(32, 32, 11));
    let error = predictor.grad_cam(&image, Some(10)).unwrap_err().to_string();
    assert!(error.contains("10; the predictor has 10 classes"), "{error}");
    match predictor.grad_cam_after(&image, None, "layer4").unwrap_err() {
        Error::UnknownBlock { name, known } => {
            assert!(name == "layer4" && known[..4] == ["stem", "layer1", "layer2", "layer3"], "{known:?}");
        }
        other => panic!("{other}"),
    }
    let blocks = vec![Block::new("stem", conv(3, 8)), Block::new("last", Layer::global_average_pool())];
    let error = own(blocks, 8, Pooling::Mean).grad_cam_after(&image, None, "last").unwrap_err();
    assert!(matches!(&error, Error::Unsupported { why, .. } if why.contains("earlier block")), "{error}");
    let gray = Image::new(32, 32, 5, vec![0; 32 * 32 * 5]).unwrap();
    assert!(predictor.grad_cam(&gray, None).is_err());
}

#[cfg(feature = "zoo")]
#[test]
fn transformers_of_the_zoo_are_refused() {
    let model: candle_finetune::ZooModel = "zoo/deit_tiny_patch16_224".parse().unwrap();
    let predictor = tuned(Backbone::random(model, 1, &CPU).unwrap(), Head::linear());
    let error = predictor.grad_cam(&image(16, 16, 13), None).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { network, .. } if network.contains("deit")), "{error}");
    assert!(error.to_string().contains("use a convolutional network"), "{error}");
}
