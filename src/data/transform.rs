//! From an image to the network's input.

use super::augment::{self, Augment};
use super::image::Image;
use super::resample::{Region, resize};
use crate::rng::Seed;
use crate::{CropMode, Error, InputSpec, Result};
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use std::borrow::Cow;
use std::sync::Arc;

/// Turns an image into the network's input: resizes, crops, augments for training, normalises.
///
/// Resizing, cropping and rounding are those of torchvision and timm over Pillow, so that pretrained weights see the
/// pixels they were trained on. Augmentation is random but follows from (seed, view, index).
///
/// ```
/// use candle_finetune::{Augment, Image, InputSpec, Transform};
///
/// let image = Image::from_rgb8(300, 200, vec![128; 300 * 200 * 3])?;
/// let eval = Transform::eval(&InputSpec::new(64))?;
/// assert_eq!(eval.apply(&image, 0, 0, 0)?.dims(), [3, 64, 64]);
///
/// let train = Transform::train(&InputSpec::new(64), &Augment::standard())?;
/// let (epoch, i) = (0, 17);
/// assert_eq!(train.apply(&image, 42, epoch, i)?.dims(), [3, 64, 64]);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Transform {
    spec: InputSpec,
    augment: Augment,
    /// The normalised value of each of the 256 levels, per channel.
    levels: Arc<Vec<[f32; 256]>>,
}

impl Transform {
    /// The transform for evaluation and prediction, without augmentation.
    pub fn eval(spec: &InputSpec) -> Result<Self> {
        Self::train(spec, &Augment::none())
    }

    /// The transform for training. With [`Augment::none`] it is the one for evaluation, bit for bit.
    pub fn train(spec: &InputSpec, augment: &Augment) -> Result<Self> {
        check_spec(spec)?;
        augment.check()?;
        let level = |v: usize, mean: f32, std: f32| (v as f32 / 255.0 - mean) / std;
        let levels = spec.mean.iter().zip(&spec.std).map(|(&m, &s)| std::array::from_fn(|v| level(v, m, s))).collect();
        Ok(Self { spec: spec.clone(), augment: augment.clone(), levels: Arc::new(levels) })
    }

    /// The network's input.
    pub fn spec(&self) -> &InputSpec {
        &self.spec
    }

    /// The augmentation.
    pub fn augment(&self) -> &Augment {
        &self.augment
    }

    /// The network's input (C, H, W), f32, on the CPU. `view` is the epoch, or one of several fixed views; `i` is the
    /// sample's index. Equal seed, view and index give equal results; without augmentation they have no effect.
    pub fn apply(&self, image: &Image, seed: u64, view: u64, i: u64) -> Result<Tensor> {
        let (h, w) = self.spec.size;
        Ok(Tensor::from_vec(self.values(image, seed, view, i)?, (self.spec.channels, h, w), &Device::Cpu)?)
    }

    /// The values of [`apply`](Self::apply).
    pub(crate) fn values(&self, image: &Image, seed: u64, view: u64, i: u64) -> Result<Vec<f32>> {
        let image = if image.channels() == self.spec.channels {
            Cow::Borrowed(image)
        } else {
            Cow::Owned(image.clone().to_channels(self.spec.channels)?)
        };
        if !self.augment.is_random() {
            return Ok(self.normalize(&fit(&image, &self.spec)));
        }
        let mut rng = Seed(seed).stream("augment", &[view, i]);
        let image = self.random_image(&image, &mut rng);
        let mut values = self.normalize(&image);
        augment::erase(&mut values, self.spec.channels, self.spec.size, self.augment.erase, &mut rng);
        Ok(values)
    }

    /// The image at the network's size, with all augmentation that works on bytes.
    fn random_image(&self, image: &Image, rng: &mut ChaCha8Rng) -> Image {
        let fill = mean_colour(&self.spec);
        let mut image = match self.augment.crop_scale {
            Some(scale) => {
                let region = augment::random_crop(image, scale, self.augment.crop_ratio, rng);
                let (height, width) = self.spec.size;
                let whole = Region { top: 0, left: 0, height, width };
                resize(image, region, self.spec.size, self.spec.interpolation, whole)
            }
            None => fit(image, &self.spec),
        };
        augment::apply(&self.augment, &mut image, &fill, rng);
        image
    }

    /// Channels first, scaled to 0 to 1, minus the mean, divided by the standard deviation.
    fn normalize(&self, image: &Image) -> Vec<f32> {
        let channels = self.spec.channels;
        let mut values = Vec::with_capacity(image.bytes().len());
        for (c, levels) in self.levels.iter().enumerate() {
            values.extend(image.bytes().chunks_exact(channels).map(|pixel| levels[usize::from(pixel[c])]));
        }
        values
    }
}

fn check_spec(spec: &InputSpec) -> Result<()> {
    let bad = |what: &str, problem: String| Err(Error::invalid(format!("input spec: {what}"), problem));
    if spec.channels == 0 || spec.mean.len() != spec.channels || spec.std.len() != spec.channels {
        let counts = format!("{} channels, {} means, {} deviations", spec.channels, spec.mean.len(), spec.std.len());
        return bad("channels", format!("{counts}; give one mean and one deviation per channel, one channel at least"));
    }
    if !spec.mean.iter().all(|m| m.is_finite()) || !spec.std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return bad("normalisation", "means must be finite and deviations above zero".into());
    }
    const LARGEST: usize = 1 << 14;
    let (h, w) = spec.size;
    if !(1..=LARGEST).contains(&h) || !(1..=LARGEST).contains(&w) {
        return bad("size", format!("{h} x {w}; each side must be 1 to {LARGEST} pixels"));
    }
    if !(spec.crop_pct > 0.01 && spec.crop_pct <= 1.0) {
        return bad("crop_pct", format!("{}; it must be above 0.01 and at most 1", spec.crop_pct));
    }
    Ok(())
}

