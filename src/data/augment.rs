//! Random augmentation of training images.

mod geometry;
mod pixels;

pub(super) use geometry::random_crop;

use super::Image;
use crate::{Error, Result};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Random augmentation of training images, as plain data.
///
/// In this order: crop, flips, [TrivialAugment](https://arxiv.org/abs/2103.10158), colour jitter, normalisation (not
/// random), [erasing](https://arxiv.org/abs/1708.04896), and across a batch mixup and CutMix. Start from a preset and
/// change it:
///
/// ```
/// use candle_finetune::Augment;
/// let satellite = Augment::light().vertical_flip(0.5);
/// let digits = Augment::none().pad_crop(4); // no flips: a mirrored 5 is not a digit
/// assert!(digits.is_random() && !Augment::none().is_random());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Augment {
    /// Random resized crop: the smallest and largest fraction of the image's area.
    pub crop_scale: Option<(f32, f32)>,
    /// Random resized crop: the smallest and largest ratio of width to height.
    pub crop_ratio: (f32, f32),
    /// Pixels of black added around the resized image before a random crop back to its size. 0 is off.
    pub pad_crop: usize,
    /// Probability of a horizontal flip.
    pub flip: f32,
    /// Probability of a vertical flip.
    pub vertical_flip: f32,
    /// Brightness is multiplied by 1 - this to 1 + this.
    pub brightness: f32,
    /// Contrast is multiplied by 1 - this to 1 + this.
    pub contrast: f32,
    /// Saturation is multiplied by 1 - this to 1 + this. Gray images have none.
    pub saturation: f32,
    /// Hue is rotated by up to this fraction of the colour circle either way, at most 0.5. Gray images have none.
    pub hue: f32,
    /// One of fourteen operations at a random strength for each image (TrivialAugment, wide).
    pub trivial: bool,
    /// Probability of setting a rectangle of 2 to 33 % of the area to zero, after normalisation.
    pub erase: f32,
    /// Mixup: each image of a batch is blended with another, and so are their targets; the share of each is drawn from
    /// Beta(this, this). 0 is off, 0.1 to 0.4 are usual. (Zhang et al. 2017, arXiv 1710.09412)
    #[serde(skip_serializing_if = "is_off")]
    pub mixup: f32,
    /// CutMix: each image of a batch gets a rectangle of another, and the share of its area in the target; the area is
    /// drawn from Beta(this, this). 0 is off, 1 is usual. With mixup, a coin chooses for each batch. (Yun et al. 2019,
    /// arXiv 1905.04899)
    #[serde(skip_serializing_if = "is_off")]
    pub cutmix: f32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
fn is_off(amount: &f32) -> bool {
    *amount == 0.0
}

impl Default for Augment {
    /// [`Augment::none`].
    fn default() -> Self {
        Self::none()
    }
}

impl Augment {
    /// No augmentation: training sees exactly what evaluation sees.
    pub fn none() -> Self {
        Self {
            crop_scale: None,
            crop_ratio: (3.0 / 4.0, 4.0 / 3.0),
            pad_crop: 0,
            flip: 0.0,
            vertical_flip: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            trivial: false,
            erase: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
        }
    }

    /// Crops of at least 70 % of the area, and horizontal flips.
    pub fn light() -> Self {
        Self::none().crop_scale(0.7, 1.0).flip(0.5)
    }

    /// Crops of at least 35 % of the area, horizontal flips, a little colour jitter.
    pub fn standard() -> Self {
        Self::none().crop_scale(0.35, 1.0).flip(0.5).jitter(0.2, 0.2, 0.2, 0.0)
    }

    /// [`standard`](Self::standard), TrivialAugment, and erasing on a quarter of the images.
    pub fn strong() -> Self {
        Self::standard().trivial(true).erase(0.25)
    }

    /// Turns on random resized crops of `least` to `greatest` of the image's area.
    pub fn crop_scale(mut self, least: f32, greatest: f32) -> Self {
        self.crop_scale = Some((least, greatest));
        self
    }

    /// Sets the smallest and largest ratio of width to height of random resized crops.
    pub fn crop_ratio(mut self, least: f32, greatest: f32) -> Self {
        self.crop_ratio = (least, greatest);
        self
    }

    /// Sets the width of the black border that is added before a random crop, as is usual for tiny images; 0 is off.
    pub fn pad_crop(mut self, pixels: usize) -> Self {
        self.pad_crop = pixels;
        self
    }

    /// Sets the probability of a horizontal flip.
    pub fn flip(mut self, probability: f32) -> Self {
        self.flip = probability;
        self
    }

