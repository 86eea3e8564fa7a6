//! Random operations that move pixels.

use super::super::image::Image;
use super::super::resample::Region;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Height and width of a random box: an area and a ratio within bounds. `None` if it does not fit into `size`.
pub(super) fn random_size(
    size: (usize, usize),
    scale: (f32, f32),
    ratio: (f32, f32),
    rng: &mut ChaCha8Rng,
) -> Option<(usize, usize)> {
    let area = (size.0 * size.1) as f64 * f64::from(rng.random_range(scale.0..=scale.1));
    let ratio = f64::from(rng.random_range(ratio.0.ln()..=ratio.1.ln())).exp();
    let width = (area * ratio).sqrt().round_ties_even() as usize;
    let height = (area / ratio).sqrt().round_ties_even() as usize;
    ((1..=size.0).contains(&height) && (1..=size.1).contains(&width)).then_some((height, width))
}

/// The box of a random resized crop. After ten boxes that do not fit, the largest centred box of an allowed ratio.
pub(in super::super) fn random_crop(
    image: &Image,
    scale: (f32, f32),
    ratio: (f32, f32),
    rng: &mut ChaCha8Rng,
) -> Region {
    let (ih, iw) = (image.height(), image.width());
    for _ in 0..10 {
        if let Some((height, width)) = random_size((ih, iw), scale, ratio, rng) {
            let (top, left) = (rng.random_range(0..=ih - height), rng.random_range(0..=iw - width));
            return Region { top, left, height, width };
        }
    }
    let whole = iw as f64 / ih as f64;
    let (least, greatest) = (f64::from(ratio.0), f64::from(ratio.1));
    let (height, width) = if whole < least {
        (((iw as f64 / least).round() as usize).clamp(1, ih), iw)
    } else if whole > greatest {
        (ih, ((ih as f64 * greatest).round() as usize).clamp(1, iw))
    } else {
        (ih, iw)
    };
    Region { top: (ih - height) / 2, left: (iw - width) / 2, height, width }
}

/// Flips horizontally.
pub(super) fn mirror(image: &mut Image) {
    let (channels, row_bytes) = (image.channels(), image.width() * image.channels());
    for row in image.bytes_mut().chunks_exact_mut(row_bytes) {
        let (mut left, mut right) = (0, row_bytes - channels);
        while left < right {
            for c in 0..channels {
                row.swap(left + c, right + c);
            }
            left += channels;
            right -= channels;
        }
    }
}

/// Flips vertically.
pub(super) fn upside_down(image: &mut Image) {
    let (height, row_bytes) = (image.height(), image.width() * image.channels());
    let bytes = image.bytes_mut();
    for y in 0..height / 2 {
        let (upper, lower) = bytes.split_at_mut((height - 1 - y) * row_bytes);
        upper[y * row_bytes..(y + 1) * row_bytes].swap_with_slice(&mut lower[..row_bytes]);
    }
}

/// Shifts the image; pixels that enter are black.
pub(super) fn shift(image: &mut Image, down: i64, right: i64) {
    let black = vec![0; image.channels()];
    map(image, &black, |y, x| (y as i64 - down, x as i64 - right));
}

/// Takes each pixel from where the matrix `[a, b, c, d]` (on x, y from the centre) and then `offset` (x, y) map it.
pub(super) fn affine(image: &mut Image, [a, b, c, d]: [f32; 4], offset: [f32; 2], fill: &[u8]) {
    let (middle_x, middle_y) = (image.width() as f32 * 0.5, image.height() as f32 * 0.5);
    map(image, fill, |y, x| {
        let (x, y) = (x as f32 + 0.5 - middle_x, y as f32 + 0.5 - middle_y);
        let from_x = a * x + b * y + offset[0] + middle_x;
        let from_y = c * x + d * y + offset[1] + middle_y;
        (from_y.floor() as i64, from_x.floor() as i64)
    });
}

/// Each pixel (y, x) becomes the one at `from(y, x)`, or `fill` if that is outside.
fn map(image: &mut Image, fill: &[u8], from: impl Fn(usize, usize) -> (i64, i64)) {
    let source = image.clone();
    let (height, width, channels) = (source.height(), source.width(), source.channels());
    for (at, pixel) in image.bytes_mut().chunks_exact_mut(channels).enumerate() {
        let (y, x) = from(at / width, at % width);
        let inside = (0..height as i64).contains(&y) && (0..width as i64).contains(&x);
        pixel.copy_from_slice(if inside { source.pixel(y as usize, x as usize) } else { fill });
    }
}