/// How an image is fitted: the size that it is resized to, and what is cropped from or pasted around it.
struct Fitting {
    resized: (usize, usize),
    /// Rows and columns that are cropped before the network's input.
    cropped: (usize, usize),
    /// Rows and columns of border before the resized image.
    border: (usize, usize),
}

impl Fitting {
    /// For an image of `ih` x `iw` pixels.
    fn new(spec: &InputSpec, (ih, iw): (usize, usize)) -> Self {
        let (h, w) = spec.size;
        match spec.crop_mode {
            CropMode::Squash => Self { resized: (h, w), cropped: (0, 0), border: (0, 0) },
            CropMode::Center => {
                // A quotient that differs from a whole number in its last bit counts as that number, as in 224 / (224 /
                // 232): crop_pct is often the quotient of two sizes. (timm rounds these down; none of its own networks
                // has one.)
                let enlarged = |side: usize| (side as f64 / spec.crop_pct + 1e-9).floor() as usize;
                let (sh, sw) = (enlarged(h), enlarged(w));
                let resized = if sh == sw {
                    // torchvision's Resize: the shorter side is exact, the longer one is truncated to whole pixels.
                    let long = |long: usize, short: usize| (sh as f64 * long as f64 / short as f64) as usize;
                    if ih <= iw { (sh, long(iw, ih)) } else { (long(ih, iw), sh) }
                } else {
                    let ratio = f64::min(ih as f64 / sh as f64, iw as f64 / sw as f64);
                    keep_ratio((ih, iw), ratio, (h, w), (usize::MAX, usize::MAX))
                };
                let centre = |outer: usize, inner: usize| ((outer - inner) as f64 / 2.0).round_ties_even() as usize;
                Self { resized, cropped: (centre(resized.0, h), centre(resized.1, w)), border: (0, 0) }
            }
            CropMode::Border => {
                let ratio = f64::max(ih as f64 / h as f64, iw as f64 / w as f64);
                let resized = keep_ratio((ih, iw), ratio, (1, 1), (h, w));
                Self { resized, cropped: (0, 0), border: ((h - resized.0) / 2, (w - resized.1) / 2) }
            }
        }
    }
}

/// The image at the network's size, without augmentation.
fn fit(image: &Image, spec: &InputSpec) -> Image {
    let (h, w) = spec.size;
    let Fitting { resized, cropped, border } = Fitting::new(spec, (image.height(), image.width()));
    let (top, left) = cropped;
    let keep = Region { top, left, height: h.min(resized.0), width: w.min(resized.1) };
    let inner = resize(image, Region::whole(image), resized, spec.interpolation, keep);
    if (inner.height(), inner.width()) == (h, w) {
        return inner;
    }
    paste(&inner, (h, w), border, &mean_colour(spec))
}

/// The part of an image of `height` x `width` pixels that a network sees, in pixels of the image: top, left, height and
/// width. Where a border is added it extends beyond the image.
#[cfg(feature = "plots")]
pub(crate) fn visible(spec: &InputSpec, (height, width): (usize, usize)) -> [f64; 4] {
    let Fitting { resized, cropped, border } = Fitting::new(spec, (height, width));
    let scale = (height as f64 / resized.0 as f64, width as f64 / resized.1 as f64);
    let first = |cropped: usize, border: usize, scale: f64| (cropped as f64 - border as f64) * scale;
    let (top, left) = (first(cropped.0, border.0, scale.0), first(cropped.1, border.1, scale.1));
    [top, left, spec.size.0 as f64 * scale.0, spec.size.1 as f64 * scale.1]
}

/// Height and width divided by `ratio`, with each side clamped, since rounding could exceed the bounds.
fn keep_ratio(size: (usize, usize), ratio: f64, least: (usize, usize), most: (usize, usize)) -> (usize, usize) {
    let side = |side: usize| (side as f64 / ratio).round_ties_even() as usize;
    (side(size.0).clamp(least.0, most.0), side(size.1).clamp(least.1, most.1))
}

/// The mean colour in bytes, which fills pixels outside of the image.
fn mean_colour(spec: &InputSpec) -> Vec<u8> {
    spec.mean.iter().map(|m| (f64::from(*m) * 255.0).round_ties_even().clamp(0.0, 255.0) as u8).collect()
}

/// An image of `size`, filled with a colour, with `inner` pasted into it.
fn paste(inner: &Image, size: (usize, usize), at: (usize, usize), fill: &[u8]) -> Image {
    let channels = inner.channels();
    let mut bytes = fill.repeat(size.0 * size.1);
    let row_bytes = inner.width() * channels;
    for (y, row) in inner.bytes().chunks_exact(row_bytes).enumerate() {
        let start = ((at.0 + y) * size.1 + at.1) * channels;
        bytes[start..start + row_bytes].copy_from_slice(row);
    }
    Image::from_parts(size.0, size.1, channels, bytes)
}

#[cfg(test)]
mod tests;
