//! Random operations that change pixel values. Operations on colours leave images unchanged that do not have three
//! channels.

use super::super::image::{Image, luma};

fn to_byte(v: f32) -> u8 {
    v.clamp(0.0, 255.0) as u8
}

/// Blends two images: `factor` 1 is the first, 0 the second, above 1 extrapolates away from the second.
fn blend(other: f32, value: u8, factor: f32) -> u8 {
    to_byte(other + factor * (f32::from(value) - other))
}

/// Brightness: towards black (0) or away from it.
pub(super) fn brightness(image: &mut Image, factor: f32) {
    let table: [u8; 256] = std::array::from_fn(|v| blend(0.0, v as u8, factor));
    look_up(image, &table);
}

/// Contrast: towards the image's mean gray (0) or away from it.
pub(super) fn contrast(image: &mut Image, factor: f32) {
    let (channels, bytes) = (image.channels(), image.bytes());
    let pixels = (bytes.len() / channels) as u64;
    let sum: u64 = if channels == 3 {
        bytes.chunks_exact(3).map(|p| u64::from(luma(p[0], p[1], p[2]))).sum()
    } else {
        bytes.iter().map(|&v| u64::from(v)).sum::<u64>() / channels as u64
    };
    let mean = ((sum as f64 / pixels as f64) + 0.5).floor() as f32;
    let table: [u8; 256] = std::array::from_fn(|v| blend(mean, v as u8, factor));
    look_up(image, &table);
}

/// Saturation: towards gray (0) or away from it.
pub(super) fn saturation(image: &mut Image, factor: f32) {
    if image.channels() != 3 {
        return;
    }
    for pixel in image.bytes_mut().chunks_exact_mut(3) {
        let gray = f32::from(luma(pixel[0], pixel[1], pixel[2]));
        for value in pixel {
            *value = blend(gray, *value, factor);
        }
    }
}

/// Rotates the hue by this fraction of the colour circle.
pub(super) fn hue(image: &mut Image, turn: f32) {
    if image.channels() != 3 {
        return;
    }
    for pixel in image.bytes_mut().chunks_exact_mut(3) {
        let [r, g, b] = [0, 1, 2].map(|c| f32::from(pixel[c]));
        let (most, least) = (r.max(g).max(b), r.min(g).min(b));
        let range = most - least;
        if range == 0.0 {
            continue;
        }
        // The hue in sixths of the circle, from red.
        let sixth = if most == r {
            (g - b) / range
        } else if most == g {
            (b - r) / range + 2.0
        } else {
            (r - g) / range + 4.0
        };
        let sixth = (sixth + turn * 6.0).rem_euclid(6.0);
        for (value, start) in pixel.iter_mut().zip([5.0, 3.0, 1.0]) {
            let k = (start + sixth) % 6.0;
            *value = to_byte((most - range * k.min(4.0 - k).clamp(0.0, 1.0)).round());
        }
    }
}

/// Sharpness: towards a smoothed image (0) or away from it. The outermost pixels stay unchanged.
pub(super) fn sharpness(image: &mut Image, factor: f32) {
    let source = image.clone();
    let (height, width, channels) = (source.height(), source.width(), source.channels());
    if height < 3 || width < 3 {
        return;
    }
    let (from, stride) = (source.bytes(), width * channels);
    let out = image.bytes_mut();
    for y in 1..height - 1 {
        for at in y * stride + channels..(y + 1) * stride - channels {
            let mut sum = 4 * u32::from(from[at]); // the centre weighs 5 of 13
            for row in [at - stride, at, at + stride] {
                sum += [row - channels, row, row + channels].iter().map(|&k| u32::from(from[k])).sum::<u32>();
            }
            let smooth = (sum as f32 / 13.0).round();
            out[at] = blend(smooth, from[at], factor);
        }
    }
}

/// Keeps the upper `bits` of each byte.
pub(super) fn posterize(image: &mut Image, bits: u32) {
    let mask = !(0xFFu32 >> bits) as u8;
    for value in image.bytes_mut() {
        *value &= mask;
    }
}

/// Inverts values at or above the threshold.
pub(super) fn solarize(image: &mut Image, threshold: f32) {
    for value in image.bytes_mut() {
        if f32::from(*value) >= threshold {
            *value = 255 - *value;
        }
    }
}

/// Stretches each channel to the full range.
pub(super) fn autocontrast(image: &mut Image) {
    for c in 0..image.channels() {
        let counts = histogram(image, c);
        let Some(least) = counts.iter().position(|&n| n > 0) else { continue };
        let most = counts.iter().rposition(|&n| n > 0).unwrap_or(least);
        if most > least {
            let scale = 255.0 / (most - least) as f32;
            look_up_channel(image, c, &std::array::from_fn(|v| to_byte((v as f32 - least as f32) * scale)));
        }
    }
}

/// Equalises the histogram of each channel.
pub(super) fn equalize(image: &mut Image) {
    for c in 0..image.channels() {
        let counts = histogram(image, c);
        let last = counts.iter().rfind(|&&n| n > 0).copied().unwrap_or(0);
        let step = (counts.iter().sum::<usize>() - last) / 255;
        if step == 0 {
            continue;
        }
        let mut below = step / 2;
        let table = std::array::from_fn(|v| {
            let level = (below / step).min(255) as u8;
            below += counts[v];
            level
        });
        look_up_channel(image, c, &table);
    }
}

fn histogram(image: &Image, channel: usize) -> [usize; 256] {
    let mut counts = [0; 256];
    for &value in image.bytes().iter().skip(channel).step_by(image.channels()) {
        counts[usize::from(value)] += 1;
    }
    counts
}

fn look_up(image: &mut Image, table: &[u8; 256]) {
    for value in image.bytes_mut() {
        *value = table[usize::from(*value)];
    }
}

fn look_up_channel(image: &mut Image, channel: usize, table: &[u8; 256]) {
    let channels = image.channels();
    for value in image.bytes_mut().iter_mut().skip(channel).step_by(channels) {
        *value = table[usize::from(*value)];
    }
}