    /// Sets the probability of a vertical flip.
    pub fn vertical_flip(mut self, probability: f32) -> Self {
        self.vertical_flip = probability;
        self
    }

    /// Sets how much brightness, contrast, saturation and hue vary.
    pub fn jitter(mut self, brightness: f32, contrast: f32, saturation: f32, hue: f32) -> Self {
        (self.brightness, self.contrast, self.saturation, self.hue) = (brightness, contrast, saturation, hue);
        self
    }

    /// Turns TrivialAugment on or off.
    pub fn trivial(mut self, on: bool) -> Self {
        self.trivial = on;
        self
    }

    /// Sets the probability of erasing a rectangle.
    pub fn erase(mut self, probability: f32) -> Self {
        self.erase = probability;
        self
    }

    /// Sets the parameter of mixup's distribution; 0 is off. A [`Session`](crate::Session) mixes its batches; a
    /// [`Loader`](crate::Loader) of your own does not.
    pub fn mixup(mut self, alpha: f32) -> Self {
        self.mixup = alpha;
        self
    }

    /// Sets the parameter of CutMix's distribution; 0 is off. A [`Session`](crate::Session) mixes its batches; a
    /// [`Loader`](crate::Loader) of your own does not.
    pub fn cutmix(mut self, alpha: f32) -> Self {
        self.cutmix = alpha;
        self
    }

    /// Whether the images of a batch are mixed.
    pub(crate) fn mixes(&self) -> bool {
        self.mixup > 0.0 || self.cutmix > 0.0
    }

    /// Whether two views of one image can differ, or images are mixed.
    pub fn is_random(&self) -> bool {
        self.crop_scale.is_some()
            || self.pad_crop > 0
            || self.trivial
            || self.mixes()
            || [self.flip, self.vertical_flip, self.brightness, self.contrast, self.saturation, self.hue, self.erase]
                .iter()
                .any(|&amount| amount > 0.0)
    }

