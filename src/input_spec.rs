//! The preprocessing that a network expects.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// More channels than this are a mistake; hyperspectral cameras have hundreds.
const MAX_CHANNELS: usize = 4096;

/// How an image becomes the network's input: size, resampling, cropping and normalisation.
///
/// It belongs to a set of weights, travels with it from the architecture's row through the training transform into
/// the saved predictor, and decides what `predict` does to an image. The version of the predictor's file covers it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InputSpec {
    /// Channels of the input: 3 for RGB, 1 for gray.
    pub channels: usize,
    /// Height and width of the input in pixels.
    pub size: (usize, usize),
    /// The filter that resizes, always with antialiasing.
    pub interpolation: Interpolation,
    /// For [`CropMode::Center`]: the part of the resized image's shorter side that the centre crop keeps, in (0, 1].
    pub crop_pct: f64,
    /// How an image whose aspect ratio differs is fitted.
    #[serde(rename = "fit")]
    pub crop_mode: CropMode,
    /// Per-channel mean of values in [0, 1], subtracted first.
    pub mean: Vec<f32>,
    /// Per-channel standard deviation of values in [0, 1], divided by next.
    pub std: Vec<f32>,
}

/// A resampling filter, as Pillow defines it (antialiased when shrinking).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Interpolation {
    /// Nearest neighbour.
    Nearest,
    /// Triangle filter.
    Bilinear,
    /// Cubic convolution, a = -0.5.
    Bicubic,
    /// Lanczos, three lobes.
    Lanczos,
}

/// How an image is fitted into the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CropMode {
    /// Resize the shorter side to size / crop_pct, keep the ratio, crop the centre.
    #[serde(rename = "crop")]
    Center,
    /// Resize the longer side to size, keep the ratio, pad the rest with the mean colour.
    #[serde(rename = "pad")]
    Border,
    /// Resize both sides to size, whatever the ratio.
    Squash,
}

impl InputSpec {
    /// ImageNet's mean per channel.
    pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    /// ImageNet's standard deviation per channel.
    pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

    /// RGB of `size` by `size` pixels, bicubic, crop 0.875, ImageNet's mean and standard deviation.
    pub fn new(size: usize) -> Self {
        Self {
            channels: 3,
            size: (size, size),
            interpolation: Interpolation::Bicubic,
            crop_pct: 0.875,
            crop_mode: CropMode::Center,
            mean: Self::IMAGENET_MEAN.to_vec(),
            std: Self::IMAGENET_STD.to_vec(),
        }
    }

    /// Sets the height and width in pixels.
    pub fn size(mut self, height: usize, width: usize) -> Self {
        self.size = (height, width);
        self
    }

    /// Sets how images of another ratio are fitted.
    pub fn crop_mode(mut self, mode: CropMode) -> Self {
        self.crop_mode = mode;
        self
    }

    /// Sets the resampling filter.
    pub fn interpolation(mut self, interpolation: Interpolation) -> Self {
        self.interpolation = interpolation;
        self
    }

    /// Sets the part of the shorter side that the centre crop keeps.
    pub fn crop_pct(mut self, crop_pct: f64) -> Self {
        self.crop_pct = crop_pct;
        self
    }

    /// Sets mean and standard deviation per channel, and with them the number of channels.
    pub fn normalize(mut self, mean: &[f32], std: &[f32]) -> Self {
        self.channels = mean.len();
        self.mean = mean.to_vec();
        self.std = std.to_vec();
        self
    }

    /// The same for another number of channels, each with the mean of the means and deviations.
    pub(crate) fn for_channels(self, channels: usize) -> Result<Self> {
        if !(1..=MAX_CHANNELS).contains(&channels) {
            return Err(Error::invalid("channels", format!("{channels}; images have 1 to {MAX_CHANNELS}")));
        }
        if channels == self.channels {
            return Ok(self);
        }
        let average = |v: &[f32]| v.iter().sum::<f32>() / v.len().max(1) as f32;
        let (mean, std) = (average(&self.mean), average(&self.std));
        Ok(self.normalize(&vec![mean; channels], &vec![std; channels]))
    }
}
