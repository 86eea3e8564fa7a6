//! Small pictures of samples.

use crate::data::{Image, resized};
use crate::error::{Error, Result};
use crate::input_spec::{InputSpec, Interpolation};
use candle_core::{DType, Device, Tensor};

/// A network's input (C, H, W) as an RGB image, without its normalisation.
///
/// # Errors
/// [`Error::Invalid`] if it is neither gray nor RGB.
pub(super) fn input_image(input: &Tensor, spec: &InputSpec) -> Result<Image> {
    let (channels, height, width) = input.dims3()?;
    if ![1, 3].contains(&channels) {
        let problem = format!("have {channels} channels; only gray and RGB can be drawn");
        return Err(Error::invalid("images", problem));
    }
    let planes = input.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>()?;
    let mut bytes = Vec::with_capacity(channels * height * width);
    for at in 0..height * width {
        for ((plane, mean), std) in planes.iter().zip(&spec.mean).zip(&spec.std) {
            bytes.push(((plane[at] * std + mean) * 255.0).round().clamp(0.0, 255.0) as u8);
        }
    }
    Image::new(height, width, channels, bytes)?.to_channels(3)
}

/// The image with a longer side of `side` pixels.
pub(super) fn scaled(image: &Image, side: usize) -> Image {
    let (height, width) = (image.height(), image.width());
    let scale = side as f64 / height.max(width) as f64;
    let scaled = |pixels: usize| ((pixels as f64 * scale).round() as usize).max(1);
    resized(image, scaled(height), scaled(width), Interpolation::Bicubic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Transform;

    #[test]
    fn thumbnails_are_the_inputs_without_their_normalisation() {
        let spec = InputSpec::new(64).normalize(&[0.5, 0.4, 0.3], &[0.2, 0.3, 0.4]);
        let image = Image::from_rgb8(64, 64, (0..64 * 64 * 3).map(|i| (i % 251) as u8).collect()).unwrap();
        let spec = spec.crop_pct(1.0);
        let input = Transform::eval(&spec).unwrap().apply(&image, 0, 0, 0).unwrap();
        assert!(scaled(&input_image(&input, &spec).unwrap(), 64) == image);
        let gray = Tensor::zeros((1, 32, 16), DType::F32, &Device::Cpu).unwrap();
        let gray = scaled(&input_image(&gray, &InputSpec::new(32).normalize(&[0.5], &[0.2])).unwrap(), 64);
        assert_eq!((gray.height(), gray.width(), gray.pixel(3, 3)), (64, 32, [128; 3].as_slice()));
        let two = Tensor::zeros((2, 8, 8), DType::F32, &Device::Cpu).unwrap();
        assert!(input_image(&two, &InputSpec::new(8)).is_err());
    }
}
