//! Pictures of what a network has learned: their sizes, and the pixels that can be computed otherwise.

mod page;

use crate::support::{CPU, class_names, images, tensors};
use candle_finetune::candle_core::Tensor;
use candle_finetune::{
    Advisor, Backbone, Block, Blueprint, Conv2d, Dataset, Error, Image, ImageFolder, InputSpec, Layer, Sample, Source,
    TensorDataset, TopActivations, Transform,
};

fn embedded() -> Backbone {
    Backbone::embedded(&CPU).unwrap()
}

fn fashion() -> ImageFolder {
    ImageFolder::open(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion/train")).unwrap()
}

/// A network whose first convolution takes `channels` channels.
fn own(channels: usize, kernel: usize) -> Backbone {
    let spec = InputSpec::new(8).normalize(&vec![0.5; channels], &vec![0.25; channels]);
    let blocks = vec![Block::new("stem", Conv2d::new(channels, 6, kernel).relu())];
    Backbone::random(Blueprint::from_blocks("own", spec, 6, blocks).unwrap(), 1, &CPU).unwrap()
}

/// The value of a kernel as a level of its tile.
fn level(kernel: &[f32], at: usize) -> u8 {
    let most = kernel.iter().fold(0f32, |most, v| most.max(v.abs()));
    (127.5 + 127.5 * kernel[at] / most).round() as u8
}

#[test]
fn filters_of_three_channels_are_tiles_of_colours() {
    let backbone = embedded();
    let picture = backbone.draw_filters().unwrap();
    // Four rows and columns of kernels of 3 x 3 pixels, each enlarged 16 times, with gaps of four pixels.
    assert_eq!((picture.height(), picture.width()), (4 * 48 + 5 * 4, 4 * 48 + 5 * 4));
    let kernels = backbone.tensors()["conv1.weight"].flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    let mut extremes = 0;
    for (k, kernel) in kernels.iter().enumerate() {
        let (top, left) = (4 + k / 4 * 52, 4 + k % 4 * 52);
        assert_eq!(picture.pixel(top - 1, left), [255; 3]);
        for at in 0..9 {
            let expected = [level(kernel, at), level(kernel, 9 + at), level(kernel, 18 + at)];
            let (y, x) = (top + at / 3 * 16, left + at % 3 * 16);
            assert_eq!([picture.pixel(y, x), picture.pixel(y + 15, x + 15)], [&expected; 2], "kernel {k}, pixel {at}");
            extremes += expected.iter().filter(|v| [0, 255].contains(*v)).count();
        }
    }
    assert!(extremes >= 16, "each kernel has its own range");
}

#[test]
fn filters_of_other_channels_are_gray_tiles() {
    let gray = own(1, 5).draw_filters().unwrap();
    assert_eq!((gray.height(), gray.width()), (2 * 45 + 3 * 4, 3 * 45 + 4 * 4));
    let backbone = own(5, 1);
    let picture = backbone.draw_filters().unwrap();
    // Three kernels of five channels a row.
    assert_eq!((picture.height(), picture.width()), (2 * 48 + 3 * 4, 15 * 48 + 16 * 4));
    let kernels = backbone.tensors()["stem.conv.weight"].flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
    for (k, kernel) in kernels.iter().enumerate() {
        for channel in 0..5 {
            let (y, x) = (4 + k / 3 * 52, 4 + (k % 3 * 5 + channel) * 52);
            assert_eq!(picture.pixel(y, x), [level(kernel, channel); 3], "kernel {k}, channel {channel}");
        }
    }
}

#[test]
fn a_network_whose_first_layer_is_unknown_has_no_filters() {
    let mean = Layer::custom(|_| Ok(|x: &Tensor| x.mean((2, 3))));
    let blueprint = Blueprint::from_blocks("mean", InputSpec::new(8), 3, vec![Block::new("all", mean)]).unwrap();
    let error = Backbone::random(&blueprint, 1, &CPU).unwrap().draw_filters().unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

/// How far the `count` largest values stand out from all of them.
fn standing(values: &[f64], count: usize) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let middle = mean(values);
    let deviation = mean(&values.iter().map(|v| (v - middle).powi(2)).collect::<Vec<_>>()).sqrt();
    if deviation > 0.0 { (mean(&sorted[..count]) - middle) / deviation } else { 0.0 }
}

#[test]
fn top_activations_are_the_images_and_channels_of_the_largest_means() {
    let (backbone, data) = (embedded(), fashion());
    let top = TopActivations::find(&backbone, &data, 3, 7).unwrap();
    let transform = Transform::eval(backbone.input_spec()).unwrap();
    let input = |i: usize| match data.sample(i).unwrap() {
        Sample::Image(image) => transform.apply(&image, 0, 0, 0).unwrap(),
        other => panic!("{other:?}"),
    };
    let inputs = Tensor::stack(&(0..data.len()).map(input).collect::<Vec<_>>(), 0).unwrap();
    for (stage, (name, features)) in backbone.stage_features(&inputs).unwrap().into_iter().enumerate() {
        let channels = features.t().unwrap().to_vec2::<f32>().unwrap();
        let channels: Vec<Vec<f64>> = channels.iter().map(|c| c.iter().map(|v| f64::from(*v)).collect()).collect();
        let mut order: Vec<usize> = (0..channels.len()).collect();
        order.sort_by(|&a, &b| standing(&channels[b], 7).total_cmp(&standing(&channels[a], 7)));
        for (rank, top) in top[stage * 3..][..3].iter().enumerate() {
            assert_eq!((&top.stage, top.channel), (&name, order[rank]));
            let means = &channels[top.channel];
            let least = top.samples.iter().map(|&i| means[i]).fold(f64::INFINITY, f64::min);
            let larger = (0..data.len()).filter(|i| !top.samples.contains(i) && means[*i] > least + 1e-6).count();
            assert_eq!((top.samples.len(), larger), (7, 0), "{name} {}", top.channel);
            for (&i, &activation) in top.samples.iter().zip(&top.activations) {
                assert!((means[i] - f64::from(activation)).abs() < 1e-5);
            }
            assert!(top.activations.is_sorted_by(|a, b| a >= b));
        }
    }
    assert_eq!(top.len(), 12);
    let picture = TopActivations::draw(&top).unwrap();
    // Squares of three thumbnails of 64 pixels with gaps of 2, under captions of 18, with gaps of 12.
    let square = 3 * 64 + 4 * 2;
    assert_eq!((picture.height(), picture.width()), (4 * (square + 18) + 5 * 12, 3 * square + 4 * 12));
}

#[test]
fn fewer_images_and_channels_than_asked_for_are_all() {
    let data = tensors(3, 8, 2, 1);
    let top = TopActivations::find(&own(3, 3), &data, 100, 9).unwrap();
    assert!(top.len() == 6 && top.iter().all(|top| top.samples.len() == 3));
    assert_eq!(top.iter().map(|top| top.channel).collect::<std::collections::BTreeSet<_>>(), (0..6).collect());
}

#[test]
fn top_activations_without_anything_to_show_are_refused() {
    let data = tensors(3, 8, 2, 1);
    for (channels, images) in [(0, 1), (1, 0)] {
        let error = TopActivations::find(&own(3, 3), &data, channels, images).unwrap_err();
        assert!(matches!(&error, Error::Invalid { .. }), "{error}");
    }
    let five = TensorDataset::new(images(2, 5, 8, 1), vec![0, 1], class_names(2)).unwrap();
    let error = TopActivations::find(&own(5, 3), &five, 1, 1).unwrap_err().to_string();
    assert!(error.contains("5 channels; only gray and RGB"), "{error}");
    assert!(TopActivations::draw(&[]).is_err());
}

#[test]
fn probes_are_drawn_at_their_accuracy() {
    let evidence = Advisor::new(&embedded()).advise(&fashion()).unwrap().evidence;
    let picture = evidence.draw_probes().unwrap();
    assert_eq!((picture.height(), picture.width()), (380, 760));
    for (i, stage) in evidence.stages.iter().enumerate() {
        let at = |accuracy: f64| {
            let (x, y) = (44.0 + 500.0 * (i as f64 + 0.5) / 4.0, 44.0 + 302.0 * (1.0 - accuracy));
            picture.pixel(y.round() as usize, x.round() as usize)
        };
        // The last line is on top of the others.
        assert_eq!(at(stage.mean.neighbours), [214, 96, 20], "{}", stage.stage);
        if (stage.mean.neighbours - stage.mean.ridge).abs() > 0.05 {
            assert_eq!(at(stage.mean.ridge), [31, 119, 180], "{}", stage.stage);
        }
        assert_eq!(at(stage.grid.ridge), [255; 3], "{}: a hollow point", stage.stage);
    }
}

#[test]
fn overlays_mark_what_speaks_for_a_class() {
    let predictor = candle_finetune::Predictor::load(Source::embedded(), &CPU).unwrap();
    let data = fashion();
    let Sample::Image(image) = data.sample(0).unwrap() else { panic!("no image") };
    let cam = predictor.grad_cam(&image, None).unwrap();
    let overlay = cam.overlay(&image).unwrap();
    assert_eq!((overlay.height(), overlay.width(), overlay.channels()), (168, 168, 3));
    let map = cam.map.to_vec2::<f32>().unwrap();
    let mut hot = 0;
    // The network sees the middle of the image.
    let seen = 28.0 * predictor.backbone().input_spec().crop_pct;
    for y in 0..28usize {
        for x in 0..28usize {
            let place = |at: usize| (at as f64 + 0.5 - (28.0 - seen) / 2.0) / seen * 32.0;
            let (row, column) = (place(y), place(x));
            let inside = (1.0..31.0).contains(&row) && (1.0..31.0).contains(&column);
            if !inside || map[row as usize][column as usize] < 0.9 {
                continue;
            }
            let (drawn, original) = (overlay.pixel(y * 6 + 3, x * 6 + 3), image.pixel(y, x)[0]);
            assert!(i32::from(drawn[0]) - i32::from(drawn[2]) > 50, "{y} {x}: {drawn:?} over {original}");
            hot += 1;
        }
    }
    assert!(hot > 0);
    let other = Image::new(28, 30, 3, vec![0; 28 * 30 * 3]).unwrap();
    assert!(cam.overlay(&other).unwrap_err().to_string().contains("28 x 30"));
}

#[test]
fn pictures_are_saved_as_png_and_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("picture.png");
    for channels in 1..=4 {
        let bytes = (0..30 * 20 * channels).map(|i| (i * 31 % 253) as u8).collect();
        let image = Image::new(30, 20, channels, bytes).unwrap();
        image.save_png(&path).unwrap();
        assert!(Image::open(&path).unwrap() == image.to_channels(3).unwrap(), "{channels} channels");
    }
    let five = Image::new(1, 1, 5, vec![0; 5]).unwrap();
    assert!(five.save_png(&path).unwrap_err().to_string().contains("5 channels"));
    assert!(embedded().draw_filters().unwrap().save_png(dir.path().join("nowhere/a.png")).is_err());
}
