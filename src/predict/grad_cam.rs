//! Grad-CAM: where in an image a predictor sees a class.

use super::Predictor;
use crate::data::Image;
use crate::error::{Error, Result};
use crate::inference::ClassMap;
use candle_core::{Device, Tensor};

/// Where in an image a network sees a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).
///
/// The gradient of the class's logit with respect to a feature map A (C, h, w) is averaged over the pixels to a weight
/// a_c per channel, and the map is relu(sum over c of a_c A_c). Of a network with a mean over the pixels and a linear
/// head this is the class activation map of Zhou et al. (2016, arXiv 1512.04150), relu(sum over c of w_c A_c / (h w)).
///
/// ```
/// use candle_finetune::{Image, Predictor, Source, candle_core::Device};
///
/// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
/// let image = Image::from_rgb8(40, 32, (0..40 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect())?;
/// let cam = predictor.grad_cam(&image, None)?; // of the most probable class
/// assert_eq!(cam.map.dims(), [32, 32]); // the network's input
/// assert_eq!(cam.weighted.dims(), [8, 8]); // the last feature map
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// With the feature `plots`, `GradCam::overlay` draws it over the image.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GradCam {
    /// The class.
    pub class: u32,
    /// Its label.
    pub label: String,
    /// The block after which the feature map was taken.
    pub block: String,
    /// relu(sum over c of a_c A_c) at the feature map's size (h, w), f32, not scaled.
    pub weighted: Tensor,
    /// The same divided by its maximum, in [0, 1], interpolated bilinearly to the height and width of the network's
    /// input, f32; all 0 where nothing speaks for the class.
    pub map: Tensor,
    /// Height and width of the image that it is for.
    #[cfg(feature = "plots")]
    pub(crate) image: (usize, usize),
    /// How the network's input was made of the image.
    #[cfg(feature = "plots")]
    pub(crate) spec: crate::input_spec::InputSpec,
}

impl Predictor {
    /// Where in the image the network sees `class`, or the most probable class: Grad-CAM over the map of the last block
    /// that returns more than one pixel.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for networks without such a map, as those of the zoo, which are one block that returns
    /// features; [`Error::Invalid`] for a class that the predictor does not have, and [`Error::NotFinite`] if outputs or
    /// gradients are not finite.
    pub fn grad_cam(&self, image: &Image, class: Option<u32>) -> Result<GradCam> {
        self.cam(image, class, None)
    }

    /// As [`Predictor::grad_cam`], over the map after a block or stage of this name: earlier maps have more pixels, and
    /// say less about classes.
    ///
    /// ```
    /// use candle_finetune::{Image, Predictor, Source, candle_core::Device};
    ///
    /// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
    /// let image = Image::from_rgb8(32, 32, (0..32 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect())?;
    /// let cam = predictor.grad_cam_after(&image, Some(3), "layer2")?;
    /// assert_eq!((cam.label.as_str(), cam.weighted.dims()), ("cat", [16, 16].as_slice()));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownBlock`] for another name.
    pub fn grad_cam_after(&self, image: &Image, class: Option<u32>, block: &str) -> Result<GradCam> {
        let blocks = self.backbone.blocks();
        let Some(at) = blocks.iter().rposition(|b| b.name == block || b.stage == block) else {
            let stages = self.backbone.stages().into_iter().map(|(stage, _)| stage);
            let mut known: Vec<String> = stages.chain(blocks.iter().map(|b| b.name.clone())).collect();
            let mut seen = std::collections::BTreeSet::new();
            known.retain(|name| seen.insert(name.clone()));
            return Err(Error::UnknownBlock { name: crate::error::shown(block), known });
        };
        self.cam(image, class, Some(at + 1))
    }

    fn cam(&self, image: &Image, class: Option<u32>, after: Option<usize>) -> Result<GradCam> {
        if let Some(class) = class.filter(|class| *class as usize >= self.labels().len()) {
            return Err(Error::invalid("class", format!("{class}; the predictor has {} classes", self.labels().len())));
        }
        let input = self.inference.prepare(image)?.unsqueeze(0)?;
        let ClassMap { class, blocks, weighted } =
            self.inference.class_map(&input, class.map(|c| c as usize), after)?;
        let map = scaled(&weighted, self.backbone.input_spec().size)?;
        Ok(GradCam {
            class: class as u32,
            label: self.labels().get(class).cloned().unwrap_or_default(),
            block: self.backbone.blocks().get(blocks - 1).map(|block| block.name.clone()).unwrap_or_default(),
            weighted,
            map,
            #[cfg(feature = "plots")]
            image: (image.height(), image.width()),
            #[cfg(feature = "plots")]
            spec: self.backbone.input_spec().clone(),
        })
    }
}

/// The values divided by their maximum, and interpolated bilinearly between the pixels' centres to `height` x `width`.
fn scaled(map: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let rows = map.to_vec2::<f32>()?;
    let most = rows.iter().flatten().copied().fold(0.0, f32::max);
    let scale = if most > 0.0 { 1.0 / most } else { 0.0 };
    // The two pixels around each place, and the weight of the second one. Beyond the outer centres the map is constant.
    let between = |target: usize, source: usize| -> Vec<(usize, usize, f32)> {
        let place = |i: usize| ((i as f32 + 0.5) * source as f32 / target as f32 - 0.5).clamp(0.0, (source - 1) as f32);
        let pair = |at: f32| (at as usize, (at as usize + 1).min(source - 1), at.fract());
        (0..target).map(|i| pair(place(i))).collect()
    };
    let columns = between(width, map.dim(1)?);
    let mut values = Vec::with_capacity(height * width);
    for (upper, lower, down) in between(height, rows.len()) {
        values.extend(columns.iter().map(|&(left, right, across)| {
            let row = |row: &[f32]| row[left] * (1.0 - across) + row[right] * across;
            (row(&rows[upper]) * (1.0 - down) + row(&rows[lower]) * down) * scale
        }));
    }
    Ok(Tensor::from_vec(values, (height, width), &Device::Cpu)?.clamp(0f32, 1f32)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_interpolated_between_the_centres_of_pixels() {
        let map = Tensor::new(&[[0f32, 4.0], [2.0, 0.0]], &Device::Cpu).unwrap();
        let rows = scaled(&map, (2, 4)).unwrap().to_vec2::<f32>().unwrap();
        // In the first row: centres at 0.25, 0.75, 1.25 and 1.75 of two pixels whose centres are at 0.5 and 1.5.
        assert_eq!(rows, [[0.0, 0.25, 0.75, 1.0], [0.5, 0.375, 0.125, 0.0]]);
        let zeros = scaled(&map.zeros_like().unwrap(), (3, 3)).unwrap();
        assert_eq!(zeros.to_vec2::<f32>().unwrap(), [[0.0; 3]; 3]);
    }
}