    /// Refuses values that cannot work.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what: &str, problem: String| Err(Error::invalid(format!("augment: {what}"), problem));
        for (what, p) in [("flip", self.flip), ("vertical_flip", self.vertical_flip), ("erase", self.erase)] {
            if !(0.0..=1.0).contains(&p) {
                return bad(what, format!("{p} is not a probability; it must be 0 to 1"));
            }
        }
        let amounts = [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        for (what, amount) in amounts {
            if !(amount >= 0.0 && amount.is_finite()) {
                return bad(what, format!("{amount}; it must be 0 or more"));
            }
        }
        for (what, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            // A smaller parameter above 0 draws shares that are no numbers.
            if !(alpha == 0.0 || (1e-3..=1e3).contains(&alpha)) {
                return bad(what, format!("{alpha}; it must be 0 (off) or 0.001 to 1000"));
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return bad("hue", format!("{}; it must be 0 to 0.5", self.hue));
        }
        if let Some((least, greatest)) = self.crop_scale {
            if !(least > 0.0 && least <= greatest && greatest <= 1.0) {
                return bad("crop_scale", format!("{least} to {greatest}; give 0 < least <= greatest <= 1"));
            }
            if self.pad_crop > 0 {
                return bad("pad_crop", "cannot be combined with crop_scale; choose one of the two".into());
            }
        }
        let (least, greatest) = self.crop_ratio;
        if !(least > 0.0 && least <= greatest && greatest.is_finite()) {
            return bad("crop_ratio", format!("{least} to {greatest}; give 0 < least <= greatest"));
        }
        const LARGEST: usize = 1 << 14;
        if self.pad_crop > LARGEST {
            return bad("pad_crop", format!("{}; at most {LARGEST} pixels", self.pad_crop));
        }
        Ok(())
    }
}

/// Augments an image of the network's size, before normalisation.
pub(super) fn apply(augment: &Augment, image: &mut Image, fill: &[u8], rng: &mut ChaCha8Rng) {
    if augment.pad_crop > 0 {
        let pad = augment.pad_crop as i64;
        let (down, right) = (rng.random_range(-pad..=pad), rng.random_range(-pad..=pad));
        geometry::shift(image, down, right);
    }
    if occurs(augment.flip, rng) {
        geometry::mirror(image);
    }
    if occurs(augment.vertical_flip, rng) {
        geometry::upside_down(image);
    }
    if augment.trivial {
        trivial(image, fill, rng);
    }
    jitter(augment, image, rng);
}

/// True with this probability; draws no random number if the probability is 0.
fn occurs(probability: f32, rng: &mut ChaCha8Rng) -> bool {
    probability > 0.0 && rng.random::<f32>() < probability
}

/// Brightness, contrast, saturation and hue, in random order.
fn jitter(augment: &Augment, image: &mut Image, rng: &mut ChaCha8Rng) {
    let mut order = [0usize, 1, 2, 3];
    let amounts = [augment.brightness, augment.contrast, augment.saturation, augment.hue];
    if amounts.iter().all(|&amount| amount <= 0.0) {
        return;
    }
    for last in (1..order.len()).rev() {
        order.swap(last, rng.random_range(0..=last));
    }
    for which in order {
        let amount = amounts[which];
        if amount <= 0.0 {
            continue;
        }
        if which == 3 {
            pixels::hue(image, rng.random_range(-amount..=amount));
            continue;
        }
        let factor = rng.random_range((1.0 - amount).max(0.0)..=1.0 + amount);
        match which {
            0 => pixels::brightness(image, factor),
            1 => pixels::contrast(image, factor),
            _ => pixels::saturation(image, factor),
        }
    }
}

/// One operation of TrivialAugment's wide set, at one of 31 strengths.
fn trivial(image: &mut Image, fill: &[u8], rng: &mut ChaCha8Rng) {
    /// The paper's 32 of 224 pixels.
    const TRANSLATE: f32 = 32.0 / 224.0;
    let operation = rng.random_range(0..14);
    let strength = rng.random_range(0..=30) as f32 / 30.0;
    let sign = if rng.random::<bool>() { 1.0 } else { -1.0 };
    let factor = 1.0 + sign * 0.99 * strength;
    let (height, width) = (image.height() as f32, image.width() as f32);
    match operation {
        0 => {}
        1 => geometry::affine(image, [1.0, sign * 0.99 * strength, 0.0, 1.0], [0.0, 0.0], fill),
        2 => geometry::affine(image, [1.0, 0.0, sign * 0.99 * strength, 1.0], [0.0, 0.0], fill),
        3 => geometry::affine(image, [1.0, 0.0, 0.0, 1.0], [sign * strength * TRANSLATE * width, 0.0], fill),
        4 => geometry::affine(image, [1.0, 0.0, 0.0, 1.0], [0.0, sign * strength * TRANSLATE * height], fill),
        5 => {
            let (sin, cos) = (sign * strength * 135.0).to_radians().sin_cos();
            geometry::affine(image, [cos, -sin, sin, cos], [0.0, 0.0], fill);
        }
        6 => pixels::brightness(image, factor),
        7 => pixels::saturation(image, factor),
        8 => pixels::contrast(image, factor),
        9 => pixels::sharpness(image, factor),
        10 => pixels::posterize(image, 8 - (strength * 6.0).round() as u32),
        11 => pixels::solarize(image, 255.0 * (1.0 - strength)),
        12 => pixels::autocontrast(image),
        _ => pixels::equalize(image),
    }
}

/// Sets a random rectangle of normalised values (C, H, W) to zero, with this probability.
pub(super) fn erase(values: &mut [f32], channels: usize, size: (usize, usize), p: f32, rng: &mut ChaCha8Rng) {
    if !occurs(p, rng) {
        return;
    }
    let (height, width) = size;
    for _ in 0..10 {
        let Some((h, w)) = geometry::random_size(size, (0.02, 0.33), (0.3, 3.3), rng) else { continue };
        if h == height || w == width {
            continue;
        }
        let (top, left) = (rng.random_range(0..=height - h), rng.random_range(0..=width - w));
        for c in 0..channels {
            for y in top..top + h {
                let start = (c * height + y) * width + left;
                values[start..start + w].fill(0.0);
            }
        }
        return;
    }
}

/// `augmentation: crops of 70 to 100 %, horizontal flips`
impl fmt::Display for Augment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_random() {
            return f.write_str("no augmentation");
        }
        let mut parts = vec![];
        if let Some((least, greatest)) = self.crop_scale {
            parts.push(format!("crops of {:.0} to {:.0} %", 100.0 * least, 100.0 * greatest));
        }
        if self.pad_crop > 0 {
            parts.push(format!("shifts of up to {} pixels", self.pad_crop));
        }
        let amounts = [
            (self.flip, "horizontal flips"),
            (self.vertical_flip, "vertical flips"),
            (self.brightness, "brightness"),
            (self.contrast, "contrast"),
            (self.saturation, "saturation"),
            (self.hue, "hue"),
            (if self.trivial { 1.0 } else { 0.0 }, "TrivialAugment"),
            (self.erase, "erasing"),
            (self.mixup, "mixup"),
            (self.cutmix, "CutMix"),
        ];
        parts.extend(amounts.into_iter().filter(|(amount, _)| *amount > 0.0).map(|(_, name)| name.to_string()));
        write!(f, "augmentation: {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests;
