use super::*;
use crate::Interpolation;
use rand::RngExt;
use serde::Deserialize;

/// The image that tests/reference/transforms.py makes.
fn pattern(height: usize, width: usize, channels: usize) -> Image {
    let mut bytes = Vec::new();
    for y in 0..height as u64 {
        for x in 0..width as u64 {
            for c in 0..channels as u64 {
                let h = (y * 73_856_093) ^ (x * 19_349_663) ^ (c * 83_492_791);
                let h = h.wrapping_mul(2_654_435_761) >> 7;
                let gradient = (y * 3 + x * 2 + c * 40) % 256;
                bytes.push(((gradient * 2 + h % 256) / 3) as u8);
            }
        }
    }
    Image::new(height, width, channels, bytes).unwrap()
}

#[derive(Deserialize)]
struct Fixture {
    every: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    image: (usize, usize),
    channels: usize,
    size: (usize, usize),
    interpolation: Interpolation,
    crop_pct: f64,
    mode: String,
    mean: f64,
    values: Vec<f32>,
}

#[test]
fn evaluation_is_that_of_timm() {
    let fixture: Fixture = serde_json::from_str(include_str!("../../../tests/fixtures/transforms.json")).unwrap();
    assert!(fixture.cases.len() > 20);
    for case in fixture.cases {
        let (height, width) = case.image;
        let fit = match case.mode.as_str() {
            "center" => CropMode::Center,
            "squash" => CropMode::Squash,
            "border" => CropMode::Border,
            other => panic!("{other}"),
        };
        let mut spec =
            InputSpec::new(1).size(case.size.0, case.size.1).interpolation(case.interpolation).crop_pct(case.crop_pct);
        if case.channels == 1 {
            spec = spec.normalize(&[0.1307], &[0.3081]);
        }
        let transform = Transform::eval(&spec.crop_mode(fit)).unwrap();
        let values = transform.values(&pattern(height, width, case.channels), 0, 0, 0).unwrap();
        let name = format!("{:?} to {:?} {:?} {}", case.image, case.size, case.interpolation, case.mode);
        assert_eq!(values.len().div_ceil(fixture.every), case.values.len(), "{name}");
        // One level of 255 is 0.017 here: the bytes are the same.
        for (k, (ours, theirs)) in values.iter().step_by(fixture.every).zip(&case.values).enumerate() {
            assert!((ours - theirs).abs() < 2e-5, "{name}: {ours} is not {theirs} at {k}");
        }
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        assert!((mean - case.mean).abs() < 1e-6, "{name}: mean {mean} is not {}", case.mean);
    }
}

#[test]
fn an_image_of_the_input_size_passes_untouched() {
    let image = pattern(32, 48, 3);
    let spec = InputSpec::new(1).size(32, 48).crop_pct(1.0).normalize(&[0.0; 3], &[1.0 / 255.0; 3]);
    for fit in [CropMode::Center, CropMode::Border, CropMode::Squash] {
        let values = Transform::eval(&spec.clone().crop_mode(fit)).unwrap().values(&image, 0, 0, 0).unwrap();
        for (at, pixel) in image.bytes().chunks_exact(3).enumerate() {
            for c in 0..3 {
                assert_eq!(values[c * 32 * 48 + at].round() as u8, pixel[c]);
            }
        }
    }
}

#[test]
fn without_augmentation_training_is_evaluation() {
    let image = pattern(50, 70, 3);
    let spec = InputSpec::new(32);
    let eval = Transform::eval(&spec).unwrap().values(&image, 0, 0, 0).unwrap();
    let train = Transform::train(&spec, &Augment::none()).unwrap().values(&image, 9, 8, 7).unwrap();
    assert!(eval.iter().zip(&train).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn chance_comes_from_seed_view_and_index_alone() {
    let image = pattern(50, 70, 3);
    let transform = Transform::train(&InputSpec::new(32), &Augment::strong()).unwrap();
    let values = |seed, view, i| transform.values(&image, seed, view, i).unwrap();
    assert_eq!(values(1, 2, 3), values(1, 2, 3));
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)] {
        assert_ne!(values(1, 2, 3), values(other.0, other.1, other.2));
    }
}

#[test]
fn other_numbers_of_channels_resize_alike() {
    // Five channels go through the general loop; each one must come out as it does on its own.
    let image = pattern(40, 30, 5);
    let spec = InputSpec::new(16).normalize(&[0.5; 5], &[0.5; 5]);
    let values = Transform::eval(&spec).unwrap().values(&image, 0, 0, 0).unwrap();
    for c in 0..5 {
        let plane: Vec<u8> = image.bytes().iter().skip(c).step_by(5).copied().collect();
        let plane = Image::new(40, 30, 1, plane).unwrap();
        let spec = InputSpec::new(16).normalize(&[0.5], &[0.5]);
        let alone = Transform::eval(&spec).unwrap().values(&plane, 0, 0, 0).unwrap();
        assert_eq!(values[c * 256..(c + 1) * 256], alone);
    }
    assert!(Transform::eval(&InputSpec::new(16)).unwrap().values(&image, 0, 0, 0).is_err());
}

#[test]
fn any_size_fits() {
    let mut rng = Seed(5).stream("sizes", &[]);
    for _ in 0..200 {
        let mut side = |most: usize| rng.random_range(1..=most);
        let (image, size) = (pattern(side(60), side(60), 3), (side(40), side(40)));
        for fit in [CropMode::Center, CropMode::Border, CropMode::Squash] {
            for crop_pct in [0.5, 0.875, 1.0] {
                let spec = InputSpec::new(1).size(size.0, size.1).crop_mode(fit).crop_pct(crop_pct);
                let values = Transform::eval(&spec).unwrap().values(&image, 0, 0, 0).unwrap();
                assert_eq!(values.len(), 3 * size.0 * size.1);
            }
        }
    }
}

#[test]
fn bad_specs_are_refused() {
    let bad = [
        InputSpec::new(0),
        InputSpec::new(32).crop_pct(0.0),
        InputSpec::new(32).crop_pct(1.1),
        InputSpec::new(32).crop_pct(f64::NAN),
        InputSpec::new(32).normalize(&[0.5; 3], &[0.5, 0.5, 0.0]),
        InputSpec::new(32).normalize(&[0.5; 3], &[0.5; 2]),
        InputSpec::new(32).normalize(&[], &[]),
        InputSpec::new(1 << 20),
    ];
    for spec in bad {
        assert!(matches!(Transform::eval(&spec), Err(Error::Invalid { .. })), "{spec:?}");
    }
    let augment = [
        Augment::none().flip(1.5),
        Augment::none().jitter(-1.0, 0.0, 0.0, 0.0),
        Augment::none().jitter(0.0, 0.0, 0.0, 0.6),
        Augment::none().crop_scale(0.0, 1.0),
        Augment::none().crop_scale(0.9, 0.1),
        Augment::light().crop_ratio(0.0, 1.0),
        Augment::light().pad_crop(4),
        Augment::none().erase(f32::NAN),
    ];
    for augment in augment {
        assert!(matches!(Transform::train(&InputSpec::new(32), &augment), Err(Error::Invalid { .. })), "{augment:?}");
    }
}
