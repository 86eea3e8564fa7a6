use super::super::resample::Region;
use super::*;
use crate::rng::Seed;
use crate::{InputSpec, Transform};

fn rng(i: u64) -> ChaCha8Rng {
    Seed(0).stream("test", &[i])
}

/// Gray levels that rise from left to right and from top to bottom.
fn ramp(height: usize, width: usize, channels: usize) -> Image {
    let level = |k: usize| (k / channels % width * 5 + k / channels / width * 3) as u8;
    Image::new(height, width, channels, (0..height * width * channels).map(level).collect()).unwrap()
}

fn colours() -> Image {
    let bytes = (0..16 * 16 * 3u32).map(|k| (k.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Image::from_rgb8(16, 16, bytes).unwrap()
}

#[test]
fn half_of_the_images_are_mirrored() {
    let spec = InputSpec::new(8).crop_pct(1.0);
    let image = ramp(8, 8, 3);
    let plain = Transform::eval(&spec).unwrap().apply(&image, 0, 0, 0).unwrap().to_vec3::<f32>().unwrap();
    let flip = Transform::train(&spec, &Augment::none().flip(0.5)).unwrap();
    let mut mirrored = 0;
    for i in 0..2000 {
        let rows = flip.apply(&image, 0, 0, i).unwrap().to_vec3::<f32>().unwrap();
        if rows != plain {
            let back: Vec<Vec<Vec<f32>>> =
                rows.iter().map(|c| c.iter().map(|row| row.iter().rev().copied().collect()).collect()).collect();
            assert_eq!(back, plain);
            mirrored += 1;
        }
    }
    // Six standard deviations of 22.
    assert!((866..=1134).contains(&mirrored), "{mirrored} of 2000");
}

#[test]
fn flips_undo_themselves() {
    for (height, width) in [(5, 7), (4, 4), (1, 1), (1, 6)] {
        let image = ramp(height, width, 3);
        let mut turned = image.clone();
        geometry::upside_down(&mut turned);
        assert_eq!(turned.pixel(0, width - 1), image.pixel(height - 1, width - 1));
        geometry::upside_down(&mut turned);
        geometry::mirror(&mut turned);
        assert_eq!(turned.pixel(height - 1, 0), image.pixel(height - 1, width - 1));
        geometry::mirror(&mut turned);
        assert_eq!(turned, image);
    }
}

#[test]
fn crops_lie_inside_and_have_the_wanted_area() {
    let (mut rng, mut areas) = (rng(0), Vec::new());
    for (height, width) in [(100, 130), (1, 1), (1, 50), (300, 3)] {
        for _ in 0..500 {
            let image = ramp(height, width, 1);
            let Region { top, left, height: h, width: w } =
                random_crop(&image, (0.35, 1.0), (3.0 / 4.0, 4.0 / 3.0), &mut rng);
            assert!(h >= 1 && w >= 1 && top + h <= height && left + w <= width);
            if height == 100 {
                areas.push((h * w) as f64 / 13_000.0);
                let ratio = w as f64 / h as f64;
                assert!((0.73..1.37).contains(&ratio), "{ratio}");
            }
        }
    }
    let mean = areas.iter().sum::<f64>() / areas.len() as f64;
    assert!(areas.iter().all(|&area| (0.34..=1.0).contains(&area)), "{areas:?}");
    assert!((0.55..0.72).contains(&mean), "mean area {mean}");
}

#[test]
fn shifting_moves_every_pixel() {
    let mut image = ramp(6, 5, 1);
    let before = image.clone();
    geometry::shift(&mut image, 2, -1);
    for (y, x) in (0..6).flat_map(|y| (0..5).map(move |x| (y, x))) {
        let expected = if y >= 2 && x < 4 { before.pixel(y - 2, x + 1) } else { &[0] };
        assert_eq!(image.pixel(y, x), expected, "{y}, {x}");
    }
    let pad = Transform::train(&InputSpec::new(8).crop_pct(1.0), &Augment::none().pad_crop(2)).unwrap();
    let distinct: std::collections::HashSet<Vec<u32>> =
        (0..400).map(|i| pad.values(&ramp(8, 8, 3), 0, 0, i).unwrap().iter().map(|v| v.to_bits()).collect()).collect();
    assert_eq!(distinct.len(), 25, "five places either way");
}

#[test]
fn factor_one_changes_nothing_and_zero_takes_all_away() {
    let image = colours();
    let operations: [fn(&mut Image, f32); 4] =
        [pixels::brightness, pixels::contrast, pixels::saturation, pixels::sharpness];
    for operation in operations {
        let mut same = image.clone();
        operation(&mut same, 1.0);
        assert_eq!(same, image);
    }
    let mut changed = image.clone();
    pixels::brightness(&mut changed, 0.0);
    assert!(changed.bytes().iter().all(|&v| v == 0));
    let mut changed = image.clone();
    pixels::contrast(&mut changed, 0.0);
    assert!(changed.bytes().iter().all(|v| *v == changed.bytes()[0]));
    let mut changed = image.clone();
    pixels::saturation(&mut changed, 0.0);
    assert_eq!(changed, image.to_channels(1).unwrap().to_channels(3).unwrap());
}

#[test]
fn hue_turns() {
    let turned = |colour: [u8; 3], turn: f32| {
        let mut image = Image::from_rgb8(1, 1, colour.to_vec()).unwrap();
        pixels::hue(&mut image, turn);
        [image.bytes()[0], image.bytes()[1], image.bytes()[2]]
    };
    assert_eq!(turned([255, 0, 0], 1.0 / 3.0), [0, 255, 0]);
    assert_eq!(turned([255, 0, 0], -1.0 / 3.0), [0, 0, 255]);
    assert_eq!(turned([200, 100, 100], 0.5), [100, 200, 200]);
    assert_eq!(turned([80, 80, 80], 0.3), [80, 80, 80]);
    for pixel in colours().bytes().chunks_exact(3) {
        let colour = [pixel[0], pixel[1], pixel[2]];
        assert_eq!(turned(colour, 0.0), colour);
    }
}

#[test]
fn histograms() {
    let mut image = Image::new(1, 4, 1, vec![50, 60, 70, 100]).unwrap();
    pixels::autocontrast(&mut image);
    assert_eq!(image.bytes(), [0, 51, 102, 255]);
    let mut flat = Image::new(2, 2, 1, vec![7; 4]).unwrap();
    pixels::autocontrast(&mut flat);
    pixels::equalize(&mut flat);
    assert_eq!(flat.bytes(), [7; 4]);
    // 1000 pixels between 100 and 104 spread over the whole range.
    let mut narrow = Image::new(10, 100, 1, (0..1000).map(|k| 100 + (k % 5) as u8).collect()).unwrap();
    pixels::equalize(&mut narrow);
    assert!(narrow.bytes().contains(&0) && narrow.bytes().iter().any(|&v| v > 240));
}

#[test]
fn bits_and_thresholds() {
    let mut image = Image::new(1, 3, 1, vec![0b1111_1111, 0b0101_0101, 3]).unwrap();
    pixels::posterize(&mut image, 8);
    assert_eq!(image.bytes(), [255, 85, 3]);
    pixels::posterize(&mut image, 2);
    assert_eq!(image.bytes(), [0b1100_0000, 0b0100_0000, 0]);
    pixels::solarize(&mut image, 128.0);
    assert_eq!(image.bytes(), [63, 64, 0]);
}

#[test]
fn turning_by_90_degrees_is_exact() {
    let image = ramp(6, 6, 3);
    let mut turned = image.clone();
    geometry::affine(&mut turned, [0.0, -1.0, 1.0, 0.0], [0.0, 0.0], &[0; 3]);
    for (y, x) in (0..6).flat_map(|y| (0..6).map(move |x| (y, x))) {
        assert_eq!(turned.pixel(y, x), image.pixel(x, 5 - y));
    }
}

#[test]
fn trivial_augment_works_on_any_image() {
    for (size, channels) in [((1, 1), 3), ((2, 3), 1), ((16, 16), 3), ((9, 5), 5)] {
        let mut distinct = std::collections::HashSet::new();
        for i in 0..300 {
            let mut image = ramp(size.0, size.1, channels);
            trivial(&mut image, &vec![9; channels], &mut rng(i));
            assert_eq!((image.height(), image.width(), image.channels()), (size.0, size.1, channels));
            distinct.insert(image.into_bytes());
        }
        assert!(distinct.len() > if size == (16, 16) { 60 } else { 0 }, "{} different ones", distinct.len());
    }
}

#[test]
fn a_quarter_is_erased_within_bounds() {
    let mut erased = 0;
    for i in 0..1000 {
        let mut values = vec![1f32; 2 * 20 * 30];
        erase(&mut values, 2, (20, 30), 0.25, &mut rng(i));
        let zeros = values[..600].iter().filter(|&&v| v == 0.0).count();
        assert_eq!(values[..600], values[600..], "all channels alike");
        if zeros > 0 {
            erased += 1;
            assert!((6..=230).contains(&zeros), "{zeros} of 600");
        }
    }
    assert!((170..=330).contains(&erased), "{erased} of 1000");
    erase(&mut [1.0], 1, (1, 1), 1.0, &mut rng(0));
}

#[test]
fn presets_are_plain_data() {
    let presets = [Augment::none(), Augment::light(), Augment::standard(), Augment::strong()];
    for (i, augment) in presets.iter().enumerate() {
        augment.check().unwrap();
        assert_eq!(augment.is_random(), i > 0);
        let text = serde_json::to_string(augment).unwrap();
        assert_eq!(serde_json::from_str::<Augment>(&text).unwrap(), *augment);
        assert!(presets[i + 1..].iter().all(|other| other != augment));
    }
    assert_eq!(serde_json::from_str::<Augment>("{\"flip\":0.5}").unwrap(), Augment::none().flip(0.5));
    assert!(serde_json::from_str::<Augment>("{\"flop\":0.5}").is_err());
}
